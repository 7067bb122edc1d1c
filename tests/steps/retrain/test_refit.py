"""What the step that fits thresholds again gets of the settings; and since when labels count."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

from model.columns import LOGIT
from model.schema import LABEL, POST_ID, PROBABILITY, SPLIT
from steps.evaluate.predictions import calibrated
from steps.evaluate.report import EvalReport
from steps.queue import draw, inclusion, reach, worth
from steps.retrain.ask import lowest_in_question
from steps.retrain.newest import fall, since_the_fall
from steps.retrain.step import refit_options
from steps.settings import EvaluateSettings, load_settings
from tests.support.predictions import report_of
from tests.support.tasks import MENU


def test_the_step_reads_the_sections_that_the_run_has() -> None:
    given = {"posts": "m.jsonl", "annotator": "human", "evaluate": {"confidence": 0.9}, "promote": {"floor": 0.3}}
    settings = load_settings(given | {"retrain": {"live_days": 3.5, "scores": "s.jsonl"}, "variant": "vanilla"})
    again = load_settings(refit_options(settings))
    for section in ("posts", "variant", "ingest", "evaluate", "promote", "retrain"):
        assert getattr(again, section) == getattr(settings, section), section


def labelled(right: list[int], of: int = 50) -> pd.DataFrame:
    """A day each, `right` of `of` flagged posts positive; and as many passed ones."""
    days = [
        pd.DataFrame(
            {
                "scored_at": pd.Timestamp("2026-01-01 07:00", tz="UTC") + pd.Timedelta(days=day),
                "decision": [True] * of + [False] * of,
                "label": [1.0] * k + [0.0] * (2 * of - k),
            }
        )
        for day, k in enumerate(right)
    ]
    return pd.concat(days, ignore_index=True)


@pytest.mark.parametrize(
    ("right", "day"),
    [([40] * 9 + [25] * 3, 9), ([40, 20, 20, 20], 1), ([40] * 12, None), ([20] * 6 + [40] * 6, None), ([20], None)],
    ids=["fell", "early", "steady", "rose", "one day"],
)
def test_labels_count_since_the_precision_fell_else_the_newest_half(right: list[int], day: int | None) -> None:
    table = labelled(right)
    found = fall(table)
    assert (None if found is None else (found - pd.Timestamp("2026-01-01", tz="UTC")).days) == day
    kept = since_the_fall(table)["scored_at"].nunique()
    assert kept == (len(right) - day if day is not None else (len(right) + 1) // 2)


def test_after_a_fall_the_queue_asks_only_above_what_the_labels_since_do_not_rule_out() -> None:
    """Per day 50 flagged posts, the positive ones with the highest scores: 45, then 20 a day."""
    table = labelled([45] * 6 + [20] * 6)
    table["score"] = np.tile(np.append(np.linspace(0.99, 0.8, 50), np.full(50, 0.3)), 12)
    before = table["scored_at"] < pd.Timestamp("2026-01-07", tz="UTC")
    lowest = lowest_in_question(table, 0.8, 0.95)
    above = table[~before & (table["score"] >= lowest)]
    assert above["label"].sum() == 6 * 20
    assert 0.7 < above["label"].mean() < 0.8, "the exact bound of this share reaches 80 %"
    assert lowest_in_question(table[before], 0.8, 0.95) == -np.inf


# --- labels that a queue chose ----------------------------------------------------------------------------

POOL, BUDGET, POINTS = 20_000, 900, {"p60": 0.6, "p80": 0.8}


@cache
def pool() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits and labels of scored posts, and with what probability a queue of 900 draws each: those near the served
    threshold for 80 % fifteen times as often as the others.
    """
    rng = np.random.default_rng(0)
    positive_N = rng.random(POOL) < 0.28
    logit_N = rng.normal(size=POOL) + 2.3 * positive_N
    served = float(np.quantile(logit_N, 1 - 0.2))
    worth_N, _ = worth(logit_N, reach(logit_N, served, 0.28), {})
    return logit_N, positive_N, inclusion(worth_N, BUDGET, 0.2)


def refitted(seed: int, *, weighted: bool) -> EvalReport:
    """The report on one draw of the queue."""
    logit_N, positive_N, probability_N = pool()
    taken = np.flatnonzero(draw(probability_N, seed))
    table = pd.DataFrame(
        {
            POST_ID: taken.astype(str),
            LABEL: pd.array(positive_N[taken].astype(int), dtype="Int8"),
            LOGIT: logit_N[taken],
            **{question.id: pd.array([pd.NA] * len(taken), dtype="Int8") for question in MENU.questions},
            SPLIT: np.where(np.random.default_rng(seed).random(len(taken)) < 0.3, "test", "val"),
        }
    )
    if weighted:
        table[PROBABILITY] = probability_N[taken]
    sides = [table[table[SPLIT] == split].reset_index(drop=True) for split in ("val", "test")]
    val, test, calibration = calibrated(*sides)
    settings = EvaluateSettings(confidence=0.95, precisions=(60, 80), bootstrap=0, examples=0)
    return report_of(val, test, "vanilla", settings).model_copy(update={"calibration": calibration})


def kept(report: EvalReport) -> list[bool]:
    """For each promise, whether it holds over all posts."""
    logit_N, positive_N, _ = pool()
    score_N = report.calibration.apply(logit_N)
    found = []
    for point, target in POINTS.items():
        flagged_N = score_N >= report.operating_points[point].threshold
        found.append(not flagged_N.any() or bool(positive_N[flagged_N].mean() >= target))
    return found


def test_labels_of_a_queue_keep_each_promise_weighted_by_their_draw_and_break_it_unweighted() -> None:
    """Below the posts that the queue draws often, those above count too much: 60 % looks reached where it is not."""
    draws = range(60)
    by = {way: [refitted(seed, weighted=way) for seed in draws] for way in (True, False)}
    share = {way: np.mean([kept(report) for report in found], axis=0) for way, found in by.items()}
    assert (share[True] >= 0.9).all(), f"95 % less what 60 draws can tell: {share}"
    assert share[False][0] < 0.2, share


def test_figures_on_labels_of_a_queue_are_those_of_all_posts() -> None:
    """By formula: each labelled post stands for 1 / probability of its posts."""
    _, positive_N, _ = pool()
    found = [refitted(seed, weighted=True) for seed in range(60)]
    rates = [report.metrics["positive_rate"].value for report in found]
    assert np.mean([rate for rate in rates if rate is not None]) == pytest.approx(positive_N.mean(), abs=0.02)
    served = [report.operating_points["p60"] for report in found]
    true = [_true(report) for report in found]
    assert np.mean([point.recall for point in served]) == pytest.approx(np.mean([r for r, _ in true]), abs=0.02)
    assert np.mean([point.precision or 0 for point in served]) == pytest.approx(np.mean([p for _, p in true]), abs=0.02)


def _true(report: EvalReport) -> tuple[float, float]:
    """Recall and precision over all posts at the threshold for 60 %."""
    logit_N, positive_N, _ = pool()
    flagged_N = report.calibration.apply(logit_N) >= report.operating_points["p60"].threshold
    return float(flagged_N[positive_N].mean()), float(positive_N[flagged_N].mean())


def test_a_day_of_a_queue_counts_by_the_posts_that_its_labels_stand_for() -> None:
    """From the fourth day on the queue asks ten times as often of one kind of flagged posts, of which half is wrong:
    half of the labels are wrong then, and as before 9 of 10 posts are right.
    """
    steady = labelled([45] * 6).assign(**{PROBABILITY: 0.1})
    rows = []
    for day, of_day in steady.groupby("scored_at"):
        flagged = of_day[of_day["decision"]].copy()
        if (day - pd.Timestamp("2026-01-01 07:00", tz="UTC")).days >= 3:
            odd = pd.concat([flagged.iloc[:1]] * 50).assign(label=[1.0, 0.0] * 25, **{PROBABILITY: 1.0})
            flagged = pd.concat([flagged, odd])
        rows.append(flagged)
    table = pd.concat(rows, ignore_index=True)
    assert fall(table) is None
    assert fall(table.drop(columns=PROBABILITY)) is not None
