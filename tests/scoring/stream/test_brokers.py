"""RabbitMQ, NATS (JetStream) and Redis: real servers, each started for its test; skipped where one is not installed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scoring.stream.run import store_of, stream
from tests.support.stream import INGEST, PICTURE, StubScore, free_port, settings, until

pytestmark = pytest.mark.usefixtures("agentps_home")

#: Sends messages to a server, in order; makes what holds them where it is not there.
Send = Callable[[Sequence[bytes]], None]


@contextmanager
def started(command: list[str], port: int, folder: Path, **environment: str) -> Iterator[None]:
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)

    def listens() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listens, "the server listens")
        yield
    finally:
        process.terminate()
        process.wait(60)


def needs(program: str, package: str) -> str:
    pytest.importorskip(package, reason=f"`pip install {package}`, which faststream's extra brings")
    if (found := shutil.which(program, path=f"/usr/lib/rabbitmq/bin:{os.environ['PATH']}:/usr/sbin")) is None:
        pytest.skip(f"{program} is not installed")
    return found


@contextmanager
def redis(folder: Path) -> Iterator[tuple[str, Send]]:
    server, port = needs("redis-server", "redis"), free_port()
    from redis import Redis

    def send(bodies: Sequence[bytes]) -> None:
        with Redis(port=port) as client:
            for body in bodies:
                client.xadd("posts", {"body": body})

    with started([server, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)], port, folder):
        yield f"redis://127.0.0.1:{port}/posts", send


@contextmanager
def nats(folder: Path) -> Iterator[tuple[str, Send]]:
    server, port = needs("nats-server", "nats"), free_port()
    import nats as client

    async def work(bodies: Sequence[bytes]) -> None:
        connection = await client.connect(f"nats://127.0.0.1:{port}")
        stream = connection.jetstream()
        await stream.add_stream(name="agentps", subjects=["posts"])
        for body in bodies:
            await stream.publish("posts", body)
        await connection.close()

    with started([server, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)], port, folder):
        yield f"nats://127.0.0.1:{port}/agentps/posts", lambda bodies: run(work(bodies))


@contextmanager
def rabbitmq(folder: Path) -> Iterator[tuple[str, Send]]:
    server, port, names = needs("rabbitmq-server", "aio_pika"), free_port(), str(free_port())
    import aio_pika

    async def work(bodies: Sequence[bytes]) -> None:
        async with await aio_pika.connect(f"amqp://127.0.0.1:{port}") as connection:
            channel = await connection.channel()
            await channel.declare_queue("posts", durable=True)
            for body in bodies:
                await channel.default_exchange.publish(aio_pika.Message(body), "posts")

    own = {
        "HOME": str(folder),
        "ERL_EPMD_PORT": names,
        "RABBITMQ_NODENAME": f"agentps{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
    }
    try:
        with started([server], port, folder, **own):
            yield f"amqp://127.0.0.1:{port}/posts", lambda bodies: run(work(bodies))
    finally:
        subprocess.run(["epmd", "-port", names, "-kill"], check=False, capture_output=True)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@pytest.mark.parametrize("broker", [redis, nats, rabbitmq])
def test_posts_of_a_broker_are_scored_once_and_bad_messages_are_dead_letters(broker: Any, tmp_path: Path) -> None:
    (folder := tmp_path / "server").mkdir()
    with broker(folder) as (url, send):
        chosen = settings(tmp_path, url)

        def go() -> str:
            said: list[str] = []
            stream(chosen, INGEST, StubScore(), said.append, once=True)
            return said[-1]

        send([post("a"), b"{", post("b"), *(post(f"p{k}") for k in range(5))])
        assert "7 posts scored, 0 unchanged, 0 without a score, 1 dead letters" in go()
        send([post("a", "newer text"), post("b")])
        assert "1 posts scored, 1 unchanged, 0 without a score, 0 dead letters" in go()
    current = store_of(chosen).current(["a", "b"])
    assert [current[name][0].score for name in "ab"] == [1.0, 0.1]


def post(post_id: str, text: str = "x") -> bytes:
    return json.dumps({"post_id": post_id, "text": text, "images": [PICTURE]}).encode()
