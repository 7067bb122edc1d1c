"""The database of the ledger: opened, and brought up to date."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Engine, Table, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from model.errors import AnnotationError
from steps import database
from steps.annotate.ledger_tables import ANSWERS, METADATA
from steps.database import Kind, open_engine

#: Seconds since the epoch by the clock of the database, which all who share it share.
_NOW = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())",
    "mysql": "unix_timestamp(now(6))",
    "mariadb": "unix_timestamp(now(6))",
}
#: Columns that came after the first ledgers: what was recorded before stays NULL.
_ADDED = {"cost": "FLOAT", "options": "TEXT"}
_KIND = Kind(
    what="annotation ledger",
    option="annotate.ledger",
    error=AnnotationError,
    backends=tuple(_NOW),
    server="postgresql+pg8000://",
    kept="What was answered before is kept",
    lost="what was paid for",
    table=ANSWERS.name,
    remedies={
        "not a valid missing": "A newer AgentPS wrote that reason: use that version, or name another database",
        "no answer of": "A row was changed by hand: put it right, or delete it",
    },
)


def open_database(url: str) -> tuple[Engine, str]:
    """The engine of a ledger with its tables, and the name under which messages may speak of it.

    Raises:
        AnnotationError: it is no URL, cannot be opened, or holds what is not ours to write to.
    """
    engine, name = open_engine(url, _KIND)
    with explained(name):
        _create_tables(engine)
        _refuse_newer(engine, name)
    return engine, name


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


def explained(name: str) -> AbstractContextManager[None]:
    """What the database or its driver says, as one line with a remedy."""
    return database.explained(name, _KIND)
