"""What was said of each post: the newest (current), all of it (history), and the messages that could not be scored.

In a SQLite file, or in PostgreSQL where several machines write. One writer at a time, in one transaction a call: who is
killed leaves nothing half-written, and the same call again changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

import pandas as pd
from pydantic import AwareDatetime, BaseModel, ConfigDict
from sqlalchemy import Connection, Engine, RowMapping, Select, and_, func, inspect, or_, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from model.errors import StoreError
from scoring.current import current_rows
from scoring.migrations import HEAD
from scoring.policy import Outcome
from scoring.record import Answer, Record
from steps.database import explained, open_engine, storable
from steps.retrain.stored import COLUMNS, CURRENT, DEAD_LETTERS, HISTORY, STORE, VERSION_TABLE, scores_in

logger = logging.getLogger(__name__)

#: Rows or ids in one statement.
_CHUNK = 1_000
#: Of PostgreSQL's advisory lock that the writer holds.
_LOCK = int.from_bytes(hashlib.sha256(b"agentps store").digest()[:8], signed=True)
#: A writer waits for another one so long; and one that is gone without its connection being closed is given up.
_WAIT, _GONE = "30s", "60s"
#: A server that is restarted is waited for so many seconds, asked again after so many.
_PATIENCE, _PAUSE = 60.0, 0.5
#: A current record of a time further ahead than this is of a wrong clock: any other takes its place.
_AHEAD = timedelta(days=1)
_REASON_CHARACTERS = 10_000

#: Alembic's environment is one of the process.
_migrating = threading.Lock()
_T = TypeVar("_T")
Scored = tuple[Record, Outcome | None]


class DeadLetter(BaseModel):
    """A message that could not become a record. source and message_id together name it: buried twice, it is one.

    id: the store's; None until it is there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    message_id: str
    post_id: str | None = None
    body: bytes
    reason: str
    at: AwareDatetime
    id: int | None = None


class Place(NamedTuple):
    """Where a page of records ended."""

    score: float
    id: int


class Store:
    """Raises, in any method: StoreError: the database cannot be read or written."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self.name = engine, name
        self._insert: Any = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    @classmethod
    def open(cls, url: str) -> Store:
        """The store, with its tables in today's form; a SQLite file is made where there is none.

        Args:
            url: `sqlite:////path/scores.db` or `postgresql://user@host/database`.

        Raises:
            StoreError: it cannot be opened, is another application's, or was made by a newer AgentPS.
        """
        engine, name = open_engine(url, STORE)
        store = cls(engine, name)
        try:
            with explained(name, STORE):
                store._migrate()
        except BaseException:
            engine.dispose()
            raise
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    # --- records

    def put(self, scored: Sequence[Scored]) -> int:
        """Keep what was said of posts: all of it or, where this raises, nothing. Returns how many are new.

        The history keeps each distinct (post, model, version, policy, input, error) once. Current, of each model and
        post, is what was said last by `scored_at`; of one time, what arrived last. So the order of calls, and how often
        each is made, do not matter.
        """
        rows = [_row(record, outcome) for record, outcome in scored]
        return self.do(lambda connection: sum(self._put(connection, part) for part in _parts(rows)), writes=True)

    def _put(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> int:
        # RETURNING makes one statement of many rows, whose ids then ascend in their order
        insert = self._insert(HISTORY).on_conflict_do_nothing(index_elements=["key"]).returning(HISTORY.c.id)
        new = len(connection.execute(insert, rows).all())
        keys = select(HISTORY.c.key, HISTORY.c.id).where(HISTORY.c.key.in_([row["key"] for row in rows]))
        ids: dict[str, int] = dict(connection.execute(keys).tuples().all())
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            place, row = (row["model_name"], row["post_id"]), row | {"history_id": ids[row["key"]]}
            newest[place] = max(newest.get(place, row), row, key=lambda row: (row["scored_at"], row["history_id"]))
        found = current_rows(connection, newest)
        upsert = self._insert(CURRENT)
        said = upsert.excluded
        later = or_(
            said.scored_at > CURRENT.c.scored_at,
            and_(said.scored_at == CURRENT.c.scored_at, said.history_id > CURRENT.c.history_id),
            CURRENT.c.scored_at > datetime.now(UTC) + _AHEAD,
        )
        upsert = upsert.on_conflict_do_update(
            index_elements=["model_name", "post_id"],
            set_={column.name: said[column.name] for column in CURRENT.c if not column.primary_key},
            where=later,
        )
        connection.execute(upsert.returning(CURRENT.c.history_id), found)
        return new

    def current(self, post_ids: Iterable[str], model_name: str | None = None) -> dict[str, Scored]:
        """The current record of each post that has one. model_name: None: of any model, the one that spoke last."""
        given = {storable(post_id): post_id for post_id in post_ids}
        found: dict[str, Scored] = {}
        for part in _parts(list(given)):
            query = _currents().where(CURRENT.c.post_id.in_(part)).order_by(CURRENT.c.scored_at, CURRENT.c.history_id)
            for row in self._rows(_of(query, model_name)):
                found[given[row["post_id"]]] = _scored(row)
        return found

    def history(self, post_id: str, model_name: str | None = None) -> list[Scored]:
        """All that was said of a post, in the order of arrival."""
        query = select(HISTORY).where(HISTORY.c.post_id == storable(post_id)).order_by(HISTORY.c.id)
        if model_name is not None:
            query = query.where(HISTORY.c.model_name == model_name)
        return [_scored(row) for row in self._rows(query)]

    def page(
        self,
        model_name: str,
        *,
        version: str | None = None,
        day: date | None = None,
        action: Literal["flag", "pass", "review"] | None = None,
        after: Place | None = None,
        limit: int = 50,
    ) -> tuple[list[Scored], Place | None]:
        """Current records that have a score, the highest first, and where the next page begins; None: there is none.

        Args:
            day: in UTC.
            after: where the last page ended.
        """
        query = _of(_currents(), model_name).where(CURRENT.c.score.is_not(None))
        for column, wanted in ((CURRENT.c.model_version, version), (CURRENT.c.day, day), (CURRENT.c.action, action)):
            query = query if wanted is None else query.where(column == wanted)
        if after is not None:
            query = query.where(tuple_(CURRENT.c.score, CURRENT.c.history_id) < after)
        query = query.order_by(CURRENT.c.score.desc(), CURRENT.c.history_id.desc()).limit(limit + 1)
        rows = self._rows(query)
        last = rows[limit - 1] if len(rows) > limit else None
        return [_scored(row) for row in rows[:limit]], None if last is None else Place(last["score"], last["id"])

    def between(
        self, model_name: str, version: str, since: datetime | None = None, until: datetime | None = None
    ) -> Iterator[Scored]:
        """What a version said from `since` to before `until`, in the order of `scored_at`; memory stays flat."""
        query = select(HISTORY).where(HISTORY.c.model_name == model_name, HISTORY.c.model_version == version)
        query = query if since is None else query.where(HISTORY.c.scored_at >= since)
        query = query if until is None else query.where(HISTORY.c.scored_at < until)
        query = query.order_by(HISTORY.c.scored_at, HISTORY.c.id).execution_options(yield_per=_CHUNK)
        with explained(self.name, STORE), self._engine.connect() as connection:
            yield from map(_scored, connection.execute(query).mappings())

    def scores(self, model_name: str, point: str) -> pd.DataFrame:
        """Every score of a model in the columns of a table of scored posts, in the order of arrival.

        Args:
            point: of the decision, as `p80`.
        """
        with explained(self.name, STORE):
            return pd.DataFrame(list(scores_in(self._engine, model_name, point)), columns=list(COLUMNS))

    # --- dead letters

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Keep what could not be scored. A letter that was resolved and fails again is open again."""
        rows = [
            letter.model_dump(exclude={"id"})
            | {name: storable(getattr(letter, name)) for name in ("source", "message_id", "post_id")}
            | {"reason": storable(letter.reason, _REASON_CHARACTERS), "resolved_at": None}
            for letter in letters
        ]

        def write(connection: Connection) -> None:
            upsert = self._insert(DEAD_LETTERS)
            changed = ("post_id", "body", "reason", "at", "resolved_at")
            upsert = upsert.on_conflict_do_update(
                index_elements=["source", "message_id"], set_={name: upsert.excluded[name] for name in changed}
            )
            for row in rows:  # bodies may be large
                connection.execute(upsert, row)

        self.do(write, writes=True)

    def dead_letters(
        self, *, source: str | None = None, ids: Iterable[int] | None = None, after: int = 0, limit: int = 1_000
    ) -> list[DeadLetter]:
        """Those that are not resolved, the oldest first.

        Args:
            after: the id of the last one of the page before.
        """
        names = [DEAD_LETTERS.c[name] for name in DeadLetter.model_fields]
        query = select(*names).where(DEAD_LETTERS.c.resolved_at.is_(None), DEAD_LETTERS.c.id > after)
        if source is not None:
            query = query.where(DEAD_LETTERS.c.source == storable(source))
        if ids is not None:
            query = query.where(DEAD_LETTERS.c.id.in_(list(ids)))
        return [DeadLetter.model_validate(dict(row)) for row in self._rows(query.order_by("id").limit(limit))]

    def resolve(self, ids: Iterable[int]) -> None:
        """They are done with: replayed, or given up by a person. A letter that is resolved already stays so.

        Raises:
            StoreError: there is no such letter; none is resolved then.
        """
        wanted = sorted(set(ids))

        def write(connection: Connection) -> None:
            for part in _parts(wanted):
                these = DEAD_LETTERS.c.id.in_(part)
                known = set(connection.execute(select(DEAD_LETTERS.c.id).where(these)).scalars())
                if unknown := [str(id_) for id_ in part if id_ not in known]:
                    raise StoreError(
                        f"{STORE.what} {self.name}: no dead letter has the id {', '.join(unknown)}: list them first"
                    )
                done = update(DEAD_LETTERS).where(these, DEAD_LETTERS.c.resolved_at.is_(None))
                connection.execute(done.values(resolved_at=datetime.now(UTC)))

        self.do(write, writes=True)

    # --- the database

    def _rows(self, query: Select[Any]) -> Sequence[RowMapping]:
        return self.do(lambda connection: connection.execute(query).mappings().all())

    def do(self, function: Callable[[Connection], _T], *, writes: bool = False) -> _T:
        """In one transaction, which is begun again where the server is restarted meanwhile: all of ours may be."""
        until, told = time.monotonic() + _PATIENCE, False
        with explained(self.name, STORE):
            while True:
                try:
                    with self._writing() if writes else self._engine.connect() as connection:
                        return function(connection)
                except DBAPIError as error:
                    # a connection that failed, and one that could not be made; a file is never away for a while
                    away = error.connection_invalidated or error.statement is None
                    if self._engine.dialect.name == "sqlite" or not away or time.monotonic() > until:
                        raise
                    if not told:
                        reason = " ".join(str(error.orig).split())
                        logger.warning("%s %s: cannot be reached, trying again: %s", STORE.what, self.name, reason)
                        told = True
                time.sleep(_PAUSE)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction of the only writer."""
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                settings = {"lock_timeout": _WAIT, "idle_in_transaction_session_timeout": _GONE}
                connection.execute(select(*(func.set_config(name, value, True) for name, value in settings.items())))
                connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            yield connection

    def _refuse_encoding(self) -> None:
        if self._engine.dialect.name == "sqlite":
            return
        with self._engine.connect() as connection:
            encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise StoreError(
                f"{STORE.what} {self.name}: the encoding of the database is {encoding}, which lacks characters; "
                "make one with `createdb --encoding=UTF8 --template=template0 NAME`"
            )

    def _migrate(self) -> None:
        if self._revision() == HEAD:
            return
        self._refuse_encoding()
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        with _migrating, self._writing() as connection:
            if (revision := self._revision(connection)) not in (None, *known):
                raise StoreError(
                    f"{STORE.what} {self.name}: its tables have the form {revision!r}, which a newer AgentPS made; use "
                    f"that version, or name another database in {STORE.option}"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _revision(self, connection: Connection | None = None) -> str | None:
        if connection is None:
            with self._engine.connect() as connection:
                return self._revision(connection)
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        found: str | None = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
        return found


def _parts(rows: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _currents() -> Select[Any]:
    """The history's columns of current records; of a post that went back to what it had been, the newer time."""
    columns = [column for column in HISTORY.c if column.name != "scored_at"]
    return select(*columns, CURRENT.c.scored_at).join(HISTORY, HISTORY.c.id == CURRENT.c.history_id)


def _of(query: Select[Any], model_name: str | None) -> Select[Any]:
    return query if model_name is None else query.where(CURRENT.c.model_name == model_name)


def _row(record: Record, outcome: Outcome | None) -> dict[str, Any]:
    policy = record.policy_version if outcome is None else outcome.policy_version
    said = (record.post_id, record.model_name, record.model_version, policy, record.input_sha256, record.error)
    row = record.model_dump(exclude={"answers"}) | {"scored_at": record.scored_at.astimezone(UTC)}
    row |= {"answers": {name: answer.model_dump() for name, answer in record.answers.items()}}
    row |= {name: getattr(outcome, name, None) for name in ("action", "reasons", "audit", "audit_probability")}
    row = {name: _clean(value) for name, value in row.items()}
    return row | {"key": hashlib.sha256(json.dumps(said).encode()).hexdigest(), "policy_version": _clean(policy)}


def _clean(value: Any) -> Any:
    """Every text in it `storable`."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable(name): _clean(inner) for name, inner in value.items()}
    return [_clean(inner) for inner in value] if isinstance(value, list | tuple) else value


def _scored(row: RowMapping) -> Scored:
    cells = {name: row[name] for name in Record.model_fields}
    record = Record(**cells | {"answers": {name: Answer(**answer) for name, answer in row["answers"].items()}})
    if row["action"] is None:
        return record, None
    return record, Outcome.model_validate({name: row[name] for name in Outcome.model_fields})
