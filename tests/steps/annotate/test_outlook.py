"""Nothing is paid for without hope, and what went missing is asked again only under other options."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from model.errors import AnnotationError
from model.task import load_task
from steps.annotate.client import AnnotationResult, annotate_posts
from steps.annotate.ledger import Attempt, Ledger, Missing
from steps.annotate.outlook import Outlook, _most_missing
from steps.annotate.plan import make_plan, todo_of
from steps.annotate.prices import load_prices
from steps.annotate.requests import Requests
from tests.support.annotator import SOURCE, Answer, Server, completion, error, make_posts, reply, settings_of

PRICE = load_prices()["gpt-4o"]
CUT = reply(completion("Let me look\x1b[2J at", finish_reason="length"))
FINE = reply(completion())


def run(posts: pd.DataFrame, ledger: Ledger, server: Server, **changes: Any) -> AnnotationResult:
    settings = settings_of(**({"max_missing_share": 0.2} | changes))
    return annotate_posts(posts, load_task("ucc"), settings, ledger, base_url=server.base_url, api_key="k", price=PRICE)


def of(posts: pd.DataFrame, **changes: Any) -> Requests:
    return Requests(posts, load_task("ucc"), settings_of(**changes), PRICE)


# --- a run without hope


def test_a_run_whose_answers_are_all_cut_ends_after_some_dozens_asks_nothing_again_and_goes_on_with_a_larger_limit(
    tmp_path: Path, ledger: Ledger
) -> None:
    posts = make_posts(tmp_path, 300)
    with Server(lambda number, body: CUT if body["max_tokens"] < 500 else FINE) as server:
        with pytest.raises(AnnotationError, match=r"of 300 posts have no answer \(cut at max_tokens: ") as caught:
            run(posts, ledger, server, retries=1)
        asked = len(server.requests)
        assert 24 <= asked <= 24 + 4  # the four in flight
        assert ledger.spent() == pytest.approx(asked * PRICE.dollars(100, 10))
        assert r"'Let me look\x1b[2J at'" in str(caught.value)
        assert "raise annotate.max_tokens" in str(caught.value)
        for _ in range(2):
            with pytest.raises(AnnotationError, match=r"annotate\.max_tokens"):
                run(posts, ledger, server, retries=5)
        assert len(server.requests) == asked
        result = run(posts, ledger, server, max_tokens=500)
        assert (result.asked, result.missing) == (300, 0)


def test_few_posts_are_asked_to_the_last_and_then_counted(tmp_path: Path, ledger: Ledger) -> None:
    with Server(lambda number, body: CUT) as server:
        with pytest.raises(AnnotationError, match=r"20 of 20 posts have no answer"):
            run(make_posts(tmp_path, 20), ledger, server)
        assert len(server.requests) == 20


@pytest.mark.parametrize(
    "is_bad",
    [
        lambda number, title: number <= 15,  # the first replies
        lambda number, title: title < 60,  # the head of the table: 15 of 100
        lambda number, title: title % 6 == 0,
    ],
)
def test_a_run_whose_share_is_kept_is_not_stopped_wherever_the_bad_posts_are(
    is_bad: Callable[[int, int], bool], tmp_path: Path, ledger: Ledger
) -> None:
    def behave(number: int, body: Any) -> Answer:
        (title,) = re.findall(r"title (\d+)", body["messages"][0]["content"][0]["text"])
        return CUT if is_bad(number, int(title)) else FINE

    with Server(behave) as server:
        assert run(make_posts(tmp_path, 400), ledger, server).total == 400


def test_the_run_ends_when_it_is_certain_that_the_share_is_passed(tmp_path: Path, ledger: Ledger) -> None:
    with Server(lambda number, body: FINE if number <= 100 else CUT) as server:
        with pytest.raises(AnnotationError, match="no answer"):
            run(make_posts(tmp_path, 400), ledger, server)
        assert 100 + 80 < len(server.requests) <= 100 + 81 + 4


def test_what_the_endpoint_did_not_serve_takes_no_hope(tmp_path: Path, ledger: Ledger) -> None:
    rejected = reply(error("bad image"), 400)
    with Server(lambda number, body: rejected if number % 2 else FINE) as server:
        with pytest.raises(AnnotationError, match="50 of 100 posts have no answer") as caught:
            run(make_posts(tmp_path, 100), ledger, server)
        assert len(server.requests) == 100
    assert "start the same command again" in str(caught.value)


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.5, 3), (1.0, 3)])
def test_the_look_allows_what_chance_allows(share: float, most: int) -> None:
    assert _most_missing(3, share) == most


def test_at_a_share_of_a_fifth_twenty_of_thirty_two_are_one_chance_in_a_million() -> None:
    # the binomial tail: P(X >= 19) = 1.2e-6, P(X >= 20) = 1.9e-7
    assert _most_missing(32, 0.2) == 19


# --- what is asked again


def missed(posts: pd.DataFrame, ledger: Ledger, reason: Missing, options: str | None, tokens: int | None = 64) -> None:
    for request in of(posts).distinct():
        ledger.record(Attempt(request.key, 1, "p", SOURCE, "x", None, reason, 1, tokens, 0.1, 0.0, options))


def to_ask(posts: pd.DataFrame, ledger: Ledger, **changes: Any) -> int:
    requests = of(posts, **changes)
    return len(todo_of(requests, ledger.lookup(request.key for request in requests.distinct())))


RENAMED = {"max_tokens": None, "max_completion_tokens": 64}


@pytest.mark.parametrize(
    ("reason", "changes", "asked"),
    [
        (Missing.CUT, {}, 0),
        (Missing.CUT, {"retries": 9}, 0),
        (Missing.CUT, {"max_tokens": 65}, 1),
        (Missing.CUT, {"max_tokens": 63}, 0),
        (Missing.CUT, {"max_tokens": 63, "request_fields": {"reasoning_effort": "low"}}, 1),
        (Missing.CUT, {"request_fields": {"reasoning_effort": "low"}}, 1),
        (Missing.CUT, {"request_fields": RENAMED}, 0),
        (Missing.CUT, {"timeout": 60.0, "concurrency": 2, "max_cost": 1.0}, 0),
        (Missing.CONTENT_FILTER, {"retries": 9}, 0),
        (Missing.CONTENT_FILTER, {"max_tokens": 65}, 1),
        (Missing.REFUSAL, {}, 0),
        (Missing.REFUSAL, {"retries": 1}, 1),
        (Missing.REFUSAL, {"request_fields": {"temperature": 1}}, 1),
        (Missing.TIMEOUT, {}, 0),
        (Missing.TIMEOUT, {"timeout": 60.0}, 1),
        (Missing.RATE_LIMITED, {}, 1),
    ],
)
def test_a_missing_answer_is_asked_again_where_another_outcome_can_be_hoped_for(
    reason: Missing, changes: dict[str, Any], asked: int, tmp_path: Path, ledger: Ledger
) -> None:
    posts = make_posts(tmp_path, 1)
    missed(posts, ledger, reason, of(posts).options(reason))
    assert to_ask(posts, ledger, **changes) == asked


def test_options_that_were_changed_by_hand_are_others_than_the_present_ones(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 1)
    missed(posts, ledger, Missing.CUT, "no JSON")
    assert to_ask(posts, ledger) == 1


def test_options_that_were_tried_before_stay_tried(tmp_path: Path, ledger: Ledger) -> None:
    posts = make_posts(tmp_path, 1)
    for limit in (64, 2000):
        missed(posts, ledger, Missing.CUT, of(posts, max_tokens=limit).options())
    assert [to_ask(posts, ledger, max_tokens=limit) for limit in (64, 2000, 4000)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("reason", "tokens", "changes", "asked"),
    [
        (Missing.CUT, 64, {}, 0),
        (Missing.CUT, 64, {"max_tokens": 65}, 1),
        (Missing.CUT, None, {"max_tokens": 65}, 0),
        (Missing.CUT, 64, {"retries": 1}, 1),
        (Missing.REFUSAL, 64, {"max_tokens": 65}, 0),
        (Missing.REFUSAL, 64, {"retries": 1}, 1),
        (Missing.CONTENT_FILTER, 64, {"retries": 1}, 1),
    ],
)
def test_a_ledger_of_before_options_were_kept_loses_nothing_and_a_larger_limit_asks_again_what_was_cut(
    reason: Missing, tokens: int | None, changes: dict[str, Any], asked: int, tmp_path: Path
) -> None:
    posts, path = make_posts(tmp_path, 2), tmp_path / "old.db"
    with Ledger(f"sqlite:///{path}") as ledger:
        missed(posts.iloc[:1], ledger, reason, None, tokens)
        (key,) = (request.key for request in of(posts.iloc[1:]).distinct())
        ledger.record(Attempt(key, 1, "p", SOURCE, "0,1,2,1,2", (0, 1, 2, 1, 2), None, 1, 1, 0.1))
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE annotation_answers DROP COLUMN options")
    with Ledger(f"sqlite:///{path}") as ledger:
        assert to_ask(posts.iloc[1:], ledger, **changes) == 0
        assert to_ask(posts, ledger, **changes) == asked


def test_the_plan_tells_what_is_given_up_and_what_is_asked_once_more_for_how_much(
    tmp_path: Path, ledger: Ledger
) -> None:
    posts = make_posts(tmp_path, 5)
    missed(posts.iloc[:2], ledger, Missing.CUT, of(posts).options())
    missed(posts.iloc[2:3], ledger, Missing.REFUSAL, of(posts).options())
    options = '{"max_tokens": 64, "temperature": 0}'
    plan, _ = make_plan(of(posts), ledger)
    assert (plan.to_ask, plan.given_up, plan.again, plan.again_dollars) == (2, 3, (), 0.0)
    assert list(map(str, plan.given_up_for)) == [
        f"2 cut at max_tokens, with {options}",
        f"1 refusal, with {options}",
    ]
    requests = of(posts, max_tokens=65)
    plan, _ = make_plan(requests, ledger)
    assert (plan.to_ask, plan.given_up, plan.given_up_for) == (5, 0, ())
    assert [(lack.reason, lack.requests) for lack in plan.again] == [("cut at max_tokens", 2), ("refusal", 1)]
    each = [requests.tokens(request).dollars(PRICE) for request in requests.distinct()]
    assert plan.again_dollars == pytest.approx(sum(each[:3]))
    assert plan.dollars == pytest.approx(sum(each))


def test_the_look_is_the_same_in_any_order_of_the_posts_and_of_no_one_question(tmp_path: Path) -> None:
    posts = make_posts(tmp_path, 64)
    requests = of(posts, ask="singly")
    look = Outlook(requests, {}).look
    assert len(look) == 32
    assert Outlook(of(posts.iloc[::-1], ask="singly"), {}).look == look
    todo = requests.distinct()
    questions = Counter(request.question for request in todo if request.key in look)
    assert max(questions.values()) < 20
    first = Outlook(requests, {}).first(todo)
    assert {request.key for request in first[:32]} == look
    assert sorted(first, key=todo.index) == todo


def test_one_question_of_five_that_is_always_refused_stops_nothing_that_keeps_its_share(
    tmp_path: Path, ledger: Ledger
) -> None:
    def behave(number: int, body: Any) -> Answer:
        return reply(completion(None, refusal="no") if "UGC" in str(body) else completion("1"))

    with Server(behave) as server:
        assert run(make_posts(tmp_path, 32), ledger, server, ask="singly", max_missing_share=0.2).missing == 32


# --- others


def test_a_run_that_waits_for_another_process_says_for_whom(
    tmp_path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    posts = make_posts(tmp_path, 3)
    keys = [request.key for request in of(posts).distinct()]
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as other:
        other.claim(keys[:2])

        def release() -> None:
            deadline = time.monotonic() + 60
            while "Waiting for requests" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.05)
            other.release()

        with Server(lambda number, body: FINE) as server, caplog.at_level(logging.WARNING):
            thread = threading.Thread(target=release)
            thread.start()
            assert run(posts, ledger, server).missing == 0
            thread.join()
    assert "on this machine asks 2 (free in " in caplog.text
    assert caplog.text.count("Waiting for requests") == 1


def test_a_sign_of_life_that_fails_once_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renew, signs = Ledger.renew, []

    def fails_once(self: Ledger) -> None:
        signs.append(1)
        if len(signs) == 1:
            raise AnnotationError("the database is restarting")
        renew(self)

    def behave(number: int, body: Any) -> Answer:
        deadline = time.monotonic() + 60
        while len(signs) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        return FINE

    monkeypatch.setattr(Ledger, "renew", fails_once)
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", lease_seconds=0.2) as ledger, Server(behave) as server:
        assert run(make_posts(tmp_path, 1), ledger, server, timeout=120).missing == 0
    assert len(signs) >= 2
    assert "No sign of life to other processes: the database is restarting" in caplog.text


def test_the_options_of_an_attempt_are_in_the_ledger(tmp_path: Path, ledger: Ledger) -> None:
    with Server(lambda number, body: FINE if number > 1 else CUT) as server:
        run(make_posts(tmp_path, 2), ledger, server, max_missing_share=1, concurrency=1, format="numbers")
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        rows = database.execute("SELECT options FROM annotation_answers").fetchall()
    assert [json.loads(row[0]) for row in rows] == [{"max_tokens": 64, "temperature": 0}] * 2
