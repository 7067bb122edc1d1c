"""Wordings are compared on people's posts only, and what they cost is known before all posts are paid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from model.errors import AnnotationError, TaskError
from model.task import Task
from steps.annotate.ledger import Ledger
from steps.annotate.page import TrialRow, dollars, render_trial
from steps.annotate.prices import load_prices
from steps.annotate.requests import Requests
from steps.annotate.tally import CapReachedError
from steps.annotate.trial import run_trial
from tests.support.annotator import SOURCE, Answer, Server, completion, make_posts, reply, settings_of

PRICE = load_prices()["gpt-4o"]


def task_of(wording: str, **changes: Any) -> Task:
    question = {"id": "ugc", "ask": "Own?", "annotate": wording, "rule": "count >= 1"} | changes
    final = {"ask": "Bad?", "classes": ["good", "bad"], "positive": "bad"}
    return Task.model_validate({"name": "t", "version": 1, "questions": [question], "final": final})


@pytest.fixture
def posts(tmp_path: Path) -> pd.DataFrame:
    """Ten posts of train, four labelled; four of val, all labelled; two of test, labelled."""
    tables = [make_posts(tmp_path, n, split) for split, n in (("train", 10), ("val", 4), ("test", 2))]
    gold = [[0, 1, 0, 1, *[None] * 6], [0, 1, 0, 1], [1, 1]]
    return pd.concat(
        [table.assign(ugc=pd.array(column, dtype="Int8")) for table, column in zip(tables, gold, strict=True)],
        ignore_index=True,
    )


def behave(number: int, body: Any) -> Answer:
    """`good` is answered as people did, `bad` always with yes."""
    text = body["messages"][0]["content"][0]["text"]
    good = "1" if any(f"title {n}" in text for n in (1, 3)) else "0"
    return reply(completion(good if "good" in text else "1"))


def trial(posts: pd.DataFrame, url: str, ledger: Ledger, tasks: dict[str, Task], **changes: Any) -> list[TrialRow]:
    settings = settings_of(**changes)
    return run_trial(posts, tasks, settings, ledger, base_url=url, api_key="k", price=PRICE)


WORDINGS = {"good": task_of("good {title}"), "bad": task_of("bad {title}")}


def test_only_posts_that_people_labelled_are_asked_and_none_of_test(posts: pd.DataFrame, ledger: Ledger) -> None:
    with Server(behave) as server:
        good, bad = trial(posts, server.base_url, ledger, WORDINGS)
        assert len(server.requests) == 2 * (4 + 4)
        assert (good.questions[0].accuracy, good.questions[0].kappa, good.questions[0].answered) == (1.0, 1.0, 8)
        assert (bad.questions[0].accuracy, bad.questions[0].kappa) == (0.5, 0.0)
        # all of train with it: six posts are left to be paid
        assert good.plan.to_ask == 6
        assert f"<td>{dollars(good.plan.dollars)}</td>" in render_trial([good, bad], "2 wordings", SOURCE)
        again, _ = trial(posts, server.base_url, ledger, WORDINGS)
        assert (again.result.asked, len(server.requests)) == (0, 16)
    page = render_trial([good, bad], "2 wordings", SOURCE)
    assert "<b>1.000</b>" in page
    assert "<b>0.000</b>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_cap_is_of_the_whole_trial(posts: pd.DataFrame, ledger: Ledger) -> None:
    requests = Requests(posts, WORDINGS["good"], settings_of(), PRICE)
    cap = 10 * PRICE.dollars(100, 10) + max(map(requests.most, requests.distinct()))
    with Server(behave) as server:
        with pytest.raises(CapReachedError):
            trial(posts, server.base_url, ledger, WORDINGS, max_cost=cap)
        assert 8 < len(server.requests) < 16
        assert ledger.spent() <= cap


def test_without_gold_there_is_nothing_to_compare_on(posts: pd.DataFrame, ledger: Ledger) -> None:
    bare = posts.assign(ugc=pd.array([None] * len(posts), dtype="Int8"))
    with pytest.raises(AnnotationError, match="agentps queue"):
        trial(bare, "http://127.0.0.1:9/v1", ledger, WORDINGS)


def test_wordings_of_other_classes_cannot_be_compared(posts: pd.DataFrame, ledger: Ledger) -> None:
    other = task_of("x", classes=["never", "always"])
    with pytest.raises(TaskError, match="task other: question ugc"):
        trial(posts, "http://127.0.0.1:9/v1", ledger, WORDINGS | {"other": other})
