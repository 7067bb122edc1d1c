"""A topic of a broker that speaks Kafka's protocol as a source, by FastStream's consumer (confluent-kafka).

It is asked for batches; no handler is registered with FastStream. A handler's batch goes through a parser first, and
what fails there (a header that is no UTF-8) would be logged, passed over, and committed with the next batch. Here
nothing is committed but what was taken and is done, and the commit is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from model.errors import ConfigError
from scoring.settings import StreamSettings
from scoring.stream.loop import LoopThread
from scoring.stream.quiet import quiet
from scoring.stream.source import Message
from scoring.stream.waiting import AwayError
from steps.secrets import resolved

if TYPE_CHECKING:
    from faststream.confluent import KafkaBroker
    from faststream.confluent.helpers.client import AsyncConfluentConsumer
    from faststream.confluent.subscriber.usecase import BatchSubscriber

#: Seconds that a broker has for an answer; for a commit.
_ANSWER, _COMMIT = 5.0, 15.0
#: What helps where `faststream` or `confluent_kafka` is missing.
NOT_INSTALLED = "a package is not installed: `pip install -e .[stream]`, in the folder of AgentPS, installs it"
#: Seconds that messages are collected for.
_MOMENT = 0.2
#: Seconds that a batch may take, and those after which a killed worker's partitions go to another.
_BATCH, _SESSION = 900, 10


def servers_and_topic(url: str, option: str) -> tuple[str, str]:
    """Raises: ConfigError."""
    parts = urlsplit(url)
    topic = parts.path.strip("/")
    if not parts.netloc or not topic or "/" in topic or "@" in parts.netloc:
        raise ConfigError(
            f"{option}: kafka://HOST:PORT/TOPIC is expected, several hosts with commas; user and password stand in "
            "stream.kafka, as sasl.username and sasl.password"
        )
    return parts.netloc, topic


def options_of(settings: StreamSettings) -> dict[str, Any]:
    """Of librdkafka, as the run file gives them."""
    return {
        key: resolved(value, f"stream.kafka.{key}") if isinstance(value, str) else value
        for key, value in settings.kafka.items()
    }


class KafkaSource:
    settles = 10.0

    def __init__(self, url: str, settings: StreamSettings) -> None:
        try:
            import faststream.confluent  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"stream.source kafka://: {NOT_INSTALLED}") from error
        self._servers, self._topic = servers_and_topic(url, "stream.source")
        self._settings = settings
        self.name = f"kafka://{self._servers}/{self._topic}"
        self._loop = LoopThread()
        self._broker: KafkaBroker | None = None
        self._subscriber: BatchSubscriber | None = None
        self._away = False

    def open(self) -> None:
        from confluent_kafka import KafkaException

        try:
            self._loop.ask(self._open())
        except KafkaException as error:
            raise _wrong_or_away(self.name, error) from error

    async def _open(self) -> None:
        from faststream import AckPolicy
        from faststream.confluent import KafkaBroker

        if self._broker is None:
            options = options_of(self._settings) | {"error_cb": self._error}
            broker = KafkaBroker(
                self._servers,
                config=cast("Any", options),
                allow_auto_create_topics=False,
                logger=quiet,
            )
            await broker.connect()
            self._broker = broker
        admin = self._broker.config.broker_config.admin.client
        found = await asyncio.to_thread(admin.list_topics, timeout=_ANSWER)
        if self._topic not in found.topics:
            raise AwayError(f"{self.name}: the broker has no topic {self._topic!r}: make it there, or correct the name")
        subscriber = self._broker.subscriber(
            self._topic,
            batch=True,
            max_records=self._settings.batch,
            group_id=self._settings.group,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.MANUAL,
            max_poll_interval_ms=_BATCH * 1000,
            session_timeout_ms=_SESSION * 1000,
            no_reply=True,
        )
        await subscriber.start()
        self._subscriber = subscriber

    @property
    def _consumer(self) -> AsyncConfluentConsumer:
        if self._subscriber is None or self._subscriber.consumer is None:
            raise RuntimeError("the source is not open")
        return self._subscriber.consumer

    def _error(self, error: Any) -> None:
        """librdkafka goes on trying by itself; `take` finds out whether the broker is back."""
        self._away = True

    def take(self) -> Sequence[Message]:
        from confluent_kafka import KafkaException

        try:
            found = self._loop.ask(self._consumer.getmany(timeout=_MOMENT, max_records=self._settings.batch))
            if not found and self._away:
                self._loop.ask(asyncio.to_thread(self._consumer.consumer.list_topics, timeout=_ANSWER))
                self._away = False
        except KafkaException as error:
            raise _wrong_or_away(self.name, error) from error
        return [
            Message.at(f"{message.topic()}/{message.partition()}/{message.offset()}", message.value() or b"")
            for message in found
        ]

    def commit(self) -> None:
        from confluent_kafka import KafkaException

        try:
            self._loop.ask(self._consumer.commit(asynchronous=False), _COMMIT)
        except TimeoutError as error:
            raise AwayError(f"{self.name}: no answer in {_COMMIT:.0f} s") from error
        except KafkaException as error:
            if error.args[0].name() != "_NO_OFFSET":
                raise AwayError(f"{self.name}: {error.args[0].str()}") from error

    def behind(self) -> int | None:
        from confluent_kafka import KafkaException

        if self._subscriber is None or self._subscriber.consumer is None:
            return None
        consumer = self._consumer.consumer
        try:
            places = consumer.position(consumer.assignment())
            ends = [(place, *consumer.get_watermark_offsets(place, cached=True)) for place in places]
        except (KafkaException, RuntimeError):  # it is being closed, or its partitions are being handed out
            return None
        # an offset below 0: nothing was taken from there yet
        return sum(max(0, high - (place.offset if place.offset >= 0 else low)) for place, low, high in ends)

    def close(self) -> None:
        if self._broker is not None:
            self._loop.ask(self._broker.stop())
        self._loop.close()


def _wrong_or_away(name: str, error: Any) -> ConfigError | AwayError:
    fault = error.args[0]
    if fault.name() in ("_INVALID_ARG", "_UNKNOWN_PROTOCOL"):
        return ConfigError(f"{name}: {fault.str()}: correct stream.kafka")
    return AwayError(f"{name}: {fault.str()}")
