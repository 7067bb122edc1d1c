"""The ledger: every answer ever paid for, one row an attempt, kept over runs and crashes.

A row is committed as soon as its answer is there, so a killed run loses at most what was in flight.
What is stored is the answer as given (counts), never a class made of it: another rule reads the
same answers anew, at no cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    make_url,
    select,
)
from sqlalchemy.exc import SQLAlchemyError

from model.errors import AnnotationError


class Missing(StrEnum):
    """Why there is no answer. The values are stored, and shown as `missing_reason`."""

    REFUSAL = "refusal"
    CONTENT_FILTER = "content filter"
    CUT = "cut at max_tokens"
    MALFORMED = "malformed answer"
    WRONG_NUMBER = "wrong number of answers"
    OUT_OF_RANGE = "answer out of range"
    EMPTY = "reply without choices"
    NOT_JSON = "reply is not JSON"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate limited"
    SERVER_ERROR = "server error"
    CONNECTION = "connection failed"
    REJECTED = "request rejected"


#: The endpoint did no work and took no money. Such an attempt does not use up a retry: the next run
#: asks again.
UNPAID = frozenset({Missing.RATE_LIMITED, Missing.SERVER_ERROR, Missing.CONNECTION, Missing.REJECTED})

_LOOKUP_CHUNK = 500  # bound parameters of one statement; SQLite's lowest limit is 999
_RAW_CHARACTERS = 4000
_BUSY_SECONDS = 30

_metadata = MetaData()
_answers = Table(
    "annotation_answers",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False, index=True),
    # 1 for the first time that the key was asked; an unpaid attempt leaves the number to the next
    Column("attempt", Integer, nullable=False),
    Column("post_id", Text, nullable=False),  # for tracing: the key alone decides
    Column("model", Text, nullable=False),
    Column("raw", Text),
    Column("counts", JSON(none_as_null=True)),
    Column("missing", String(32)),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("latency", Float, nullable=False),  # seconds
    Column("created", DateTime(timezone=True), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as it is recorded; exactly one of `counts` and `missing` is set."""

    key: str
    attempt: int
    post_id: str
    model: str
    raw: str | None
    counts: tuple[int, ...] | None
    missing: Missing | None
    prompt_tokens: int | None
    completion_tokens: int | None
    #: Seconds from the request to its outcome, waiting for retries included.
    latency: float


@dataclass(frozen=True, slots=True)
class LedgerAnswer:
    """What the ledger knows of a key: the latest answer, else why the latest attempt had none."""

    counts: tuple[int, ...] | None
    missing: Missing | None
    #: How often the key was asked and (perhaps) paid for.
    attempts: int


class Ledger:
    """The table of attempts in any database that SQLAlchemy reaches.

    Args:
        url: for example `sqlite:////abs/path/ledger.db`; a SQLite file and its folder are created.

    Raises:
        AnnotationError: (any method) the database cannot be opened, read or written.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except SQLAlchemyError as error:
            raise AnnotationError(
                f"annotation ledger: {url!r} is no database URL; expected for example sqlite:////path/ledger.db"
            ) from error
        self._name = parsed.render_as_string(hide_password=True)
        with self._explained():
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self._engine: Engine = create_engine(parsed)
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _use_wal)
            _metadata.create_all(self._engine)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    def record(self, attempt: Attempt) -> None:
        """Append one attempt; it is committed when this returns."""
        row = {
            "key": attempt.key,
            "attempt": attempt.attempt,
            "post_id": attempt.post_id,
            "model": attempt.model,
            # PostgreSQL stores no NUL
            "raw": attempt.raw and attempt.raw.replace("\0", "")[:_RAW_CHARACTERS],
            "counts": list(attempt.counts) if attempt.counts is not None else None,
            "missing": attempt.missing and attempt.missing.value,
            "prompt_tokens": attempt.prompt_tokens,
            "completion_tokens": attempt.completion_tokens,
            "latency": attempt.latency,
            "created": datetime.now(UTC),
        }
        with self._explained(), self._engine.begin() as connection:
            connection.execute(insert(_answers), row)

    def lookup(self, keys: Iterable[str]) -> dict[str, LedgerAnswer]:
        """What is known of each key that was ever asked; the others are absent."""
        found: dict[str, LedgerAnswer] = {}
        distinct = list(dict.fromkeys(keys))
        columns = select(_answers.c.key, _answers.c.counts, _answers.c.missing).order_by(_answers.c.id)
        with self._explained(), self._engine.connect() as connection:
            for start in range(0, len(distinct), _LOOKUP_CHUNK):
                chunk = distinct[start : start + _LOOKUP_CHUNK]
                for key, counts, missing in connection.execute(columns.where(_answers.c.key.in_(chunk))):
                    found[key] = _later(found.get(key), counts, missing)
        return found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            reason = getattr(error, "orig", None) or error
            raise AnnotationError(
                f"annotation ledger {self._name}: {reason}. What was answered before is kept; make the database "
                "readable and writable (path, disk space, permissions), then start the same command again"
            ) from error


def _later(earlier: LedgerAnswer | None, counts: list[int] | None, missing: str | None) -> LedgerAnswer:
    """`earlier`, and one more row of the same key."""
    reason = Missing(missing) if missing is not None else None
    attempts = (earlier.attempts if earlier else 0) + (reason not in UNPAID)
    if counts is None and earlier is not None and earlier.counts is not None:
        return LedgerAnswer(earlier.counts, None, attempts)
    return LedgerAnswer(tuple(counts) if counts is not None else None, reason, attempts)


def _use_wal(connection: Any, record: Any) -> None:
    """WAL: readers do not block the writer. NORMAL: a commit survives the end of the process by any
    signal; only a loss of power can undo the last ones."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
    cursor.close()
