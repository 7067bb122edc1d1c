"""The databases of ours: opened, and every trouble with one as one message. What their tables are is not known here."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from sqlalchemy import Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from model.errors import AgentPSError
from steps.secrets import masked

_BUSY_SECONDS = 30
#: What a driver says, as a regular expression -> what to do about it.
_REMEDIES = {
    "locked": f"Another process has held it for {_BUSY_SECONDS} s: end that one (`fuser FILE` names it)",
    "not a database": "Name the {short}'s own file in {option}, or one that is not there yet",
    "malformed": "The file is damaged: put back a copy, or save what can be read with "
    "`sqlite3 FILE .recover | sqlite3 NEW` and name NEW in {option}",
    "read-?only": "Make the file and its folder writable, or name another file in {option}",
    "password": "Check the user and the password of {option}, or those that the driver reads in their place",
    "expecting value": "A row was changed by hand: put it right, or delete it",
}
_REMEDY = "{kept}; make the database readable and writable (URL, path, disk space, permissions)"


@dataclass(frozen=True)
class Kind:
    """One of our databases, as messages speak of it.

    what: it is; its last word is its short name. option: names its URL. kept: what is safe when it cannot be reached.
    lost: what would be lost in memory. table: of ours, which a file that has tables must have.
    """

    what: str
    option: str
    error: type[AgentPSError]
    backends: tuple[str, ...]
    server: str
    kept: str
    lost: str
    table: str
    remedies: Mapping[str, str] = field(default_factory=dict)

    @property
    def short(self) -> str:
        return self.what.rpartition(" ")[2]


def open_engine(url: str, kind: Kind, *, must_exist: bool = False) -> tuple[Engine, str]:
    """The engine, and the name under which messages may speak of the database.

    A SQLite file and its folder are made; readers do not block its writer.

    Args:
        must_exist: a SQLite file is not made.

    Raises:
        kind.error: it is no URL, cannot be opened, or is another application's file.
    """
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError) as error:
        raise kind.error(
            f"{kind.what}: {masked(url)!r} is no database URL; expected for example sqlite:////path/{kind.short}.db or "
            f"{kind.server}host:5432/{kind.short}"
        ) from error
    if parsed.drivername in ("postgresql", "postgres"):  # SQLAlchemy's default is an older driver
        parsed = parsed.set(drivername="postgresql+psycopg")
    name = masked(parsed.render_as_string(hide_password=True))
    backend = parsed.get_backend_name()
    if backend not in kind.backends:
        raise kind.error(
            f"{kind.what} {name}: {backend!r} is none of the databases that it can be in: {', '.join(kind.backends)}"
        )
    with explained(name, kind):
        if backend == "sqlite":
            _make_place(parsed.database or ":memory:", parsed.query, name, kind, must_exist)
            if (
                must_exist
                and not (parsed.database or "").startswith("file:")
                and not Path(parsed.database or "").exists()
            ):
                raise kind.error(f"{kind.what} {name}: there is no such file; name the {kind.short} in {kind.option}")
        try:
            # a server that was restarted costs nothing, and no word about its old lines
            engine = create_engine(parsed, pool_pre_ping=backend != "sqlite", pool_logging_name=kind.short)
        except ModuleNotFoundError as error:
            is_ours = error.name == "psycopg"
            remedy = "`pip install -e .[postgresql]` in the folder of AgentPS installs it" if is_ours else "install it"
            raise kind.error(
                f"{kind.what} {name}: the driver {error.name!r} is not installed; {remedy}, or name another one in "
                f"{kind.option}, for example {kind.server}"
            ) from error
        logging.getLogger(f"sqlalchemy.pool.impl.QueuePool.{kind.short}").setLevel(logging.CRITICAL)
        if backend == "sqlite":
            event.listen(engine, "connect", _set_up)
            _refuse_foreign(engine, name, kind)
            with engine.connect() as connection:  # the file stays so
                connection.execute(text("PRAGMA journal_mode=WAL"))
    return engine, name


def _make_place(database: str, query: Mapping[str, Any], name: str, kind: Kind, must_exist: bool) -> None:
    if ":memory:" in database or query.get("mode") == "memory":
        raise kind.error(
            f"{kind.what} {name}: a database in memory would lose {kind.lost}; name a file, for example "
            f"sqlite:////path/{kind.short}.db"
        )
    if Path(database).is_dir():
        raise kind.error(f"{kind.what} {name}: {database} is a folder; name a file in it")
    if database.startswith("file:"):
        return
    if must_exist and not Path(database).exists():
        raise kind.error(f"{kind.what} {name}: there is no such file; name the {kind.short}'s own in {kind.option}")
    if not must_exist:
        Path(database).parent.mkdir(parents=True, exist_ok=True)


def _refuse_foreign(engine: Engine, name: str, kind: Kind) -> None:
    """A server's database may be shared; a file of another application's is a slip, and stays as it is."""
    found = inspect(engine).get_table_names()
    if found and kind.table not in found:
        raise kind.error(
            f"{kind.what} {name}: the database is another application's (its tables: {', '.join(sorted(found)[:5])}); "
            f"name the {kind.short}'s own file in {kind.option}, or one that is not there"
        )


@contextmanager
def explained(name: str, kind: Kind) -> Iterator[None]:
    """What the database or its driver says, as one line with a remedy."""
    try:
        yield
    # a driver refuses an option of the URL with TypeError or ValueError; so do values that no version of ours wrote
    except (SQLAlchemyError, OSError, ValueError, TypeError) as error:
        reason = masked(" ".join(str(getattr(error, "orig", None) or error).split()))[:500].rstrip(".")
        known = _REMEDIES | dict(kind.remedies)
        remedy = next((remedy for said, remedy in known.items() if re.search(said, reason.lower())), _REMEDY)
        remedy = remedy.format(short=kind.short, option=kind.option, kept=kind.kept)
        raise kind.error(f"{kind.what} {name}: {reason}. {remedy}, then start the same command again") from error


@overload
def storable(value: str, limit: int | None = None) -> str: ...


@overload
def storable(value: None, limit: int | None = None) -> None: ...


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
