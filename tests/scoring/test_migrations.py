"""A store that an older version made: opening it loses nothing. In SQLite and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, insert, inspect, select, text

from scoring import store as store_module
from scoring.desk.reviews import mark_waiting
from scoring.migrations import HEAD
from scoring.policy import Outcome
from scoring.record import Answer, Record
from scoring.store import DeadLetter, Store
from steps.retrain.reviewed import LABELS, REVIEWS, USERS
from steps.retrain.stored import CURRENT, METADATA, VERSION_TABLE

NOW = datetime(2026, 3, 1, 12, 30, 0, 123457, tzinfo=UTC)
FLAG = Outcome(action="flag", reasons=("é",), policy_version="p-1-abc", audit=True, audit_probability=0.1)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(store_module.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


OLDER = sorted({script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()} - {HEAD})


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/scores.db"
    found: str = request.getfixturevalue("postgresql_url")
    return found


def _engine(url: str) -> Engine:
    return create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


def _record(post_id: str, minutes: float = 0, *, version: str = "7", sha: str | None = "00ff", **said: Any) -> Record:
    said = said or {
        "logit": 1.0986122886681098,
        "score": 0.1 + 0.2,
        "decisions": {"p80": True},
        "answers": {"kind": Answer(answer="photo", probability=1 / 3)},
        "latency_ms": 12.5,
    }
    who = {"post_id": post_id, "model_name": "m", "model_version": version, "task": "f00d"}
    return Record(**who, scored_at=NOW + timedelta(minutes=minutes), input_sha256=sha, **said)


SCORED = [
    (_record("a"), None),
    (_record("a", 1, sha="11"), None),
    (_record("b", 2).model_copy(update={"policy_version": FLAG.policy_version}), FLAG),
    (_record("c", 3, sha=None, error="image 1: no such file"), None),
    (_record("d", 4, version="8"), None),
]


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store as this version makes it: posts, a message that failed, and a person who looked at post d."""
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('today')}/scores.db") as store:
        store.put(SCORED)
        letters = (DeadLetter(source="s", message_id=name, body=b"\0\xff", reason=name, at=NOW) for name in "xy")
        store.bury(list(letters))
        store.resolve([1])
        store.do(_look_at_d, writes=True)
        yield store


def _look_at_d(connection: Connection) -> None:
    connection.execute(insert(USERS).values(name="eve", role="lead", active=True, hidden=False, created_at=NOW))
    of = {"model_name": "m", "post_id": "d", "input_sha256": "00ff", "label": 1, "answers": {"kind": 1}, "at": NOW}
    shown = {"history_id": 5, "model_version": "8", "kind": "first", "note": "ä"}
    connection.execute(insert(REVIEWS).values(nonce="n", reviewer="eve", **of, **shown))
    connection.execute(insert(LABELS).values(state="done", first_by="eve", **of))
    mark_waiting(connection, "m", "d")


def _rows(connection: Connection, tables: dict[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
    """What stands in these columns of these tables."""
    found = {}
    for name, columns in tables.items():
        table = METADATA.tables[name]
        query = select(*(table.c[column] for column in columns)).order_by(*table.primary_key)
        found[name] = [dict(row) for row in connection.execute(query).mappings()]
    return found


def _make(url: str, revision: str, today: Store) -> dict[str, list[dict[str, Any]]]:
    """A database of an older form, with those rows of `today` that it has a place for. Returns them."""
    engine, config = _engine(url), _config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        inspector = inspect(connection)
        tables = {
            table.name: [column["name"] for column in inspector.get_columns(table.name)]
            for table in METADATA.sorted_tables
            if inspector.has_table(table.name)
        }
        with today._engine.connect() as source:
            given = _rows(source, tables)
        for name, rows in given.items():
            for row in rows:  # the database numbers them by itself, as it did then
                connection.execute(insert(METADATA.tables[name]).values({k: row[k] for k in row if k != "id"}))
        assert _rows(connection, tables) == given
    engine.dispose()
    return given


@pytest.mark.parametrize("revision", OLDER)
def test_a_store_of_an_older_version_that_is_opened_loses_nothing_and_goes_on(
    revision: str, url: str, today: Store
) -> None:
    given = _make(url, revision, today)
    posts = ["a", "b", "c", "d"]
    with Store.open(url) as store:
        with store._engine.connect() as connection:
            assert connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one() == HEAD
            assert _rows(connection, {name: list(rows[0]) for name, rows in given.items() if rows}) == {
                name: rows for name, rows in given.items() if rows
            }
        assert {post: store.history(post) for post in posts} == {post: today.history(post) for post in posts}
        assert store.current(posts) == today.current(posts)
        assert store.page("m") == today.page("m")
        assert store.dead_letters() == today.dead_letters()
        assert store.put(SCORED) == 0, "what was said before is said anew"
        assert store.put([(_record("e", 9), None)]) == 1
        store.bury([DeadLetter(source="s", message_id="z", body=b"", reason="z", at=NOW)])
        assert [letter.message_id for letter in store.dead_letters()] == ["y", "z"]


@pytest.mark.parametrize("revision", [revision for revision in OLDER if revision < "0003"])  # it kept them itself
def test_what_later_versions_keep_beside_a_post_is_filled_from_what_is_there(
    revision: str, url: str, today: Store
) -> None:
    looked_at = bool(_make(url, revision, today).get(LABELS.name))
    query = select(CURRENT.c.post_id, CURRENT.c.audit, CURRENT.c.waiting).order_by(CURRENT.c.post_id)
    with Store.open(url) as store, store._engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(query)]
        assert found == [("a", None, True), ("b", True, True), ("c", None, True), ("d", None, not looked_at)]
        changes = list(connection.execute(select(CURRENT.c.change).order_by(CURRENT.c.history_id)).scalars())
        assert changes == sorted(set(changes)), "who keeps a copy finds what is new by it"
        store.put([(_record("a", 9, sha="22"), None)])
        assert connection.execute(select(CURRENT.c.change).where(CURRENT.c.post_id == "a")).scalar_one() > changes[-1]
