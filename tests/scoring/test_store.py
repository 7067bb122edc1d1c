"""The store: one current record per post, a history without doubles, nothing lost; in SQLite and in PostgreSQL."""

from __future__ import annotations

import random
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, event, inspect, text

from model.errors import StoreError
from scoring import store as store_module
from scoring.migrations import HEAD
from scoring.policy import Outcome
from scoring.record import Answer, Record
from scoring.store import DeadLetter, Place, Scored, Store
from steps import database
from steps.retrain.stored import METADATA, VERSION_TABLE, is_store
from tests.support.postgresql import Server

REPOSITORY = Path(store_module.__file__).resolve().parent.parent
NOW = datetime(2026, 3, 1, 12, 30, 0, 123457, tzinfo=UTC)
OUTCOME = Outcome(
    action="flag", reasons=("rule spam", "é"), policy_version="p-1-abc", audit=True, audit_probability=0.1
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/not/there/scores.db"
    found: str = request.getfixturevalue("postgresql_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def record(post_id: str, at: float = 0, *, version: str = "7", sha: str | None = "00ff", **said: Any) -> Record:
    """at: minutes after NOW."""
    said = said or {
        "logit": 1.0986122886681098,
        "score": 0.1 + 0.2,
        "decisions": {"p60": True, "p80": False},
        "answers": {name: Answer(answer="photo", probability=1 / 3) for name in ("watermark", "kind")},
        "latency_ms": 12.5,
    }
    when = NOW + timedelta(minutes=at)
    who = {"post_id": post_id, "model_name": "m", "model_version": version, "task": "f00d", "scored_at": when}
    return Record(**who, input_sha256=sha, **said)


def said(outcome: Outcome, record: Record) -> Scored:
    return record.model_copy(update={"policy_version": outcome.policy_version}), outcome


# --- what was put comes back


def test_what_was_put_comes_back_to_the_last_bit(store: Store) -> None:
    failed = record("b", sha=None, error="image 1: no such file")
    assert store.put([(record("a"), OUTCOME), (failed, None)]) == 2
    assert store.current(["a", "b", "c"]) == {"a": said(OUTCOME, record("a")), "b": (failed, None)}
    assert store.history("a") == [said(OUTCOME, record("a"))]
    assert store.current(["a"])["a"][0].model_dump_json() == said(OUTCOME, record("a"))[0].model_dump_json()
    assert (store.history("c"), store.current([]), store.put([])) == ([], {}, 0)


def test_a_zone_is_kept_as_its_time(store: Store) -> None:
    zone = datetime.fromisoformat("2026-03-01T23:30:00.000001-05:00")
    store.put([(record("a").model_copy(update={"scored_at": zone}), None)])
    assert store.current(["a"])["a"][0].scored_at == zone
    assert store.page("m", day=date(2026, 3, 2))[0], "the day is that of UTC"


@pytest.mark.parametrize("odd", ["a\0b", "a\ud800b", "\udfff\0"])
def test_text_that_a_database_cannot_hold_is_kept_as_escapes(store: Store, odd: str) -> None:
    store.put([(record(odd, error=f"cannot read {odd}"), OUTCOME.model_copy(update={"reasons": (odd,)}))])
    answer = {odd: Answer(answer=odd, probability=0.5)}
    store.put([(record("x", score=0.5, decisions={odd: True}, answers=answer), None)])
    found = store.current([odd])[odd]
    assert found[0].error == "cannot read " + odd.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
    store.bury([DeadLetter(source=odd, message_id=odd, post_id=odd, body=b"\0\xff", reason=odd, at=NOW)])
    assert [letter.body for letter in store.dead_letters(source=odd)] == [b"\0\xff"]


# --- one current record, no doubles, whatever the order


def test_the_newest_said_is_current_and_what_was_said_before_stays(store: Store) -> None:
    first, second, third = record("a"), record("a", 1, sha="11"), record("a", 2, sha="11", version="8")
    assert store.put([(first, None), (second, None)]) == 2
    assert store.put([(third, None)]) == 1
    assert store.current(["a"]) == {"a": (third, None)}
    assert store.history("a") == [(first, None), (second, None), (third, None)]


def test_the_same_again_is_nothing_new(store: Store) -> None:
    assert store.put([(record("a"), None), (record("a"), None)]) == 1
    assert store.put([(record("a", 5), None), (record("a", 5), OUTCOME)]) == 1, "another policy said something new"
    assert [outcome for _, outcome in store.history("a")] == [None, OUTCOME]


def test_a_post_that_goes_back_to_what_it_was_is_current_as_that(store: Store) -> None:
    store.put([(record("a"), None)])
    store.put([(record("a", 1, sha="11"), None)])
    assert store.put([(record("a", 2), None)]) == 0
    assert store.current(["a"]) == {"a": (record("a", 2), None)}
    assert [found.input_sha256 for found, _ in store.history("a")] == ["00ff", "11"]


def test_of_one_time_the_later_in_arrival_is_current_however_often_the_other_comes(store: Store) -> None:
    store.put([(record("a", sha="11"), None), (record("a"), None)])
    for again in (record("a", sha="11"), record("a")):
        store.put([(again, None)])
        assert store.current(["a"]) == {"a": (record("a"), None)}


def test_a_record_of_a_clock_that_was_wrong_is_current_until_the_next(store: Store) -> None:
    ahead = 60 * 24 * 365 * 80
    store.put([(record("a", ahead, sha="11"), None)])
    store.put([(record("a"), None)])
    assert store.current(["a"]) == {"a": (record("a"), None)}


def test_each_model_has_its_own_current_record(store: Store) -> None:
    other = record("a", -1).model_copy(update={"model_name": "n"})
    store.put([(record("a"), None), (other, None)])
    assert store.current(["a"], "n") == {"a": (other, None)}
    assert store.current(["a"]) == {"a": (record("a"), None)}
    assert store.history("a", "n") == [(other, None)]


def pool(seed: int) -> list[Scored]:
    """What workers might say of 20 posts: updates, errors, versions, policies; many of one time."""
    draw = random.Random(seed)
    found: list[Scored] = []
    for number in range(200):
        which = {"version": draw.choice("78"), "sha": draw.choice(["00", "11", "22"])}
        one = record(f"p{draw.randrange(20)}", number, **which)
        if draw.random() < 0.2:
            one = record(one.post_id, number, version=which["version"], sha=None, error=draw.choice(["no", "never"]))
        found.append((one, draw.choice([None, OUTCOME])))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_puts_in_any_order_and_repeated_end_in_the_same_current_records(store: Store, seed: int) -> None:
    everything, draw = pool(seed), random.Random(seed)
    shuffled = [*everything, *draw.sample(everything, 100)]
    draw.shuffle(shuffled)
    while shuffled:
        size = draw.randint(1, 30)
        part, shuffled = shuffled[:size], shuffled[size:]
        store.put(part)
    newest: dict[str, Scored] = {}
    for one, outcome in everything:  # which ascend in time
        newest[one.post_id] = said(outcome, one) if outcome else (one, None)
    assert store.current(newest) == newest
    kept = [(one, outcome) for post_id in newest for one, outcome in store.history(post_id)]
    keys = {(r.post_id, r.model_version, r.policy_version, r.input_sha256, r.error) for r, _ in kept}
    wanted = {
        (r.post_id, r.model_version, o.policy_version if o else None, r.input_sha256, r.error) for r, o in everything
    }
    assert keys == wanted
    assert len(kept) == len(keys)


WORKER = """
import sys
from tests.scoring.test_store import batches
from scoring.store import Store

url, worker = sys.argv[1], int(sys.argv[2])
with Store.open(url) as store:
    for number, batch in enumerate(batches(worker)):
        store.put(batch)
        print(number, flush=True)
"""


def batches(worker: int) -> list[list[Scored]]:
    """Of 40 batches of 50 posts each, those from which a worker begins come first; all workers have all of them."""
    all_of_them = [[(record(f"p{b}-{k}", b), OUTCOME) for k in range(50)] for b in range(40)]
    return [*all_of_them[worker * 13 :], *all_of_them[: worker * 13]]


def start(url: str, worker: int) -> Popen[str]:
    return Popen([sys.executable, "-c", WORKER, url, str(worker)], stdout=PIPE, text=True, cwd=REPOSITORY)


def test_from_three_processes_at_once_one_of_them_killed_nothing_is_lost_or_double(url: str) -> None:
    """The database is made by whoever comes first."""
    workers = [start(url, number) for number in range(3)]
    assert workers[0].stdout is not None
    for _ in range(5):
        assert workers[0].stdout.readline()
    workers[0].send_signal(signal.SIGKILL)
    told = workers[0].communicate()[0].splitlines()
    assert workers[0].returncode == -signal.SIGKILL
    for worker in workers[1:]:
        worker.communicate()
        assert worker.returncode == 0
    assert len(told) < 40
    everything = [one for batch in batches(0) for one in batch]
    with Store.open(url) as store:
        assert store.put(everything) == 0
        assert store.current([one.post_id for one, _ in everything]) == {
            one.post_id: said(OUTCOME, one) for one, _ in everything
        }
        assert all(len(store.history(f"p{b}-7")) == 1 for b in range(40))


def test_a_put_that_fails_leaves_nothing(store: Store) -> None:
    bad = record("b").model_copy(update={"post_id": None})
    with pytest.raises(StoreError, match="scores' store"):
        store.put([(record("a"), None), (bad, None)])
    assert store.current(["a"]) == {}


# --- pages


def test_pages_have_each_current_record_once_from_the_highest_score(store: Store) -> None:
    draw = random.Random(1)
    everything = [
        (record(f"p{k}", 60 * k, score=draw.randrange(10) / 10, decisions={}, version=str(k % 2)), OUTCOME)
        for k in range(60)
    ]
    everything.append((record("bad", error="no picture"), None))
    store.put(everything)
    for which, wanted in (
        ({}, range(60)),
        ({"version": "1"}, range(1, 60, 2)),
        ({"day": date(2026, 3, 2)}, range(12, 36)),  # from 12:30 on the day before, an hour each
        ({"action": "pass"}, ()),
        ({"day": date(2026, 3, 2), "version": "0", "action": "flag"}, range(12, 36, 2)),
    ):
        pages, after = [], None
        while True:
            page, after = store.page("m", after=after, limit=7, **which)
            pages.append(page)
            if after is None:
                break
        found = [one for page in pages for one, _ in page]
        assert sorted(one.post_id for one in found) == sorted(f"p{k}" for k in wanted)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        assert all(len(page) == 7 for page in pages[:-1])


def test_a_page_reads_no_more_rows_than_it_has(tmp_path: Path) -> None:
    """Each is read along an index in its order; nothing is sorted, and no table is gone through."""
    asked: list[tuple[str, Any]] = []
    with Store.open(f"sqlite:///{tmp_path}/scores.db") as store:
        event.listen(store._engine, "before_cursor_execute", lambda *call: asked.append((call[2], call[3])))
        given: list[dict[str, Any]] = [{}, {"version": "7"}, {"day": NOW.date()}, {"action": "flag"}]
        given.append({"version": "7", "day": NOW.date(), "action": "flag"})
        for which in given:
            store.page("m", **which)
            store.page("m", after=Place(0.5, 7), **which)
        with store._engine.connect() as connection:
            plans = [
                connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {ask}", values).all() for ask, values in list(asked)
            ]
    assert len(plans) == 10
    for plan in plans:
        steps = [step[-1] for step in plan]
        assert "SEARCH scoring_current USING INDEX scoring_current_" in steps[0]
        assert steps[1:] == ["SEARCH scoring_history USING INTEGER PRIMARY KEY (rowid=?)"]


def test_what_a_version_said_in_a_time_is_read_in_its_order(store: Store) -> None:
    everything = [(record(f"p{k}", k, version=str(k % 2)), OUTCOME) for k in range(20)]
    store.put(everything[::-1])
    since, until = (NOW + timedelta(minutes=k) for k in (4, 10))
    assert [one.post_id for one, _ in store.between("m", "0", since, until)] == ["p4", "p6", "p8"]
    assert list(store.between("m", "1")) == [said(OUTCOME, one) for one, _ in everything[1::2]]
    assert {outcome.audit_probability for _, outcome in store.between("m", "1") if outcome} == {0.1}


# --- what a retraining reads


def test_the_scores_of_a_model_are_a_table_of_scored_posts(store: Store) -> None:
    store.put([(record("a"), None), (record("b", error="no"), None), (record("c", 1, version="8"), OUTCOME)])
    found = store.scores("m", "p80")
    assert found.to_dict("records") == [
        {
            "post_id": p,
            "score": 0.1 + 0.2,
            "decision": False,
            "model_version": v,
            "scored_at": NOW + timedelta(minutes=m),
        }
        for p, v, m in (("a", "7", 0), ("c", "8", 1))
    ]
    assert store.scores("m", "p60")["decision"].tolist() == [True, True]
    assert store.scores("other", "p80").empty


# --- dead letters


def letter(number: int, reason: str = "no JSON", **more: Any) -> DeadLetter:
    return DeadLetter(source="kafka", message_id=f"posts-0-{number}", body=b"{", reason=reason, at=NOW, **more)


def test_a_letter_that_is_buried_twice_is_one_and_one_that_fails_again_is_open_again(store: Store) -> None:
    store.bury([letter(1), letter(2, post_id="a")])
    store.bury([letter(1, reason="still no JSON")])
    one, two = store.dead_letters()
    assert one == letter(1, reason="still no JSON", id=one.id)
    assert two == letter(2, post_id="a", id=two.id)
    assert one.id is not None
    store.resolve([one.id])
    store.resolve([one.id])
    assert store.dead_letters() == [two]
    store.bury([letter(1)])
    assert [found.id for found in store.dead_letters()] == [one.id, two.id]
    assert store.dead_letters(ids=[two.id or 0], source="kafka") == [two]
    assert store.dead_letters(after=one.id, limit=1) == [two]
    assert store.dead_letters(source="other") == []


def test_a_letter_that_is_not_there_is_told_and_none_is_resolved(store: Store) -> None:
    store.bury([letter(1)])
    (one,) = store.dead_letters()
    with pytest.raises(StoreError, match="no dead letter has the id 99: list them first"):
        store.resolve([one.id or 0, 99])
    assert store.dead_letters() == [one]


# --- the database


def test_the_migrations_make_the_tables_that_the_code_has(store: Store, url: str) -> None:
    with store._engine.connect() as connection:
        options = {"include_name": lambda name, kind, _: kind != "table" or name != VERSION_TABLE}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), METADATA) == []
    config = Config()
    config.set_main_option("script_location", str(REPOSITORY / "scoring" / "migrations"))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_a_migration_that_is_cut_off_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    def cut(*_: Any) -> None:
        raise OSError("cut off")

    with monkeypatch.context() as cutting:
        cutting.setattr(op, "create_index", cut)
        with pytest.raises(StoreError, match="cut off"):
            Store.open(url)
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    with Store.open(url) as store:
        assert store.put([(record("a"), None)]) == 1


def test_a_database_that_lacks_characters_is_told_before_it_is_used(
    postgresql_url: str, postgresql_server: Server
) -> None:
    latin = postgresql_server.new_database("--encoding=LATIN1", "--template=template0", "--locale=C")
    with pytest.raises(StoreError, match=r"encoding of the database is LATIN1.*createdb --encoding=UTF8"):
        Store.open(latin)


def test_a_store_of_a_newer_version_is_told_and_left(store: Store, url: str) -> None:
    with store._engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"have the form '9999', which a newer AgentPS made; use that version, or"):
        Store.open(url)


def test_a_database_that_is_shared_with_another_application_keeps_its_tables(postgresql_url: str) -> None:
    """MLflow has Alembic's usual table there."""
    engine = create_engine(postgresql_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num TEXT)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('mlflow''s')"))
    with Store.open(postgresql_url) as store:
        assert store.put([(record("a"), None)]) == 1
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "mlflow's"
    engine.dispose()


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE experiments (id INTEGER)")


NO_STORES: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("no database" * 500), r"file is not a database\. Name the store's own file"),
    "a folder": (Path.mkdir, r"is a folder; name a file in it"),
    "another application's": (_foreign, r"another application's \(its tables: experiments\)"),
}


@pytest.mark.parametrize("case", NO_STORES)
def test_a_file_that_is_no_store_is_named_and_left_as_it_is(case: str, tmp_path: Path) -> None:
    make, message = NO_STORES[case]
    path = tmp_path / "scores.db"
    make(path)
    before = path.is_file() and path.read_bytes()
    with pytest.raises(StoreError, match=message) as caught:
        Store.open(f"sqlite:///{path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == (path.is_file() and path.read_bytes())


@pytest.mark.parametrize(
    "bad",
    [
        "scores.db",
        "sqlite://",
        "sqlite:////proc/none/scores.db",
        "mysql+pymysql://me:hunter2@host/x",
        "postgresql://me:hunter2@127.0.0.1:9/x",
        "postgresql+nodriver://me:hunter2@127.0.0.1/x",
        "postgresql://me:hunter2@host:notaport/x",
    ],
)
def test_a_store_that_cannot_be_opened_is_one_message_without_its_password(bad: str) -> None:
    with pytest.raises(StoreError, match="scores' store") as caught:
        Store.open(bad)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_another_process_holds_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.db"
    Store.open(f"sqlite:///{path}").close()
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0)
    with Store.open(f"sqlite:///{path}") as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"scores\.db: database is locked\. Another process has held it"):
            store.put([(record("a"), None)])
        assert store.current(["a"]) == {}, "readers do not wait"


def test_a_writer_of_a_server_that_is_held_is_told(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_WAIT", "1s")
    with Store.open(postgresql_url) as one, Store.open(postgresql_url) as two, one._writing():
        with pytest.raises(StoreError, match=r"lock timeout\. Another process has been writing"):
            two.put([(record("a"), None)])
        assert two.current(["a"]) == {}


def test_a_server_that_is_restarted_is_waited_for(postgresql_url: str, postgresql_server: Server) -> None:
    with Store.open(postgresql_url) as store:
        store.put([(record("a"), None)])
        postgresql_server.stop()
        starter = threading.Timer(1, postgresql_server.start)
        starter.start()
        assert store.put([(record("a"), None), (record("b"), None)]) == 1
        starter.join()
        assert set(store.current(["a", "b"])) == {"a", "b"}


def test_a_server_that_stays_away_is_told(
    postgresql_url: str, postgresql_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_PATIENCE", 0.1)
    monkeypatch.setattr(store_module, "_PAUSE", 0.05)
    with Store.open(postgresql_url) as store:
        postgresql_server.stop()
        try:
            with pytest.raises(StoreError, match="Is the server running"):
                store.put([(record("a"), None)])
        finally:
            postgresql_server.start()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("sqlite:////a/scores.db", True),
        ("postgresql://h/x", True),
        ("postgresql+psycopg://h/x", True),
        ("scores.jsonl", False),
        ("s3://b/scores.parquet", False),
        ("/a:b/sqlite.jsonl", False),
    ],
)
def test_a_database_is_told_from_a_table(place: str, expected: bool) -> None:
    assert is_store(place) == expected
