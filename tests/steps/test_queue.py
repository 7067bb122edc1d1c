"""Whom to ask next: the draw's probabilities are those that are written down, and the labels tell more."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest

from model.errors import ConfigError
from steps.evaluate.promise import promised_threshold
from steps.queue import draw, inclusion, not_ruled_out, reach, worth
from steps.survey import estimate


def world(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.28
    evidence = rng.normal(size=n) + 2.3 * positive
    return expit(2.3 * evidence - 2.3**2 / 2 + math.log(0.28 / 0.72)), positive


def test_the_budget_is_divided_by_hand() -> None:
    """3 posts of worth 1, 1 and 2, budget 2, half of it random: 1/3 each, and 1/4, 1/4, 1/2."""
    found = inclusion(np.array([1.0, 1.0, 2.0]), 2, 0.5)
    assert found == pytest.approx([1 / 3 + 1 / 4, 1 / 3 + 1 / 4, 1 / 3 + 1 / 2])


def test_no_probability_is_above_1_and_none_is_0() -> None:
    found = inclusion(np.array([100.0, *[1e-6] * 99]), 10, 0.2)
    assert found[0] == 1
    assert found[1:] == pytest.approx([9 / 99] * 99)
    assert inclusion(np.ones(7), 7, 1.0) == pytest.approx([1] * 7)
    rng = np.random.default_rng(0)
    for budget in (1, 50, 199, 200):
        found = inclusion(rng.random(200) ** 8 + 1e-9, budget, 0.1)
        assert found.sum() == pytest.approx(budget)
        assert found.min() > 0
        assert found.max() <= 1


def test_each_post_is_drawn_as_often_as_it_says_and_always_as_many_as_the_budget() -> None:
    probability = inclusion(np.random.default_rng(0).random(60) ** 4 + 0.01, 20, 0.2)
    drawn = np.array([draw(probability, seed) for seed in range(4000)])
    assert set(drawn.sum(axis=1)) == {20}
    assert drawn.mean(axis=0) == pytest.approx(probability, abs=5 * 0.5 / math.sqrt(4000))


def test_a_reason_makes_a_post_worth_more_and_is_told() -> None:
    scores = np.array([0.1, 0.9, 0.1, 0.9])
    found, said = worth(scores, 0.5, {"versions differ": np.array([False, False, True, True])})
    assert found[2] / found[0] == pytest.approx(1.5) == found[3] / found[1]
    assert found[1] > 10 * found[0]
    assert said == ["random", "may be flagged", "versions differ", "may be flagged; versions differ"]


def test_thresholds_in_question_flag_half_as_many_again_as_the_served_one() -> None:
    scores = np.linspace(0.001, 1, 1000)
    assert (scores >= reach(scores, 0.8, 0.5)).sum() == pytest.approx(300, abs=3)
    assert (scores >= reach(scores, math.inf, 0.2)).sum() == pytest.approx(300, abs=3), "nothing is flagged yet"


@pytest.mark.parametrize(("budget", "share"), [(0, 0.2), (11, 0.2), (5, 0.0), (5, 1.1)])
def test_a_draw_that_cannot_be_or_would_bias_is_refused(budget: int, share: float) -> None:
    with pytest.raises(ConfigError):
        inclusion(np.ones(10), budget, share)


def test_a_threshold_is_in_question_until_the_exact_bound_of_its_precision_is_below_the_target() -> None:
    """20 positives above, then negatives only: as long as scipy's bound of 20 of n reaches 80 %."""
    score, label = np.linspace(0.99, 0.01, 60), np.arange(60) < 20
    last = max(
        n for n in range(20, 61) if binomtest(20, n, alternative="less").proportion_ci(0.95, method="exact").high >= 0.8
    )
    for probability in (1.0, 0.2):
        found = not_ruled_out(score, label, np.full(60, probability), 0.8, 0.95)
        assert (score >= found).sum() == last
    # each of the negatives stands for ten posts
    found = not_ruled_out(score, label, np.where(label, 1.0, 0.1), 0.8, 0.95)
    assert 20 < (score >= found).sum() < last


def test_300_labels_of_the_queue_serve_more_than_500_of_random_posts_and_keep_the_promise() -> None:
    served: dict[str, list[float]] = {"random": [], "queue": []}
    kept, unbiased, shares = 0, 0, []
    for seed in range(60):
        score, positive = world(8000, seed)
        lowest = reach(score, math.inf, 0.28)
        for arm, budget, random_share in (("random", 500, 1.0), ("queue", 300, 0.2)):
            probability = inclusion(worth(score, lowest, {})[0], budget, random_share)
            drawn = draw(probability, seed)
            chosen = probability[drawn]
            threshold = promised_threshold(score[drawn], positive[drawn], 0.8, 0.95, probability=chosen)
            flagged = score >= threshold
            served[arm].append(float(flagged[positive].mean()))
        kept += not flagged.any() or positive[flagged].mean() >= 0.8
        share = estimate(positive[drawn], score[drawn] >= lowest, chosen).share
        unbiased += share.low <= positive.mean() <= share.high
        shares.append(share.value or 0.0)
    assert np.mean(served["queue"]) > np.mean(served["random"])
    assert kept >= 0.93 * 60
    assert unbiased >= 0.93 * 60
    assert np.mean(shares) == pytest.approx(0.28, abs=0.02)
