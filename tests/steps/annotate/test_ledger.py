"""The ledger keeps every answer, whatever ends the process."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from model.errors import AnnotationError
from steps.annotate.ledger import Attempt, BatchFile, BatchItem, Ledger, LedgerAnswer, Missing

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
    assert raw == "x\\x00" * 800


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


@pytest.mark.parametrize("bad", ["ledger.db", "nodatabase://x", "sqlite:////proc/none/ledger.db"])
def test_a_ledger_that_cannot_be_opened_is_one_clear_error(bad: str) -> None:
    with pytest.raises(AnnotationError, match="annotation ledger"):
        Ledger(bad)


def test_a_driver_that_is_not_installed_is_named() -> None:
    with pytest.raises(AnnotationError, match=r"the driver 'psycopg2' is not installed"):
        Ledger("postgresql+psycopg2://host/ledger")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("not a database, but long enough to be taken for one" * 50)
    with pytest.raises(AnnotationError, match=r"ledger\.db: file is not a database"):
        Ledger(f"sqlite:///{path}")


def test_a_password_in_the_url_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as caught:
        Ledger("postgresql+nodriver://me:hunter2@127.0.0.1/x")
    assert "hunter2" not in str(caught.value)


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
