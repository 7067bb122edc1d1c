"""The ledger: every answer ever paid for, one row per attempt, kept over runs and crashes.

A row is committed as soon as its answer is there, so a killed run loses at most what was in flight.
The answer is stored as it was given (counts), never as a class: another rule reads the same
answers again, at no cost.

A process that asks a key holds its lease, a row of its own: so several processes on one ledger never
ask the same key at once. A lease ends with its answer. The lease of a process that died is free at once
on the same machine, and on another one after `lease_seconds` without a sign of life. The keys of a
batch file are held by that file until any process collects it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, delete, event, func, insert, inspect, make_url, or_, select, text, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from model.errors import AnnotationError
from steps.annotate.ledger_tables import ANSWERS, BATCH_FILES, LEASES, METADATA
from steps.annotate.owner import died, new_owner


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
    ERROR = "error that was charged"


#: The endpoint did no work and took no money. Such an attempt does not use up a retry: the next run
#: asks again.
UNPAID = frozenset({Missing.RATE_LIMITED, Missing.SERVER_ERROR, Missing.CONNECTION, Missing.REJECTED})

_LOOKUP_CHUNK = 500  # bound parameters of one statement; SQLite's lowest limit is 999
_RAW_CHARACTERS = 4000
_BUSY_SECONDS = 30
#: A process that gives no sign of life for so long has lost its leases; it gives one four times as often.
LEASE_SECONDS = 60.0


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
    #: Dollars; where the endpoint did not say what an attempt took that it may have charged, the most that it can
    #: have cost. None: the model has no price.
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class LedgerAnswer:
    """What the ledger knows of a key: the latest answer, else why the latest attempt had none."""

    counts: tuple[int, ...] | None
    missing: Missing | None
    #: How often the key was asked and (perhaps) paid for.
    attempts: int


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One request in a batch file; `question` is the position of the question asked, None: all of them."""

    key: str
    post_id: str
    n_images: int
    question: int | None
    #: Dollars, the most that it may cost.
    reserved: float


@dataclass(frozen=True, slots=True)
class BatchFile:
    """One file of requests on its way through the endpoint's batch interface."""

    id: str
    source: str
    form: dict[str, Any]
    items: tuple[BatchItem, ...]
    #: None: not known to be uploaded, or created.
    file_id: str | None
    batch_id: str | None
    reserved: float


class Ledger:
    """The table of attempts in any database that SQLAlchemy reaches.

    Args:
        url: for example `sqlite:////abs/path/ledger.db`; a SQLite file and its folder are created.
        lease_seconds: see LEASE_SECONDS; whoever holds leases calls `renew` several times in this time.

    Raises:
        AnnotationError: (any method) the database cannot be opened, read or written.
    """

    def __init__(self, url: str, lease_seconds: float = LEASE_SECONDS) -> None:
        self.lease_seconds = lease_seconds
        self._owner = new_owner()
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
            try:
                self._engine: Engine = create_engine(parsed)
            except ModuleNotFoundError as error:
                raise AnnotationError(
                    f"annotation ledger {self._name}: the driver {error.name!r} is not installed; install it, or name "
                    "another one in annotate.ledger, for example postgresql+pg8000://"
                ) from error
            if self._engine.dialect.name == "sqlite":
                event.listen(self._engine, "connect", _use_wal)
            self._create_tables()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    def _create_tables(self) -> None:
        try:
            METADATA.create_all(self._engine)
        except SQLAlchemyError:  # another process created them between our look and our statement
            METADATA.create_all(self._engine)
        if "cost" not in {column["name"] for column in inspect(self._engine).get_columns(ANSWERS.name)}:
            # a ledger from before costs were kept: what was paid then stays NULL
            with self._engine.begin() as connection:
                connection.execute(text(f"ALTER TABLE {ANSWERS.name} ADD COLUMN cost FLOAT"))

    def record(self, attempt: Attempt, *, settled: bool = False) -> None:
        """Append one attempt; it is committed when this returns. `settled`: the key's lease ends with it."""
        with self._explained(), self._engine.begin() as connection:
            connection.execute(insert(ANSWERS), _row(attempt))
            if settled:
                connection.execute(delete(LEASES).where(LEASES.c.key == attempt.key))

    def lookup(self, keys: Iterable[str]) -> dict[str, LedgerAnswer]:
        """What is known of each key that was ever asked; the others are absent."""
        found: dict[str, LedgerAnswer] = {}
        distinct = list(dict.fromkeys(keys))
        columns = select(ANSWERS.c.key, ANSWERS.c.counts, ANSWERS.c.missing).order_by(ANSWERS.c.id)
        with self._explained(), self._engine.connect() as connection:
            for start in range(0, len(distinct), _LOOKUP_CHUNK):
                chunk = distinct[start : start + _LOOKUP_CHUNK]
                for key, counts, missing in connection.execute(columns.where(ANSWERS.c.key.in_(chunk))):
                    found[key] = _later(found.get(key), counts, missing)
        return found

    def spent(self) -> float:
        """Dollars recorded in all, over all runs."""
        with self._explained(), self._engine.connect() as connection:
            return float(connection.execute(select(func.sum(ANSWERS.c.cost))).scalar() or 0.0)

    # --- leases

    def claim(self, keys: Sequence[str]) -> set[str]:
        """Take the leases of those `keys` that nobody holds; an answer may be there already: look it up afterwards.

        Returns:
            The keys that this process, and no other, may ask until it records, releases or dies.
        """
        rows: list[dict[str, Any]] = [
            {"key": key, "owner": self._owner, "expires": time.time() + self.lease_seconds}
            for key in sorted(keys)  # in one order everywhere, else two that claim the same keys could lock each other
        ]
        with self._explained():
            try:
                with self._engine.begin() as connection:
                    connection.execute(insert(LEASES), rows)
                return set(keys)
            except IntegrityError:  # somebody holds one of them: one by one
                return {row["key"] for row in rows if self._claim_one(row)}

    def _claim_one(self, row: dict[str, Any]) -> bool:
        with self._engine.connect() as connection:
            holder = connection.execute(select(LEASES).where(LEASES.c.key == row["key"])).first()
        try:
            with self._engine.begin() as connection:
                if holder is None:
                    connection.execute(insert(LEASES), row)
                    return True
                if holder.expires is None or (holder.expires > time.time() and not died(holder.owner)):
                    return False
                # by whom it was seen to be held: of two that see the same dead owner one takes it
                taken = connection.execute(
                    update(LEASES)
                    .where(
                        LEASES.c.key == row["key"],
                        LEASES.c.owner == holder.owner,
                        LEASES.c.expires == holder.expires,
                    )
                    .values(owner=row["owner"], expires=row["expires"])
                )
                return taken.rowcount == 1
        except IntegrityError:
            return False

    def renew(self) -> None:
        """A sign of life: our leases hold for `lease_seconds` from now."""
        with self._explained(), self._engine.begin() as connection:
            connection.execute(
                update(LEASES)
                .where(LEASES.c.owner == self._owner, LEASES.c.expires.is_not(None))
                .values(expires=time.time() + self.lease_seconds)
            )

    def release(self, keys: Sequence[str] | None = None) -> None:
        """Give back our leases of `keys`; None: all of ours."""
        ours = delete(LEASES).where(LEASES.c.owner == self._owner)
        with self._explained(), self._engine.begin() as connection:
            if keys is None:
                connection.execute(ours)
                return
            for start in range(0, len(keys), _LOOKUP_CHUNK):
                connection.execute(ours.where(LEASES.c.key.in_(keys[start : start + _LOOKUP_CHUNK])))

    # --- batch files of the batch mode

    def add_batch_file(self, batch_file: BatchFile) -> None:
        """Keep a batch file before anything of it is sent; the leases of its keys, which we hold, become its own."""
        row = {
            "id": batch_file.id,
            "source": batch_file.source,
            "form": batch_file.form,
            "items": [[i.key, i.post_id, i.n_images, i.question, i.reserved] for i in batch_file.items],
            "reserved": batch_file.reserved,
            "created": datetime.now(UTC),
        }
        keys = [item.key for item in batch_file.items]
        with self._explained(), self._engine.begin() as connection:
            connection.execute(insert(BATCH_FILES), row)
            for start in range(0, len(keys), _LOOKUP_CHUNK):
                connection.execute(
                    update(LEASES)
                    .where(LEASES.c.owner == self._owner, LEASES.c.key.in_(keys[start : start + _LOOKUP_CHUNK]))
                    .values(owner=_owner_of(batch_file.id), expires=None)
                )

    def sent_batch_file(self, id_: str, *, file_id: str | None = None, batch_id: str | None = None) -> None:
        """Keep the endpoint's names for a batch file; None: as it was."""
        names = {name: value for name, value in (("file_id", file_id), ("batch_id", batch_id)) if value is not None}
        with self._explained(), self._engine.begin() as connection:
            connection.execute(update(BATCH_FILES).where(BATCH_FILES.c.id == id_).values(**names))

    def batch_files(self, source: str) -> list[BatchFile]:
        """The batch files of an annotator that are not collected yet, oldest first."""
        query = (
            select(BATCH_FILES).where(BATCH_FILES.c.source == source).order_by(BATCH_FILES.c.created, BATCH_FILES.c.id)
        )
        with self._explained(), self._engine.connect() as connection:
            return [
                BatchFile(
                    row.id,
                    row.source,
                    row.form,
                    tuple(BatchItem(*item) for item in row.items),
                    row.file_id,
                    row.batch_id,
                    row.reserved,
                )
                for row in connection.execute(query)
            ]

    def collect_batch_file(self, id_: str, attempts: Sequence[Attempt]) -> bool:
        """Record what came back of a batch file, free its keys and forget it: all of it, or nothing.

        Returns:
            False: another process was first; nothing was recorded.
        """
        with self._explained(), self._engine.begin() as connection:
            if connection.execute(delete(BATCH_FILES).where(BATCH_FILES.c.id == id_)).rowcount != 1:
                return False
            if attempts:
                connection.execute(insert(ANSWERS), [_row(attempt) for attempt in attempts])
            connection.execute(delete(LEASES).where(or_(LEASES.c.owner == _owner_of(id_), LEASES.c.key == id_)))
        return True

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


def _row(attempt: Attempt) -> dict[str, Any]:
    return {
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
        "cost": attempt.cost,
    }


def _owner_of(id_: str) -> str:
    return f"shard:{id_}"


def _use_wal(connection: Any, record: Any) -> None:
    """WAL: readers do not block the writer. NORMAL: a commit survives the end of the process by any
    signal; only a loss of power can undo the last ones."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
    cursor.close()
