"""The ledger keeps every answer, whatever ends the process."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from model.errors import AnnotationError
from steps.annotate.ledger import Attempt, Ledger, LedgerAnswer, Missing

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
    assert raw == "x" * 4000


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


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("not a database, but long enough to be taken for one" * 50)
    with pytest.raises(AnnotationError, match=r"ledger\.db: file is not a database"):
        Ledger(f"sqlite:///{path}")


def test_a_password_in_the_url_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as caught:
        Ledger("postgresql+nodriver://me:hunter2@127.0.0.1/x")
    assert "hunter2" not in str(caught.value)
