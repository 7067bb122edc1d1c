"""The served threshold: its precision is at least the promised one with the promised confidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, ndtr
from scipy.stats import binom

from model.metrics import recall_at_precision
from steps.evaluate.promise import posts_needed, promised_threshold

D, SHARE, TARGET = 2.3, 0.28, 0.8


def draw(rng: np.random.Generator, size: int, share: float = SHARE) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels of a world whose precision at each threshold is known."""
    labels_N = rng.random(size) < share
    evidence_N = rng.normal(size=size) + D * labels_N
    return expit(D * evidence_N - D**2 / 2 + math.log(share / (1 - share))), labels_N


def true_precision(threshold: float, share: float = SHARE) -> float:
    odds = math.log(threshold / (1 - threshold)) if 0 < threshold < 1 else -math.inf
    evidence = (odds - math.log(SHARE / (1 - SHARE)) + D**2 / 2) / D
    positive, negative = share * ndtr(D - evidence), (1 - share) * ndtr(-evidence)
    return positive / (positive + negative)


@pytest.mark.parametrize(("posts", "threshold"), [(13, math.inf), (14, 0.0), (27, 0.0), (28, 0.0), (200, 0.0)])
def test_the_fewest_posts_that_can_show_a_precision_by_hand(posts: int, threshold: float) -> None:
    """All positive: 0.8 to the power of 13 is 0.055, to the power of 14 it is 0.044."""
    assert promised_threshold(np.linspace(0.1, 0.9, posts), np.ones(posts, dtype=bool), 0.8, 0.95) == threshold


def test_the_last_threshold_whose_exact_p_value_allows_it_is_served() -> None:
    """60 positives above, then negatives only: by hand, the largest rank of which 60 are positive at p <= 0.05."""
    scores = np.linspace(0.99, 0.01, 400)
    labels = np.arange(400) < 60
    flagged = int((scores >= promised_threshold(scores, labels, 0.8, 0.95)).sum())
    assert binom.sf(59, flagged, 0.8) <= 0.05
    assert 62 <= flagged <= 67
    assert binom.sf(59, 68, 0.8) > 0.05


def _least(scores: np.ndarray, threshold: float) -> float:
    """The lowest score that is flagged."""
    return float(scores[scores >= threshold].min())


@pytest.mark.parametrize(("decimals", "half_a_step"), [(16, 0.0), (1, 0.05)], ids=["distinct", "ties"])
def test_the_promise_is_kept_in_95_of_100_draws_and_by_the_plain_rule_in_half(
    decimals: int, half_a_step: float
) -> None:
    """Ties: a score that is rounded to 0.7 was anything from 0.65 on."""
    rng, kept, plain = np.random.default_rng(0), 0, 0
    for _ in range(400):
        scores, labels = draw(rng, 500)
        served = scores.round(decimals)
        # a rounded score flags all from half a step below on
        step = 0.0 if decimals > 1 else 0.05
        threshold = promised_threshold(served, labels, TARGET, 0.95)
        best = recall_at_precision(served, labels, TARGET).threshold
        kept += (
            math.isinf(threshold)
            or true_precision(math.ceil(threshold * 10) / 10 - step if step else threshold) >= TARGET
        )
        plain += true_precision(best - step) >= TARGET
    assert kept >= 0.95 * 400
    assert half_a_step or plain < 0.75 * 400  # between so few thresholds as ties leave, chance chooses less


def test_with_weights_the_promise_is_of_the_posts_that_they_stand_for() -> None:
    """Val has 50 % positives, what is served 28 %: each post counts as much more often as its label says."""
    rng, weighted, plain = np.random.default_rng(0), 0, 0
    for _ in range(200):
        labels = rng.random(1000) < 0.5
        scores = expit(D * (rng.normal(size=1000) + D * labels) - D**2 / 2 + math.log(SHARE / (1 - SHARE)))
        weights = np.where(labels, SHARE / 0.5, (1 - SHARE) / 0.5)
        threshold = promised_threshold(scores, labels, TARGET, 0.95, weights)
        weighted += math.isinf(threshold) or true_precision(threshold) >= TARGET
        plain += true_precision(promised_threshold(scores, labels, TARGET, 0.95)) >= TARGET
    assert weighted >= 0.95 * 200
    assert plain < 0.1 * 200


def test_the_order_of_the_posts_does_not_matter() -> None:
    scores, labels = draw(np.random.default_rng(3), 800)
    order = np.random.default_rng(4).permutation(800)
    assert promised_threshold(scores, labels, 0.8, 0.95) == promised_threshold(scores[order], labels[order], 0.8, 0.95)


def test_more_confidence_flags_no_more_posts() -> None:
    scores, labels = draw(np.random.default_rng(1), 2000)
    thresholds = [promised_threshold(scores, labels, 0.8, level) for level in (0.6, 0.9, 0.95, 0.99)]
    assert thresholds == sorted(thresholds)
    assert thresholds[0] < thresholds[-1] < 1


def test_so_many_posts_as_are_needed_are_mostly_enough() -> None:
    rng = np.random.default_rng(0)
    scores, labels = draw(rng, 400)
    assert math.isinf(promised_threshold(scores, labels, 0.9, 0.95))
    needed = posts_needed(scores, 0.9, 0.95)
    assert needed is not None
    assert 400 < needed < 3000
    promised = [math.isfinite(promised_threshold(*draw(rng, needed), 0.9, 0.95)) for _ in range(100)]
    assert np.mean(promised) > 0.5


def test_where_no_part_is_precise_enough_no_number_of_posts_helps() -> None:
    labels = np.arange(400) % 2 == 0
    scores = np.full(400, 0.5)
    assert math.isinf(promised_threshold(scores, labels, 0.8, 0.95))
    assert posts_needed(scores, 0.8, 0.95) is None


@pytest.mark.parametrize(
    ("precision", "confidence", "weights", "said"),
    [
        (1.0, 0.95, None, "shares between 0 and 1"),
        (0.8, 0.0, None, "shares between 0 and 1"),
        (0.8, 0.95, [-1.0, 1.0], "none below 0"),
        (0.8, 0.95, [0.0, 0.0], "one above it"),
    ],
)
def test_what_is_no_promise_is_refused(
    precision: float, confidence: float, weights: list[float] | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        promised_threshold([0.1, 0.2], [True, False], precision, confidence, weights)
