"""The ledger keeps every answer, whatever ends the process."""

from __future__ import annotations

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from model.errors import AnnotationError
from steps import database
from steps.annotate.ledger import Attempt, BatchFile, BatchItem, Ledger, LedgerAnswer, Missing
from steps.annotate.owner import describe

REPOSITORY = Path(__file__).resolve().parents[3]


def attempt(
    key: str,
    counts: tuple[int, ...] | None = None,
    missing: Missing | None = None,
    raw: str | None = None,
    number: int = 1,
) -> Attempt:
    return Attempt(key, number, "p", "openai:m", raw, counts, missing, 10, 2, 0.5)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'not' / 'there' / 'ledger.db'}"


def test_an_answer_is_found_again_by_another_process_and_unknown_keys_are_absent(url: str) -> None:
    with Ledger(url) as ledger:
        ledger.record(attempt("a", counts=(0, 3)))
    with Ledger(url) as ledger:
        assert ledger.lookup(["a", "b"]) == {"a": LedgerAnswer((0, 3), None, 1)}


def test_the_latest_answer_counts_and_an_answer_outweighs_what_is_missing(url: str) -> None:
    with Ledger(url) as ledger:
        ledger.record(attempt("a", missing=Missing.REFUSAL))
        assert ledger.lookup(["a"])["a"] == LedgerAnswer(None, Missing.REFUSAL, 1)
        ledger.record(attempt("a", counts=(1,), number=2))
        ledger.record(attempt("a", counts=(2,), number=3))
        ledger.record(attempt("a", missing=Missing.CUT, number=4))
        assert ledger.lookup(["a"])["a"] == LedgerAnswer((2,), None, 4)


def test_an_attempt_that_the_endpoint_did_not_serve_uses_up_no_retry(url: str) -> None:
    with Ledger(url) as ledger:
        ledger.record(attempt("a", missing=Missing.RATE_LIMITED))
        ledger.record(attempt("a", missing=Missing.CONNECTION))
        assert ledger.lookup(["a"])["a"] == LedgerAnswer(None, Missing.CONNECTION, 0)
        ledger.record(attempt("a", missing=Missing.TIMEOUT))  # may have been paid
        assert ledger.lookup(["a"])["a"] == LedgerAnswer(None, Missing.TIMEOUT, 1)


def test_lookup_takes_more_keys_than_a_statement_may_have_parameters(url: str) -> None:
    keys = [f"k{number}" for number in range(1201)]
    with Ledger(url) as ledger:
        for key in (keys[0], keys[499], keys[500], keys[1200]):
            ledger.record(attempt(key, counts=()))
        assert list(ledger.lookup([*keys, *keys])) == [keys[0], keys[499], keys[500], keys[1200]]


def test_raw_answers_are_kept_but_bounded(url: str, tmp_path: Path) -> None:
    with Ledger(url) as ledger:
        ledger.record(attempt("a", missing=Missing.MALFORMED, raw="x\0" * 10_000))
    with sqlite3.connect(tmp_path / "not" / "there" / "ledger.db") as database:
        (raw,) = database.execute("SELECT raw FROM annotation_answers").fetchone()
    assert raw == "x\\x00" * 8_000, "room for a whole draft of a task"


def test_every_recorded_answer_survives_sigkill(url: str) -> None:
    writer = (
        "import sys\n"
        "from steps.annotate.ledger import Attempt, Ledger\n"
        f"ledger = Ledger({url!r})\n"
        "for number in range(10_000):\n"
        "    ledger.record(Attempt(f'k{number}', 1, 'p', 'm', '1', (1,), None, 1, 1, 0.1))\n"
        "    sys.stdout.write(f'{number}\\n')\n"
        "    sys.stdout.flush()\n"
    )
    with subprocess.Popen([sys.executable, "-c", writer], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 150:
                process.send_signal(signal.SIGKILL)
                break
        told = [int(line), *(int(rest) for rest in process.stdout if rest.endswith("\n"))][-1]
    with Ledger(url) as ledger:
        found = ledger.lookup(f"k{number}" for number in range(10_000))
    assert set(found) >= {f"k{number}" for number in range(told + 1)}
    assert len(found) <= told + 2  # at most the one in flight beside
    assert all(answer.counts == (1,) for answer in found.values())


# --- what is no ledger


@pytest.mark.parametrize(
    "bad",
    [
        "ledger.db",
        "nodatabase://x",
        "sqlite:////proc/none/ledger.db",
        "sqlite://",  # would lose what was paid for
        "sqlite:///file::memory:?uri=true",
        "sqlite:///file:ledger.db?mode=memory&uri=true",
        "postgresql+pg8000://host:notaport/x",
        "mssql+pyodbc://host/x",
    ],
)
def test_a_ledger_that_cannot_be_opened_is_one_clear_error(bad: str) -> None:
    with pytest.raises(AnnotationError, match="annotation ledger") as caught:
        Ledger(bad)
    assert "\n" not in str(caught.value)


def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(AnnotationError, match=r"the driver 'psycopg2' is not installed"):
        Ledger("postgresql+psycopg2://host/ledger")


def _changed(statement: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        Ledger(f"sqlite:///{path}").close()
        with sqlite3.connect(path) as changed:
            changed.execute(statement)

    return make


def _cut(path: Path) -> None:
    Ledger(f"sqlite:///{path}").close()
    path.write_bytes(path.read_bytes()[:5000])


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE experiments (id INTEGER)")


NO_LEDGERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("no database" * 500), r"file is not a database\. Name the ledger's own file"),
    "a folder": (Path.mkdir, r"is a folder; name a file in it"),
    "cut": (_cut, r"malformed\. The file is damaged"),
    "another application's": (_foreign, r"another application's \(its tables: experiments\)"),
    "a newer version's": (
        _changed("ALTER TABLE annotation_leases ADD COLUMN mood TEXT NOT NULL"),
        r"annotation_leases has a column mood that this version does not know, so a newer AgentPS",
    ),
    "another's of the same name": (
        _changed("ALTER TABLE annotation_answers DROP COLUMN latency"),
        r"annotation_answers has no column latency",
    ),
}


@pytest.mark.parametrize("case", NO_LEDGERS)
def test_a_file_that_is_no_ledger_is_named_with_a_remedy_before_anything_is_paid(case: str, tmp_path: Path) -> None:
    make, message = NO_LEDGERS[case]
    path = tmp_path / "ledger.db"
    make(path)
    before = path.is_file() and path.read_bytes()
    with pytest.raises(AnnotationError, match=message) as caught:
        Ledger(f"sqlite:///{path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if case in ("text", "another application's"):
        assert path.read_bytes() == before


@pytest.mark.parametrize("counts", ["""'{"a": 1}'""", """'["x"]'""", "'[true]'", "'5'", "'[1,'", "NULL"])
def test_a_row_that_holds_no_answer_of_ours_is_one_message(counts: str, url: str, tmp_path: Path) -> None:
    with Ledger(url) as ledger:
        ledger.record(Attempt("k", 1, "p", "m", "raw", (1, 2), None, 1, 1, 0.1))
        with sqlite3.connect(tmp_path / "not" / "there" / "ledger.db") as other:
            other.execute(f"UPDATE annotation_answers SET counts = {counts}")
        with pytest.raises(AnnotationError, match=r"A row was changed by hand: put it right, or delete it"):
            ledger.lookup(["k"])


def test_a_ledger_that_another_process_has_locked_or_that_is_read_only_is_one_message(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(url).close()
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0)
    path = tmp_path / "not" / "there" / "ledger.db"
    with Ledger(url) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(AnnotationError, match=r"ledger\.db: database is locked\. Another process has held it"):
            ledger.claim(["a"])
        other.execute("ROLLBACK")
        assert ledger.claim(["a"]) == {"a"}
    message = r"readonly database\. Make the file and its folder writable"
    with Ledger(f"sqlite:///file:{path}?mode=ro&uri=true") as ledger, pytest.raises(AnnotationError, match=message):
        ledger.claim(["b"])


def test_a_row_that_no_version_of_ours_wrote_is_one_message(url: str, tmp_path: Path) -> None:
    with Ledger(url) as ledger:
        ledger.record(attempt("a", missing=Missing.REFUSAL))
        ledger.record(attempt("b", counts=(1,)))
        for column, value in (("missing", "a reason of later days"), ("counts", "[1")):
            with sqlite3.connect(tmp_path / "not" / "there" / "ledger.db") as changed:
                changed.execute(f"UPDATE annotation_answers SET {column} = ?", (value,))
            with pytest.raises(AnnotationError, match="annotation ledger sqlite"):
                ledger.lookup(["a", "b"])


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nodriver://me:hunter2@127.0.0.1/x",
        "postgresql+pg8000://me:hunter2@host:notaport/x",
        "postgresql:/me:hunter2@127.0.0.1/x",
        "me:hunter2@127.0.0.1/x",
        "postgres://me:hunter2@127.0.0.1/x",
        "postgresql+nodriver://127.0.0.1/x?password=hunter2",
    ],
)
def test_a_password_in_the_url_is_not_shown(url: str) -> None:
    with pytest.raises(AnnotationError, match="annotation ledger") as caught:
        Ledger(url)
    assert "hunter2" not in str(caught.value)


# --- what every database takes


def test_text_that_a_database_cannot_store_is_kept_as_escapes_and_so_is_never_paid_for_again(
    url: str, tmp_path: Path
) -> None:
    odd = replace(attempt("a", counts=(1,), raw="1\0\ud800é"), post_id="a\0b\udfff")
    with Ledger(url) as ledger:
        ledger.record(odd)
        assert ledger.lookup(["a"])["a"].counts == (1,)
        assert ledger.raw_of(["a"]) == "1\\x00\\ud800é"
    with sqlite3.connect(tmp_path / "not" / "there" / "ledger.db") as stored:
        assert stored.execute("SELECT post_id FROM annotation_answers").fetchone() == ("a\\x00b\\udfff",)


def test_a_ledger_of_before_costs_were_kept_is_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE annotation_answers (id INTEGER PRIMARY KEY, key VARCHAR(64) NOT NULL,"
            " attempt INTEGER NOT NULL, post_id TEXT NOT NULL, model TEXT NOT NULL, raw TEXT, counts JSON,"
            " missing VARCHAR(32),"
            " prompt_tokens INTEGER, completion_tokens INTEGER, latency FLOAT NOT NULL, created DATETIME NOT NULL)"
        )
        database.execute(
            "INSERT INTO annotation_answers VALUES (1, 'a', 1, 'p', 'm', '1', '[1]', NULL, 1, 1, 0.1, '2025-01-01')"
        )
    with Ledger(f"sqlite:///{path}") as ledger:
        assert ledger.lookup(["a"])["a"].counts == (1,)
        ledger.record(replace(attempt("b", counts=(2,)), cost=0.25))
        assert ledger.spent() == 0.25
        assert ledger.lookup(["c", "a"])["a"].attempts == 1


# --- leases


@pytest.mark.parametrize("skew", [-300.0, 300.0])
def test_leases_go_by_the_clock_of_the_database_whatever_the_clock_of_a_process_says(
    skew: float, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = time.time
    with Ledger(url) as one, Ledger(url, lease_seconds=0.1) as short, Ledger(url) as other:
        monkeypatch.setattr(time, "time", lambda: true() + skew)
        assert one.claim(["a"]) == {"a"}
        one.renew()
        assert short.claim(["b"]) == {"b"}
        monkeypatch.setattr(time, "time", true)
        assert other.claim(["a"]) == set()  # else it is paid twice
        monkeypatch.setattr(time, "time", lambda: true() + skew)
        assert other.claim(["a"]) == set()
        monkeypatch.setattr(time, "time", true)
        deadline = time.monotonic() + 60
        while other.claim(["b"]) != {"b"}:  # else it is waited for until the fast clock's time has come
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_lease_that_ends_in_the_far_future_is_none(url: str, tmp_path: Path) -> None:
    with Ledger(url) as ledger, sqlite3.connect(tmp_path / "not" / "there" / "ledger.db") as stored:
        stored.execute("INSERT INTO annotation_leases VALUES ('a', 'elsewhere/1/1/x', 4070908800.0)")  # in 2099
        stored.commit()
        assert ledger.claim(["a"]) == {"a"}


def test_the_holders_of_leases_are_named(url: str) -> None:
    with Ledger(url) as one, Ledger(url) as other:
        one.claim(["a", "b", "c"])
        (holder,) = other.holders(["a", "b", "d"])
        assert (holder.requests, one.holders(["a"])) == (2, [])
        assert 0 < holder.seconds <= 60
        assert describe(holder.owner) == f"process {os.getpid()} on this machine"
    elsewhere = holder.owner.replace(holder.owner.split("/")[0], "another-boot:pid:[1]")
    assert describe(elsewhere) == f"process {os.getpid()} on {socket.gethostname()[:32]}"
    assert describe("another-boot:pid:[1]/7/3/abcd") == "process 7 on elsewhere"


def test_a_lease_is_held_by_one_until_its_answer_is_recorded(url: str) -> None:
    with Ledger(url) as one, Ledger(url) as other:
        assert one.claim(["a", "b"]) == {"a", "b"}
        assert other.claim(["a", "b", "c"]) == {"c"}
        one.record(attempt("a", missing=Missing.REFUSAL))  # to be asked again at once
        assert other.claim(["a"]) == set()
        one.record(attempt("a", counts=(1,), number=2), settled=True)
        assert other.claim(["a"]) == {"a"}
        one.release()
        assert other.claim(["b"]) == {"b"}
        other.release(["b"])
        assert one.claim(["a", "b", "c"]) == {"b"}


def test_a_lease_without_a_sign_of_life_is_free_and_a_renewed_one_is_not(url: str) -> None:
    with Ledger(url, lease_seconds=0.2) as one, Ledger(url) as other:
        one.claim(["a"])
        for _ in range(4):
            time.sleep(0.1)
            one.renew()
            assert other.claim(["a"]) == set()
        time.sleep(0.25)
        assert other.claim(["a"]) == {"a"}
        one.renew()  # nothing of ours is left
        one.release()
        assert one.claim(["a"]) == set()


def test_the_leases_of_a_process_that_was_killed_are_free_at_once_on_this_machine(url: str) -> None:
    script = (
        "import sys, time\n"
        "from steps.annotate.ledger import Ledger\n"
        f"print(Ledger({url!r}).claim(['a', 'b']), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "'a'" in process.stdout.readline()
        with Ledger(url) as ledger:
            assert ledger.claim(["a"]) == set()
            process.kill()
            process.wait()
            assert ledger.claim(["a", "b"]) == {"a", "b"}


def test_of_many_that_claim_the_same_keys_at_once_each_key_goes_to_one(url: str) -> None:
    keys = [f"k{number}" for number in range(60)]
    Ledger(url).close()

    def claim(seed: int) -> list[str]:
        order = random.Random(seed).sample(keys, len(keys))
        with Ledger(url) as ledger:
            return [key for start in range(0, 60, 6) for key in ledger.claim(order[start : start + 6])]

    with ThreadPoolExecutor(4) as pool:
        claimed = [key for got in pool.map(claim, range(4)) for key in got]
    assert sorted(claimed) == sorted(keys)


def test_a_batch_file_holds_its_keys_whatever_becomes_of_its_sender_and_is_collected_once(url: str) -> None:
    items = tuple(BatchItem(key, "p", 2, None, 0.1) for key in ("a", "b"))
    batch_file = BatchFile("s" * 32, "openai:m", {"format": "numbers"}, items, None, None, 0.2)
    with Ledger(url, lease_seconds=0.05) as one, Ledger(url) as other:
        one.claim(["a", "b"])
        one.add_batch_file(batch_file)
        one.release()
        time.sleep(0.1)
        assert other.claim(["a", "b"]) == set()
        other.sent_batch_file(batch_file.id, file_id="f")
        other.sent_batch_file(batch_file.id, batch_id="b")
        assert other.batch_files("openai:m") == [replace(batch_file, file_id="f", batch_id="b")]
        assert other.batch_files("openai:other") == []
        assert one.collect_batch_file(batch_file.id, [attempt("a", counts=(1,))])
        assert not other.collect_batch_file(batch_file.id, [attempt("a", counts=(1,))])
        assert other.lookup(["a", "b"]) == {"a": LedgerAnswer((1,), None, 1)}
        assert other.claim(["a", "b"]) == {"a", "b"}
