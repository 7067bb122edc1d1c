"""The pages tell all that matters, escape what they are given, and need no network."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from model.task import load_task
from steps.annotate.agreement import Verdict, agreement, drift
from steps.annotate.client import AnnotationResult
from steps.annotate.page import dollars, render_agreement, render_report
from steps.annotate.plan import Plan
from steps.annotate.tally import Progress
from tests.support.annotator import settings_of
from tests.support.html import needs_nothing_from_outside

TASK = load_task("ucc")
PLAN = Plan(
    posts=10,
    images=20,
    requests=10,
    answered=3,
    given_up=1,
    under_way=0,
    to_ask=6,
    prompt_tokens=600.0,
    completion_tokens=60.0,
    dollars=0.0021,
    most_dollars=0.01,
)
LABELS = pd.DataFrame({"post_id": ["a", "b", "c"]} | {id_: pd.array([0, 1, None], "Int8") for id_ in TASK.question_ids})
GOLD = pd.DataFrame({"post_id": ["a", "b", "c"], "ugc": [0, 0, 1]})
RESULT = AnnotationResult(
    labels=LABELS,
    asked=6,
    reused=3,
    missing=2,
    total=10,
    reasons=pd.DataFrame({"question": [None], "reason": ["<refusal>"], "requests": [2]}),
    requests=8,
    prompt_tokens=640,
    completion_tokens=61,
    cost=0.00221,
    plan=PLAN,
    seconds=75.0,
)


def page(result: AnnotationResult = RESULT, gold: pd.DataFrame = GOLD, below: tuple[Verdict, ...] = ()) -> str:
    return render_report(result, agreement(gold, LABELS, TASK), below, settings_of(), "Task <ucc>")


def test_the_report_has_progress_money_reasons_and_agreement() -> None:
    found = page(below=(Verdict("ugc", 0.5, 0.0),))
    for text in ("80.0 %", "$0.0022", "$0.0021", "1 min 15 s", "Below the floor", "50.0 %"):
        assert text in found.replace("\N{NO-BREAK SPACE}", " ")
    assert "&lt;refusal&gt;" in found
    assert "Task &lt;ucc&gt;" in found
    assert "<refusal>" not in found


def test_the_report_needs_no_network() -> None:
    assert needs_nothing_from_outside(page())


def test_without_gold_the_report_says_that_nothing_is_known() -> None:
    assert "how far the annotator can be trusted is not" in page(gold=GOLD.assign(ugc=pd.array([None] * 3, "Int8")))


def test_a_run_that_asked_nothing_of_a_model_without_a_price_has_a_page() -> None:
    nothing = replace(RESULT, missing=0, total=0, reasons=RESULT.reasons.iloc[:0], cost=None, seconds=0.0)
    assert "no price" in page(replace(nothing, plan=replace(PLAN, dollars=None, most_dollars=None)))


def test_the_agreement_page_names_what_changed() -> None:
    found = render_agreement(
        agreement(GOLD, LABELS, TASK), drift(LABELS, LABELS, TASK, GOLD), "Task ucc", "old.parquet"
    )
    assert "What changed since old.parquet" in found
    assert "+0.000" in found


@pytest.mark.parametrize(
    ("value", "text"), [(None, "no price"), (0.0, "$0.00"), (0.00214, "$0.0021"), (1234.5, "$1,234.50")]
)
def test_dollars_are_written_as_people_do(value: float | None, text: str) -> None:
    assert dollars(value) == text


def test_progress_tells_rate_money_missing_share_and_time_left() -> None:
    assert str(Progress(50, 200, 5, 0.25, 2.5, 60.0)) == "2.5/s, 10.0% missing, $0.25, 1 min 0 s left"
    assert str(Progress(0, 200, 0, None, 0.0, None)) == "0.0/s, 0.0% missing"
