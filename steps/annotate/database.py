"""The database of the ledger: opened, brought up to date, and every trouble with it as one message."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from model.errors import AnnotationError
from steps.annotate.ledger_tables import ANSWERS, METADATA
from steps.secrets import masked

_BUSY_SECONDS = 30
#: Seconds since the epoch by the clock of the database, which all who share it share.
_NOW = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())",
    "mysql": "unix_timestamp(now(6))",
    "mariadb": "unix_timestamp(now(6))",
}
#: Columns that came after the first ledgers: what was recorded before stays NULL.
_ADDED = {"cost": "FLOAT", "options": "TEXT"}
#: What a driver says -> what to do about it.
_REMEDIES = {
    "locked": f"Another process has held it for {_BUSY_SECONDS} s: end that one (`fuser FILE` names it)",
    "not a database": "Name the ledger's own file in annotate.ledger, or one that is not there yet",
    "malformed": "The file is damaged: put back a copy, or save what can be read with "
    "`sqlite3 FILE .recover | sqlite3 NEW` and name NEW in annotate.ledger",
    "read-?only": "Make the file and its folder writable, or name another file in annotate.ledger",
    "not a valid missing": "A newer AgentPS wrote that reason: use that version, or name another database",
    "expecting value|no answer of": "A row was changed by hand: put it right, or delete it",
    "password": "Check the user and the password of annotate.ledger, or those that the driver reads in their place",
}
_REMEDY = (
    "What was answered before is kept; make the database readable and writable (URL, path, disk space, permissions)"
)


def open_database(url: str) -> tuple[Engine, str]:
    """The engine of a ledger with its tables, and the name under which messages may speak of it.

    Raises:
        AnnotationError: it is no URL, cannot be opened, or holds what is not ours to write to.
    """
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError) as error:
        raise AnnotationError(
            f"annotation ledger: {masked(url)!r} is no database URL; expected for example sqlite:////path/ledger.db or "
            "postgresql+pg8000://host:5432/ledger"
        ) from error
    name = masked(parsed.render_as_string(hide_password=True))
    backend = parsed.get_backend_name()
    if backend not in _NOW:
        raise AnnotationError(
            f"annotation ledger {name}: {backend!r} is none of the databases that a ledger can be in: {', '.join(_NOW)}"
        )
    with explained(name):
        if backend == "sqlite":
            _make_place(parsed.database or ":memory:", parsed.query, name)
        try:
            # a server that was restarted costs no answer that was paid for meanwhile, and no word about its old lines
            engine = create_engine(parsed, pool_pre_ping=backend != "sqlite", pool_logging_name="ledger")
        except ModuleNotFoundError as error:
            raise AnnotationError(
                f"annotation ledger {name}: the driver {error.name!r} is not installed; install it, or name "
                "another one in annotate.ledger, for example postgresql+pg8000://"
            ) from error
        logging.getLogger("sqlalchemy.pool.impl.QueuePool.ledger").setLevel(logging.CRITICAL)
        if backend == "sqlite":
            event.listen(engine, "connect", _set_up)
            _refuse_foreign(engine, name)
            with engine.connect() as connection:  # readers do not block the writer; the file stays so
                connection.execute(text("PRAGMA journal_mode=WAL"))
        _create_tables(engine)
        _refuse_newer(engine, name)
    return engine, name


def _make_place(database: str, query: Mapping[str, Any], name: str) -> None:
    if ":memory:" in database or query.get("mode") == "memory":
        raise AnnotationError(
            f"annotation ledger {name}: a database in memory would lose what was paid for; name a file, for example "
            "sqlite:////path/ledger.db"
        )
    if Path(database).is_dir():
        raise AnnotationError(f"annotation ledger {name}: {database} is a folder; name a file in it")
    if not database.startswith("file:"):
        Path(database).parent.mkdir(parents=True, exist_ok=True)


def _refuse_foreign(engine: Engine, name: str) -> None:
    """A server's database may be shared; a file of another application's is a slip, and stays as it is."""
    found = inspect(engine).get_table_names()
    if found and ANSWERS.name not in found:
        raise AnnotationError(
            f"annotation ledger {name}: the database is another application's (its tables: "
            f"{', '.join(sorted(found)[:5])}); name the ledger's own file in annotate.ledger, or one that is not there"
        )


def _create_tables(engine: Engine) -> None:
    try:
        METADATA.create_all(engine)
    except SQLAlchemyError:  # another process created them between our look and our statement
        METADATA.create_all(engine)
    for column, kind in _ADDED.items():
        if column not in _columns(engine, ANSWERS):
            try:
                with engine.begin() as connection:
                    connection.execute(text(f"ALTER TABLE {ANSWERS.name} ADD COLUMN {column} {kind}"))
            except SQLAlchemyError:
                if column not in _columns(engine, ANSWERS):  # else another process was faster
                    raise


def _columns(engine: Engine, table: Table) -> dict[str, Any]:
    return {column["name"]: column for column in inspect(engine).get_columns(table.name)}


def _refuse_newer(engine: Engine, name: str) -> None:
    """Before anything is paid: each row that we shall write has to find its place."""
    for table in METADATA.sorted_tables:
        found = _columns(engine, table)
        lacking = [column.name for column in table.columns if column.name not in found]
        if lacking:
            raise AnnotationError(
                f"annotation ledger {name}: the table {table.name} has no column {', '.join(lacking)}, so it is not "
                "one that AgentPS made; name another database in annotate.ledger"
            )
        unknown = [
            id_
            for id_, column in found.items()
            if id_ not in table.columns and not column["nullable"] and column["default"] is None
        ]
        if unknown:
            raise AnnotationError(
                f"annotation ledger {name}: the table {table.name} has a column {', '.join(unknown)} that this version "
                "does not know, so a newer AgentPS made it; use that version, or name another database in "
                "annotate.ledger"
            )


def now(connection: Connection) -> float:
    """Seconds since the epoch by the database's clock."""
    return float(connection.execute(text(f"SELECT {_NOW[connection.dialect.name]}")).scalar_one())


@contextmanager
def explained(name: str) -> Iterator[None]:
    """What the database or its driver says, as one line with a remedy."""
    try:
        yield
    # a driver refuses an option of the URL with TypeError or ValueError; so do values that no version of ours wrote
    except (SQLAlchemyError, OSError, ValueError, TypeError) as error:
        reason = masked(" ".join(str(getattr(error, "orig", None) or error).split()))[:500].rstrip(".")
        remedy = next((remedy for said, remedy in _REMEDIES.items() if re.search(said, reason.lower())), None)
        raise AnnotationError(
            f"annotation ledger {name}: {reason}. {remedy or _REMEDY}, then start the same command again"
        ) from error


def storable(value: str | None, limit: int | None = None) -> str | None:
    """`value` as every database takes it, at most `limit` characters: a NUL and lone surrogates become escapes."""
    if value is None:
        return None
    return value[:limit].replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()[:limit]


def _set_up(connection: Any, record: Any) -> None:
    """NORMAL: a commit survives the end of the process by any signal; only a loss of power can undo the last ones."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
