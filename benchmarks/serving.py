"""The service beside the plain scorer and `mlflow models serve`: rates, overload, memory, new champions, its end.

    .venv/bin/python -m benchmarks.serving [--posts 2000] [--seconds 30] [--requests 100000]

Needs the champion of `make train`; its version is registered again, twice, in a registry of its own. Writes
`benchmarks/serving.json` and the table of `docs/service.md`. All arms have the same posts and as many torch threads,
one after the other; the load comes from the same cores. Takes half an hour; other work on the machine counts in.
"""

from __future__ import annotations

import argparse
import base64
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import mlflow
import numpy as np
import pandas as pd
from mlflow.tracking import MlflowClient

from benchmarks.load import Answer, closed, figures, run, steady
from benchmarks.record import machine, put, table, write
from infra.local_stack import tracking_uri
from model.columns import SCORE
from model.task import load_task
from scoring.score import Input, LocalScore
from scoring.serve import cores
from scoring.settings import load_service
from steps.ingest.sample import render_sample
from steps.paths import REPOSITORY, home
from steps.promote.gate import Decision
from steps.register import history, registry
from steps.settings import load_settings

RECORD, PAGE = REPOSITORY / "benchmarks" / "serving.json", REPOSITORY / "docs" / "service.md"
CLIENTS = 128
#: Posts that come before those that count: at first, each shape of a batch takes longer.
WARM = 4_000
#: Times the measured capacity, and the moves of the champion under load.
OVERLOAD, MOVES, ROLLBACKS = 3, 20, 5
NAME = load_settings({}).register_.model_name(load_task("ucc"))
THREADS = load_service().threads or max(1, cores() - 1)


# --- what is scored, and with what -------------------------------------------------------------


def registered_again(folder: Path) -> str:
    """A registry in `folder` with the home's champion twice, in two calibrations; its address."""
    mlflow.set_tracking_uri(tracking_uri(home()))
    champion = history.champion_of(NAME)
    checkpoint = folder / "checkpoint"
    shutil.copytree(registry.fetch(champion), checkpoint)
    report, predictions = registry.report_of(champion), registry.predictions_of(champion)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("serving", artifact_location=(folder / "artifacts").as_uri())
    task = load_task("ucc")
    example = pd.DataFrame([{"title": "", "text": "", "images": [data_text(next(iter(posts(1))).images[0])]}])
    with mlflow.start_run(experiment_id=experiment):
        for bias in (0.0, 0.1):
            calibration = report.calibration.model_copy(update={"bias": report.calibration.bias + bias})
            other = report.model_copy(update={"calibration": calibration})
            version, _ = registry.register(checkpoint, other, predictions, task, example, name=NAME, tags={})
            promote(version.version)
    promote("1")
    return uri


def promote(version: str) -> None:
    """As the gate does."""
    wanted = registry.get(NAME, version)
    history.settle(wanted, lambda state: Decision(verdict="promoted", reason="benchmark"))


def posts(n: int) -> list[Input]:
    """Of the sample, the test split first, read into memory."""
    manifest = render_sample(load_settings({"sample": {"clips": 0}}).sample, home())
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    rows = sorted(rows, key=lambda row: row["split"] != "test")[:n]
    return [
        Input(
            row["post_id"], row["title"], row["text"], tuple((manifest.parent / i).read_bytes() for i in row["images"])
        )
        for row in rows
    ]


def data_text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def bodies(inputs: Sequence[Input]) -> list[bytes]:
    return [
        json.dumps(
            {
                "posts": [
                    {
                        "post_id": post.post_id,
                        "title": post.title,
                        "text": post.text,
                        "images": [f"data:image/jpeg;base64,{data_text(image)}" for image in post.images],
                    }
                ]
            }
        ).encode()
        for post in inputs
    ]


def renewed(inputs: Sequence[Input], n: int) -> list[Input]:
    """`n` posts whose pictures look like those of `inputs`, in files that nobody has seen."""
    found = []
    for k in range(n):
        post, end = inputs[k % len(inputs)], b"%08d" % k  # behind a JPEG's end nothing is read
        found.append(replace(post, images=tuple(image + end for image in post.images)))
    return found


def mlflow_bodies(inputs: Sequence[Input]) -> list[bytes]:
    rows = [{"title": p.title, "text": p.text, "images": list(map(data_text, p.images))} for p in inputs]
    return [json.dumps({"dataframe_records": [row]}).encode() for row in rows]


# --- the arms ----------------------------------------------------------------------------------


def offline(n: int) -> dict[str, Any]:
    """Posts a second of the plain scorer by batch, in this process; the pictures are seen for the first time."""
    import torch

    torch.set_num_threads(THREADS)
    inputs, rates = posts(n + WARM), {}
    scores: list[float | None] = []
    for batch in (8, 16, 32, 64):
        score = LocalScore.champion(NAME)
        for k in range(n, len(inputs), batch):
            score(inputs[k : k + batch])
        gc.disable()  # half a second each time, in a process that holds all posts
        begin = time.perf_counter()
        parts = [score(inputs[k : k + batch]) for k in range(0, n, batch)]
        rates[str(batch)] = round(n / (time.perf_counter() - begin), 1)
        gc.enable()
        scores = [record.score for part in parts for record in part]
    return {"rates": rates, "best": max(rates.values()), "scores": scores}


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port


@contextmanager
def started(command: Callable[[int], list[str]], probe: str, environment: dict[str, str]) -> Iterator[Any]:
    """A server once it answers: its process and its address."""
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command(port), cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        try:
            url, end = f"http://127.0.0.1:{port}", time.monotonic() + 300
            while time.monotonic() < end and process.poll() is None:
                try:
                    with urlopen(url + probe, timeout=5):
                        break
                except (URLError, OSError):
                    time.sleep(0.2)
            else:
                log.seek(0)
                raise SystemExit(f"{command(port)} did not start: {log.read().decode()[-2000:]}")
            yield process, url
        finally:
            process.terminate()
            process.wait(60)


def service(folder: Path, uri: str) -> Any:
    """`agentps serve` on the registry of `folder`."""
    own = {"AGENTPS_HOME": str(folder), "MLFLOW_TRACKING_URI": uri}
    agentps = str(Path(sys.executable).with_name("agentps"))
    return started(lambda port: [agentps, "serve", "--port", str(port)], "/ready", os.environ | own)


def mlflow_server(uri: str) -> Any:
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls uvicorn by its name
    own = {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": str(THREADS), "PATH": path}
    return started(lambda port: [*command, "--port", str(port)], "/ping", os.environ | own)


def capacity(url: str, warm: Sequence[bytes], sent: Sequence[bytes], scores: Sequence[float | None]) -> dict[str, Any]:
    """A pass over the posts, each new to the service; then another, all seen."""
    run(closed(f"{url}/score", warm, CLIENTS, len(warm)))
    begin, busy = time.perf_counter(), time.process_time()
    first = run(closed(f"{url}/score", sent, CLIENTS, len(sent)))
    cores_of_the_load = round((time.process_time() - busy) / (time.perf_counter() - begin), 2)
    found = {a.number: json.loads(a.body)["records"][0]["score"] for a in first if a.status == 200}
    differences = [abs(found[k] - scores[k]) for k in found if scores[k] is not None]  # type: ignore[operator]
    again = run(closed(f"{url}/score", sent, CLIENTS, len(sent)))
    largest = float(np.max(differences)) if differences else None
    return {
        "first": figures(first),
        "again": figures(again),
        "largest_difference": largest,
        "cores_of_the_load": cores_of_the_load,
    }


def overload(url: str, inputs: Sequence[Input], rate: float, seconds: float) -> dict[str, Any]:
    """`OVERLOAD` times what the service can do, on new pictures, too."""
    sent = bodies(renewed(inputs, int(OVERLOAD * rate * seconds)))
    begin, busy = time.perf_counter(), time.process_time()
    answers = run(steady(f"{url}/score", sent, OVERLOAD * rate, seconds))
    cores_of_the_load = round((time.process_time() - busy) / (time.perf_counter() - begin), 2)
    found = figures(answers)
    refused = [answer for answer in answers if answer.status == 429]
    queue = load_service().queue_posts
    return found | {
        "offered_per_second": round(OVERLOAD * rate, 1),
        "cores_of_the_load": cores_of_the_load,
        "share_of_capacity": round(found["answered_per_second"] / rate, 3),
        "refused_with_retry_after": sum(answer.retry_after for answer in refused),
        "queue_over_rate_ms": round(1000 * queue / found["answered_per_second"], 1),
    }


def memory(url: str, sent: Sequence[bytes], n: int) -> dict[str, Any]:
    """Of the process that scores, MB, while requests are answered."""
    pid = _replica()
    done: list[int] = []
    sizes: list[float] = []

    def keep(answer: Answer) -> None:
        done.append(answer.status)
        if len(done) % max(1, n // 20) == 0:
            sizes.append(_resident(pid))

    begin = _resident(pid)
    run(closed(f"{url}/score", sent, CLIENTS, n, keep=keep))
    good = sum(status == 200 for status in done)
    return {"requests": n, "answered": good, "before_MB": round(begin), "every_20th_MB": [round(s) for s in sizes]}


def _replica() -> int:
    """The newest, where several services run on the machine."""
    found = subprocess.run(
        ["pgrep", "-n", "-f", "^ray::ServeReplica:agentps:model"], check=True, capture_output=True, text=True
    )
    return int(found.stdout)


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def moves(url: str, sent: Sequence[bytes], uri: str) -> dict[str, Any]:
    """The champion is moved and rolled back while requests of four posts come; no request may be lost."""
    mlflow.set_tracking_uri(uri)
    four = [
        json.dumps({"posts": [json.loads(sent[k + j])["posts"][0] for j in range(4)]}).encode() for k in range(0, 96, 4)
    ]
    stop = threading.Event()
    answers: list[Answer] = []
    load = threading.Thread(target=lambda: answers.extend(run(closed(f"{url}/score", four, 8, until=stop.is_set))))
    load.start()
    waits, current = [], "1"
    for move in range(MOVES + ROLLBACKS):
        begin, current = time.perf_counter(), {"1": "2", "2": "1"}[current]
        if move % 5 == 4:
            history.rollback(NAME, "benchmark")
        else:
            promote(current)
        while _ready(url)["version"] != current:
            time.sleep(0.05)
        waits.append(time.perf_counter() - begin)
    stop.set()
    load.join()
    batches: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for answer in answers:
        for record in json.loads(answer.body)["records"] if answer.status == 200 else ():
            batches[(record["scored_at"],)].add(record["model_version"])
    return figures(answers) | {
        "moves": MOVES,
        "rollbacks": ROLLBACKS,
        "lost": sum(answer.status != 200 for answer in answers),
        "batches": len(batches),
        "batches_of_two_versions": sum(len(versions) > 1 for versions in batches.values()),
        "seconds_until_the_new_version_answers": round(float(np.median(waits)), 2),
    }


def _ready(url: str) -> dict[str, Any]:
    with urlopen(f"{url}/ready", timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def drain(process: Any, url: str, sent: Sequence[bytes]) -> dict[str, Any]:
    """SIGTERM under load: what was taken is answered. Nobody listens afterwards."""
    stop, answers = threading.Event(), list[Answer]()
    load = threading.Thread(target=lambda: answers.extend(run(closed(f"{url}/score", sent, 16, until=stop.is_set))))
    load.start()
    time.sleep(2)
    begin = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    code = process.wait(120)
    seconds = time.perf_counter() - begin
    stop.set()
    load.join()
    count = {status: sum(answer.status == status for answer in answers) for status in (200, 503, 0, -1)}
    return {
        "exit_code": code,
        "seconds": round(seconds, 1),
        "answered": count[200],
        "refused_at_the_end": count[503],
        "nobody_listens": count[0],
        "broken": count[-1],
    }


def peer(uri: str, sent: Sequence[bytes], scores: Sequence[float | None]) -> dict[str, Any]:
    """`mlflow models serve` on `@champion`; what it says after the alias has moved."""
    mlflow.set_tracking_uri(uri)
    MlflowClient().set_registered_model_alias(NAME, registry.CHAMPION, "1")
    with mlflow_server(uri) as (_, url):
        first = run(closed(f"{url}/invocations", sent, CLIENTS, len(sent)))
        again = run(closed(f"{url}/invocations", sent, CLIENTS, len(sent)))
        MlflowClient().set_registered_model_alias(NAME, registry.CHAMPION, "2")
        time.sleep(10)
        after = run(closed(f"{url}/invocations", sent[:20], 1, 20))
        told = [json.loads(answer.body)["predictions"][0][SCORE] for answer in after]
    MlflowClient().set_registered_model_alias(NAME, registry.CHAMPION, "1")
    old = all(abs(score - scores[k]) < 1e-6 for k, score in enumerate(told) if scores[k] is not None)  # type: ignore[operator]
    return {"first": figures(first), "again": figures(again), "old_version_after_the_move": old}


# --- the record and its table --------------------------------------------------------------------


def tables(record: dict[str, Any]) -> dict[str, str]:
    plain, ours, theirs = record["offline"]["best"], record["service"], record["mlflow"]
    over, end, moved, size = ours["overload"], ours["drain"], ours["moves"], ours["memory"]
    rate, peer_rate = ours["capacity"]["first"], theirs["first"]
    rows = [
        ["plain scorer, no service: posts a second", f"{plain:,.0f}", ""],
        [
            f"{CLIENTS} clients: posts a second (p99)",
            f"{rate['answered_per_second']:,.0f} ({rate['p99_ms']:,.0f} ms): "
            f"{rate['answered_per_second'] / plain:.0%} of the plain scorer",
            f"{peer_rate['answered_per_second']:,.0f} ({peer_rate['p99_ms']:,.0f} ms)",
        ],
        ["largest difference of a score to the plain scorer", f"{ours['capacity']['largest_difference']:g}", ""],
        [
            f"{OVERLOAD} times the load: answered, of capacity",
            f"{over['share_of_capacity']:.0%}, p99 {over['p99_ms']:,.0f} ms (queue over rate: "
            f"{over['queue_over_rate_ms']:,.0f} ms); {over['statuses'].get('429', 0):,} refused, "
            f"{over['refused_with_retry_after']:,} of them with `Retry-After`",
            "no limit",
        ],
        [
            f"memory over {size['requests']:,} requests",
            f"{size['every_20th_MB'][0]:,} MB after the first 20th, {size['every_20th_MB'][-1]:,} MB at the end",
            "",
        ],
        [
            f"champion moved {moved['moves']} times, rolled back {moved['rollbacks']} times",
            f"{moved['requests']:,} requests: {moved['lost']} lost; {moved['batches']:,} batches: "
            f"{moved['batches_of_two_versions']} of two versions",
            "serves the old version until it is started again"
            if theirs["old_version_after_the_move"]
            else "serves the new version",
        ],
        [
            "cores that the load itself took, of those of the service",
            f"{ours['capacity']['cores_of_the_load']:g}; at {OVERLOAD} times the load {over['cores_of_the_load']:g}",
            "",
        ],
        ["SIGTERM under load", f"{end['broken']} requests broken, ended in {end['seconds']:g} s", ""],
    ]
    return {"serving": table(["", "`agentps serve`", "`mlflow models serve`"], rows)}


def measure(n: int, seconds: float, requests: int) -> dict[str, Any]:
    record: dict[str, Any] = {"machine": machine("ray", "torch", "mlflow", "fastapi"), "threads": THREADS, "posts": n}
    with tempfile.TemporaryDirectory(dir=home()) as name:
        folder = Path(name)
        uri = registered_again(folder)
        inputs = posts(n + WARM)
        sent, warm = bodies(inputs[:n]), bodies(inputs[n:])
        command = [sys.executable, "-m", "benchmarks.serving", "--offline", uri, "--posts", str(n)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        scores = found.pop("scores")
        record["offline"] = found
        with service(folder, uri) as (process, url):
            at_best = capacity(url, warm, sent, scores)
            record["service"] = arms = {"capacity": at_best}
            arms["overload"] = overload(url, inputs[:n], at_best["first"]["answered_per_second"], seconds)
            arms["moves"] = moves(url, sent, uri)
            arms["memory"] = memory(url, sent, requests)
            arms["drain"] = drain(process, url, sent)
        sys.stderr.write(json.dumps(record) + "\n")
        record["mlflow"] = peer(uri, mlflow_bodies(inputs[:n]), scores)
    return record


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--posts", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--offline", help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, default=RECORD)
    given = parser.parse_args()
    if given.offline:
        mlflow.set_tracking_uri(given.offline)
        sys.stdout.write(json.dumps(offline(given.posts)))
        return
    record = measure(given.posts, given.seconds, given.requests)
    write(given.record, record)
    if given.record == RECORD:
        put(tables(record), PAGE)


if __name__ == "__main__":
    main()
