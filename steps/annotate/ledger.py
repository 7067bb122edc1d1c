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

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from steps.annotate.database import explained, now, open_database
from steps.annotate.ledger_tables import ANSWERS, BATCH_FILES, LEASES
from steps.annotate.owner import died, new_owner
from steps.database import storable


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
#: Of a reply that are kept: a whole draft of a task (see `steps.annotate.draft`).
RAW_CHARACTERS = 40_000
#: A process without a sign of life for this long has lost its leases; it gives one four times as often.
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
    #: What the outcome depended on beside the key (`Requests.options`).
    options: str | None = None


@dataclass(frozen=True, slots=True)
class Miss:
    """One attempt without an answer that the endpoint served, and perhaps charged."""

    reason: Missing
    #: See `Attempt.options`; None: recorded before they were.
    options: str | None
    completion_tokens: int | None


@dataclass(frozen=True, slots=True)
class LedgerAnswer:
    """What the ledger knows of a key: the latest answer, else why the latest attempt had none."""

    counts: tuple[int, ...] | None
    missing: Missing | None
    #: How often the key was asked and (perhaps) paid for.
    attempts: int
    #: Of these the ones without an answer; empty where there is an answer.
    misses: tuple[Miss, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who asks requests that we wait for."""

    owner: str
    requests: int
    #: Until the lease ends without another sign of life.
    seconds: float


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
        self._engine, self._name = open_database(url)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

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
        columns = select(
            ANSWERS.c.key, ANSWERS.c.counts, ANSWERS.c.missing, ANSWERS.c.options, ANSWERS.c.completion_tokens
        ).order_by(ANSWERS.c.id)
        with self._explained(), self._engine.connect() as connection:
            for chunk in _chunks(distinct):
                for key, counts, missing, options, tokens in connection.execute(
                    columns.where(ANSWERS.c.key.in_(chunk))
                ):
                    reason = None if missing is None else Missing(missing)
                    found[key] = later(found.get(key), _counts(key, counts, reason), reason, options, tokens)
        return found

    def raw_of(self, keys: Sequence[str]) -> str:
        """The latest raw reply to one of the first `keys`; "" where none was kept."""
        known = ANSWERS.c.key.in_(keys[:_LOOKUP_CHUNK]) & ANSWERS.c.raw.is_not(None)
        with self._explained(), self._engine.connect() as connection:
            query = select(ANSWERS.c.raw).where(known).order_by(ANSWERS.c.id.desc()).limit(1)
            return connection.execute(query).scalar() or ""

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
        # in one order everywhere, else two that claim the same keys could lock each other
        ordered = sorted(keys)
        with self._explained():
            try:
                with self._engine.begin() as connection:
                    lease = self._lease(connection)
                    connection.execute(insert(LEASES), [{"key": key} | lease for key in ordered])
                return set(keys)
            except IntegrityError:  # somebody holds one of them: one by one
                return {key for key in ordered if self._claim_one(key)}

    def _lease(self, connection: Connection) -> dict[str, Any]:
        return {"owner": self._owner, "expires": now(connection) + self.lease_seconds}

    def _claim_one(self, key: str) -> bool:
        with self._engine.connect() as connection:
            holder = connection.execute(select(LEASES).where(LEASES.c.key == key)).first()
        try:
            with self._engine.begin() as connection:
                lease = self._lease(connection)
                if holder is None:
                    connection.execute(insert(LEASES), {"key": key} | lease)
                    return True
                if holder.expires is None or self._holds(holder.owner, holder.expires, now(connection)):
                    return False
                # by whom it was seen to be held: of two that see the same dead owner one takes it
                seen = (LEASES.c.key == key, LEASES.c.owner == holder.owner, LEASES.c.expires == holder.expires)
                return connection.execute(update(LEASES).where(*seen).values(**lease)).rowcount == 1
        except IntegrityError:
            return False

    def _holds(self, owner: str, expires: float, at: float) -> bool:
        # an end later than any lease lasts was set by another clock than the one of now, and says nothing
        return at < expires <= at + 5 * max(self.lease_seconds, LEASE_SECONDS) and not died(owner)

    def holders(self, keys: Sequence[str]) -> list[Holder]:
        """The other processes that hold leases of `keys`; batch files are not among them."""
        wanted = set(keys)
        query = select(LEASES).where(LEASES.c.owner != self._owner, LEASES.c.expires.is_not(None))
        with self._explained(), self._engine.connect() as connection:
            at, held = now(connection), connection.execute(query).all()
        ends: dict[str, list[float]] = {}
        for row in held:
            if row.key in wanted:
                ends.setdefault(row.owner, []).append(row.expires - at)
        return [Holder(owner, len(left), max(left)) for owner, left in ends.items()]

    def renew(self) -> None:
        """A sign of life: our leases hold for `lease_seconds` from now."""
        with self._explained(), self._engine.begin() as connection:
            connection.execute(
                update(LEASES)
                .where(LEASES.c.owner == self._owner, LEASES.c.expires.is_not(None))
                .values(expires=now(connection) + self.lease_seconds)
            )

    def release(self, keys: Sequence[str] | None = None) -> None:
        """Give back our leases of `keys`; None: all of ours."""
        ours = delete(LEASES).where(LEASES.c.owner == self._owner)
        with self._explained(), self._engine.begin() as connection:
            if keys is None:
                connection.execute(ours)
                return
            for chunk in _chunks(keys):
                connection.execute(ours.where(LEASES.c.key.in_(chunk)))

    # --- batch files of the batch mode

    def add_batch_file(self, batch_file: BatchFile) -> None:
        """Keep a batch file before anything of it is sent; the leases of its keys, which we hold, become its own."""
        row = {
            "id": batch_file.id,
            "source": batch_file.source,
            "form": batch_file.form,
            "items": [astuple(item) for item in batch_file.items],
            "reserved": batch_file.reserved,
            "created": datetime.now(UTC),
        }
        with self._explained(), self._engine.begin() as connection:
            connection.execute(insert(BATCH_FILES), row)
            for chunk in _chunks([item.key for item in batch_file.items]):
                ours = update(LEASES).where(LEASES.c.owner == self._owner, LEASES.c.key.in_(chunk))
                connection.execute(ours.values(owner=_owner_of(batch_file.id), expires=None))

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
            rows = connection.execute(query).all()
        items = [tuple(BatchItem(*item) for item in row.items) for row in rows]
        return [
            BatchFile(row.id, row.source, row.form, of_row, row.file_id, row.batch_id, row.reserved)
            for row, of_row in zip(rows, items, strict=True)
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

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self._name)


def _chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + _LOOKUP_CHUNK] for start in range(0, len(keys), _LOOKUP_CHUNK))


def later(
    earlier: LedgerAnswer | None,
    counts: tuple[int, ...] | None,
    reason: Missing | None,
    options: str | None,
    completion_tokens: int | None,
) -> LedgerAnswer:
    """`earlier`, and one more attempt at the same key."""
    paid = reason not in UNPAID
    attempts = (earlier.attempts if earlier else 0) + paid
    if counts is None and earlier is not None and earlier.counts is not None:
        return LedgerAnswer(earlier.counts, None, attempts)
    if reason is None:
        return LedgerAnswer(counts, None, attempts)
    misses = earlier.misses if earlier else ()
    return LedgerAnswer(None, reason, attempts, (*misses, Miss(reason, options, completion_tokens)) if paid else misses)


def _counts(key: str, counts: Any, reason: Missing | None) -> tuple[int, ...] | None:
    """The counts of a row.

    Raises:
        ValueError: somebody else wrote that row.
    """
    if counts is None and reason is not None:
        return None
    if not isinstance(counts, list) or any(type(count) is not int for count in counts):
        raise ValueError(f"the counts {counts!r} of key {key} are no answer of an annotator")
    return tuple(counts)


def _row(attempt: Attempt) -> dict[str, Any]:
    return {
        "key": attempt.key,
        "attempt": attempt.attempt,
        "post_id": storable(attempt.post_id),
        "model": storable(attempt.model),
        "raw": storable(attempt.raw, RAW_CHARACTERS),
        "counts": list(attempt.counts) if attempt.counts is not None else None,
        "missing": attempt.missing and attempt.missing.value,
        "prompt_tokens": attempt.prompt_tokens,
        "completion_tokens": attempt.completion_tokens,
        "latency": attempt.latency,
        "created": datetime.now(UTC),
        "cost": attempt.cost,
        "options": storable(attempt.options),
    }


def _owner_of(id_: str) -> str:
    return f"shard:{id_}"
