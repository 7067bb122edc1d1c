"""RabbitMQ, NATS (JetStream) and Redis (streams) as sources, by FastStream.

Each message is acknowledged by itself, once its batch is done. Where a worker is killed, these brokers hand out its
messages again after newer ones: of a post that was updated in between, the older content may come last. Kafka, with the
post's id as the key, and a folder keep the order.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from model.errors import ConfigError
from scoring.settings import StreamSettings
from scoring.stream.loop import LoopThread
from scoring.stream.quiet import quiet
from scoring.stream.source import Message
from scoring.stream.waiting import AwayError
from steps.secrets import masked

#: Seconds that a broker has for an answer; between two looks whether an idle one is there; that messages are collected.
_ANSWER, _LOOK, _MOMENT = 5.0, 10.0, 0.2
#: Seconds after which a message that is not acknowledged comes again: longer than a batch takes.
_AGAIN = 300


class _Kind(NamedTuple):
    """extra: of FastStream. url: what is expected."""

    extra: str
    url: str


BROKERS = {
    "amqp": _Kind("rabbit", "amqp://HOST/QUEUE or amqp://HOST/VHOST/QUEUE"),
    "amqps": _Kind("rabbit", "amqps://HOST/QUEUE or amqps://HOST/VHOST/QUEUE"),
    "nats": _Kind("nats", "nats://HOST/STREAM/SUBJECT"),
    "redis": _Kind("redis", "redis://HOST/STREAM or redis://HOST/DATABASE/STREAM"),
}


class BrokerSource:
    settles = 5.0

    def __init__(self, url: str, settings: StreamSettings) -> None:
        parts = urlsplit(url)
        self._kind = BROKERS[parts.scheme]
        *above, name = parts.path.strip("/").split("/")
        if not parts.hostname or not name or len(above) > 1 or (self._kind.extra == "nats" and not above):
            raise ConfigError(f"stream.source {masked(url)}: {self._kind.url} is expected")
        try:
            __import__(f"faststream.{self._kind.extra}")
        except ImportError as error:
            command = f"`pip install 'faststream[{self._kind.extra}]'`"
            raise ConfigError(f"stream.source {parts.scheme}://: a package is not installed: {command}") from error
        self._above, self._name, self._settings = above[0] if above else "", name, settings
        server = "" if self._kind.extra == "nats" else self._above
        self._url = urlunsplit((parts.scheme, parts.netloc, server, parts.query, ""))
        place = parts.netloc.rpartition("@")[2]
        self.name = f"{parts.scheme}://{place}/{'/'.join([*above, name])}"
        self._loop = LoopThread()
        self._came: asyncio.Queue[Any] = asyncio.Queue(settings.batch)
        self._taken: list[Any] = []
        self._broker: Any = None
        self._heard = time.monotonic()

    def open(self) -> None:
        try:
            self._loop.ask(self._open(), 6 * _ANSWER)
        except Exception as error:  # each library has errors of its own, without a common base
            if self._broker is not None:
                self._loop.ask(self._broker.stop())
                self._broker = None
            raise AwayError(f"{self.name}: {type(error).__name__}: {masked(str(error))[:300]}") from error

    async def _open(self) -> None:
        self._broker = await getattr(self, f"_{self._kind.extra}")()
        await self._broker.start()

    async def _rabbit(self) -> Any:
        from faststream import AckPolicy
        from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

        channel = Channel(prefetch_count=self._settings.batch)
        broker = RabbitBroker(self._url, default_channel=channel, logger=quiet, apply_types=False)
        queue = RabbitQueue(self._name, declare=False)
        broker.subscriber(queue, ack_policy=AckPolicy.MANUAL, decoder=_itself, no_reply=True)(self._keep)
        return broker

    async def _nats(self) -> Any:
        from faststream import AckPolicy
        from faststream.nats import JStream, NatsBroker, PullSub
        from nats.js.api import ConsumerConfig

        broker = NatsBroker(self._url, logger=quiet, apply_types=False)
        broker.subscriber(
            self._name,
            stream=JStream(self._above, declare=False),
            durable=self._settings.group,
            pull_sub=PullSub(batch_size=1, timeout=1.0),
            config=ConsumerConfig(ack_wait=_AGAIN, max_ack_pending=2 * self._settings.batch),
            ack_policy=AckPolicy.MANUAL,
            decoder=_itself,
            no_reply=True,
        )(self._keep)
        return broker

    async def _redis(self) -> Any:
        from faststream import AckPolicy
        from faststream.redis import RedisBroker, StreamSub
        from redis.asyncio import Redis
        from redis.exceptions import ResponseError

        async with Redis.from_url(self._url) as client:
            try:  # FastStream's own group would begin behind the messages that are there, and make a stream
                await client.xgroup_create(self._name, self._settings.group, id="0")
            except ResponseError as error:
                if "already exists" not in str(error):
                    raise
        broker = RedisBroker(self._url, logger=quiet, apply_types=False)
        for idle in (None, _AGAIN * 1000):  # new ones; those of a worker that is gone
            stream = StreamSub(
                self._name,
                group=self._settings.group,
                consumer=f"{socket.gethostname()}-{os.getpid()}",
                max_records=1,
                min_idle_time=idle,
                polling_interval=200,
            )
            broker.subscriber(stream=stream, ack_policy=AckPolicy.MANUAL, decoder=_itself, no_reply=True)(self._keep)
        return broker

    async def _keep(self, message: Any) -> None:
        """Where a batch waits already, so does the broker: nothing is read ahead of that."""
        await self._came.put(message)

    def take(self) -> Sequence[Message]:
        self._taken = self._loop.ask(self._collect())
        if self._taken:
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > _LOOK:
            if not self._loop.ask(self._broker.ping(_ANSWER)):
                raise AwayError(f"{self.name}: no answer in {_ANSWER:.0f} s")
            self._heard = time.monotonic()
        return [Message.at(self._place(found), _content(found)) for found in self._taken]

    def _place(self, message: Any) -> str:
        raw = message.raw_message
        if isinstance(raw, dict):  # Redis
            return str(raw["message_ids"][0].decode())
        if (metadata := getattr(raw, "metadata", None)) is not None:  # NATS
            return str(metadata.sequence.stream)
        return self._name  # RabbitMQ numbers none, and what a sender calls it may be another's name, too

    async def _collect(self) -> list[Any]:
        found: list[Any] = []
        end = time.monotonic() + _MOMENT
        while len(found) < self._settings.batch and (left := end - time.monotonic()) > 0:
            try:
                found.append(await asyncio.wait_for(self._came.get(), left))
            except TimeoutError:
                break
        return found

    def commit(self) -> None:
        taken, self._taken = self._taken, []
        try:
            self._loop.ask(self._acknowledge(taken), 6 * _ANSWER)
        except Exception as error:
            raise AwayError(f"{self.name}: {type(error).__name__}: {masked(str(error))[:300]}") from error

    async def _acknowledge(self, taken: Sequence[Any]) -> None:
        for message in taken:
            await message.ack()

    def behind(self) -> None:
        """The broker's own metrics say it."""

    def close(self) -> None:
        if self._broker is not None:
            self._loop.ask(self._broker.stop(), 6 * _ANSWER)
        self._loop.close()


async def _itself(message: Any) -> Any:
    """In place of what it holds, which is the retriever's to read."""
    return message


def _content(message: Any) -> bytes:
    """Of Redis, whose messages have fields: of FastStream's producers theirs, else `body`, else the first."""
    raw = message.raw_message
    if isinstance(raw, dict) and isinstance(fields := raw["data"], dict) and b"__data__" not in fields:
        return bytes(fields.get(b"body", next(iter(fields.values()), b"")))
    return message.body if isinstance(message.body, bytes) else b""
