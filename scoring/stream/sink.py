"""Sink: where records and decisions go. Each takes a batch; what it refuses for ever is told, not raised.

All are written at least once, and say the same for the same record: a reader drops what it has by the record's `key`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import ConfigError
from model.files import replacing
from scoring.record import Record, to_row
from scoring.settings import StreamSettings
from scoring.stream.quiet import quiet
from scoring.stream.waiting import AwayError, asking
from steps.secrets import masked, resolved

if TYPE_CHECKING:
    from scoring.policy import Outcome
    from scoring.store import Store

Scored = tuple[Record, "Outcome | None"]
#: The place in the batch of each record that the sink will never take, and why.
Refused = Mapping[int, str]


class Sink(Protocol):
    #: Without secrets.
    name: str

    def put(self, scored: Sequence[Scored]) -> Refused:
        """Raises: AwayError: it does not answer; the same batch is put again, all of it."""
        ...

    def close(self) -> None: ...


def key(record: Record) -> str:
    """The same for the same post, content, version and policy, whenever it is scored."""
    parts = (record.post_id, record.model_name, record.model_version, record.policy_version, record.input_sha256)
    return hashlib.sha256(json.dumps([*parts, record.error]).encode()).hexdigest()


def body(scored: Scored) -> bytes:
    record, outcome = scored
    content = {"key": key(record), "record": record.model_dump(mode="json")}
    if outcome is not None:
        content["outcome"] = outcome.model_dump(mode="json")
    return json.dumps(content, ensure_ascii=False).encode()


def sink_of(url: str, settings: StreamSettings) -> Sink:
    """Raises: ConfigError: it is no sink, or a package is missing."""
    url = resolved(url, "stream.sinks")
    scheme = urlsplit(url).scheme if "://" in url else "file"
    if scheme == "kafka":
        return KafkaSink(url, settings)
    if scheme in ("http", "https"):
        return WebhookSink(url)
    if scheme == "file":
        return ParquetSink(Path(urlsplit(url).path if "://" in url else url))
    raise ConfigError(
        f"stream.sinks {masked(url)}: kafka://HOST:PORT/TOPIC, an https:// address or a folder is expected"
    )


class StoreSink:
    """The store of current records, history and dead letters."""

    name = "store"

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, scored: Sequence[Scored]) -> Refused:
        asking(lambda: self._store.put(scored))
        return {}

    def close(self) -> None:
        self._store.close()


class ParquetSink:
    """A file for each batch, in a folder for each day (UTC) on which its posts were scored; rows are only added."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.name = folder, f"parquet:{folder}"

    def put(self, scored: Sequence[Scored]) -> Refused:
        days: dict[str, list[Scored]] = {}
        for one in scored:
            days.setdefault(f"{one[0].scored_at:%Y-%m-%d}", []).append(one)
        for day, part in days.items():
            name = hashlib.sha256("".join(key(record) for record, _ in part).encode()).hexdigest()[:32]
            path = self._folder / f"day={day}" / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                pq.write_table(_table(part), file)
        return {}

    def close(self) -> None:
        pass


def _table(scored: Sequence[Scored]) -> pa.Table:
    rows = []
    for record, outcome in scored:
        row = {"key": key(record)} | to_row(record)
        if outcome is not None:
            row |= outcome.model_dump(include={"action", "reasons", "audit", "audit_probability"})
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, _type(name)) for name in names]))


def _type(name: str) -> pa.DataType:
    if name.startswith("decision_") or name == "audit":
        return pa.bool_()
    if name.startswith("probability_") or name in ("logit", "score", "latency_ms", "audit_probability"):
        return pa.float64()
    if name == "scored_at":
        return pa.timestamp("us", "UTC")
    return pa.list_(pa.string()) if name == "reasons" else pa.string()


class KafkaSink:
    """A topic; the message's key is the post's id, so that a post's records stay in order."""

    def __init__(self, url: str, settings: StreamSettings) -> None:
        from scoring.stream.kafka import NOT_INSTALLED, options_of, servers_and_topic

        try:
            from confluent_kafka import Producer
        except ImportError as error:
            raise ConfigError(f"stream.sinks kafka://: {NOT_INSTALLED}") from error
        servers, self._topic = servers_and_topic(url, "stream.sinks")
        self.name = f"kafka://{servers}/{self._topic}"
        ours = {"bootstrap.servers": servers, "enable.idempotence": True, "delivery.timeout.ms": 15_000}
        self._producer = Producer(ours | options_of(settings) | {"error_cb": lambda _: None}, logger=quiet)

    def put(self, scored: Sequence[Scored]) -> Refused:
        from confluent_kafka import KafkaError, KafkaException

        faults: dict[int, KafkaError] = {}
        for place, one in enumerate(scored):

            def delivered(fault: KafkaError | None, _: Any, place: int = place) -> None:
                if fault is not None:
                    faults[place] = fault

            try:
                self._producer.produce(self._topic, body(one), key=one[0].post_id.encode(), on_delivery=delivered)
            except KafkaException as error:
                faults[place] = error.args[0]
            except BufferError as error:
                self._producer.flush(20)
                raise AwayError(f"{self.name}: {error}") from error
            self._producer.poll(0)
        self._producer.flush(20)  # each is delivered or given up by then
        never = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD)
        refused = {place: fault.str() for place, fault in faults.items() if fault.code() in never}
        if away := [fault for fault in faults.values() if fault.code() not in never]:
            raise AwayError(f"{self.name}: {away[0].str()}")
        return refused

    def close(self) -> None:
        self._producer.flush(1)


class WebhookSink:
    """A POST of each record, with the key that the receiver knows it by where it comes again (`Idempotency-Key`)."""

    #: Times that an error of the receiver's own (5xx) is answered by another try; then it refuses this record.
    tries = 5

    def __init__(self, url: str) -> None:
        import httpx2

        self._url, self.name = url, f"webhook:{urlsplit(url).hostname}"
        self._client = httpx2.Client(timeout=30)
        #: Of the batch that is put: what was delivered, and how often a record failed.
        self._delivered: set[str] = set()
        self._failed: dict[str, int] = {}

    def put(self, scored: Sequence[Scored]) -> Refused:
        refused: dict[int, str] = {}
        for place, one in enumerate(scored):
            if (name := key(one[0])) not in self._delivered:
                if (why := self._post(name, body(one))) is not None:
                    refused[place] = why
                self._delivered.add(name)
        self._delivered.clear()
        self._failed.clear()
        return refused

    def close(self) -> None:
        self._client.close()

    def _post(self, name: str, content: bytes) -> str | None:
        """Why it is refused; None: it was taken."""
        import httpx2

        headers = {"Content-Type": "application/json", "Idempotency-Key": name}
        try:
            answer = self._client.post(self._url, content=content, headers=headers)
        except httpx2.HTTPError as error:
            raise AwayError(f"{self.name}: {type(error).__name__}: {masked(str(error))}") from error
        if answer.is_success:
            return None
        told = f"{answer.status_code} {answer.reason_phrase}"
        if answer.status_code in (408, 425, 429, 502, 503, 504):
            if (pause := answer.headers.get("Retry-After", "")).isdigit():
                time.sleep(min(int(pause), 5))
            raise AwayError(f"{self.name}: {told}")
        if answer.status_code >= 500:
            self._failed[name] = self._failed.get(name, 0) + 1
            if self._failed[name] < self.tries:
                raise AwayError(f"{self.name}: {told}")
        return f"answered {told}"
