"""Estimates from posts that were drawn for people: against hand arithmetic, exact bounds and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from model.errors import DataError
from steps.survey import estimate, share_of


def test_each_label_counts_for_the_posts_that_it_was_drawn_from() -> None:
    """10 flagged posts, of which 4 of 5 drawn are positive; 100 passed ones, of which 1 of 10 drawn is."""
    flagged = np.repeat([True, False], [10, 100])
    drawn = np.r_[np.arange(10) < 5, np.arange(100) < 10]
    labels = np.full(110, np.nan)
    labels[drawn] = [1, 1, 1, 1, 0, 1, *[0] * 9]
    figures = estimate(labels, flagged, np.repeat([0.5, 0.1], [10, 100]), drawn)
    assert figures.precision.value == pytest.approx(8 / 10)  # 4 of 5
    assert figures.recall.value == pytest.approx(8 / 18)  # 8 flagged positives, 10 passed ones
    assert figures.share.value == pytest.approx(18 / 110)
    alone = estimate(labels[drawn], flagged[drawn], np.repeat([0.5, 0.1], [5, 10]))
    assert [one.value for one in alone] == pytest.approx([one.value for one in figures])


def test_within_a_cell_a_post_that_was_drawn_less_likely_weighs_more() -> None:
    figures = estimate([1, 0], [True, True], [0.8, 0.6])
    assert figures.precision.value == pytest.approx((1 / 0.8) / (1 / 0.8 + 1 / 0.6))


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (3, 40), (40, 40), (80, 100)])
def test_of_labels_with_one_probability_the_bounds_are_clopper_and_pearsons(hits: int, n: int) -> None:
    found = estimate(np.arange(n) < hits, [True] * n, [0.1] * n).precision
    exact = binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=2e-3)


def test_labels_of_posts_that_were_not_drawn_are_not_used() -> None:
    """Somebody looked at posts that he found suspicious."""
    labels, flagged = np.array([1, 0, 1, 1, 1]), [True] * 5
    chosen = estimate(labels, flagged, [0.4] * 5, drawn=[True, True, False, False, False])
    assert chosen.precision.value == 0.5
    assert chosen.precision.labelled == 2


def test_what_no_label_tells_is_not_claimed() -> None:
    flagged, probability = [True] * 10 + [False] * 90, [0.5] * 10 + [0.0] * 90
    labels, drawn = [1] * 10 + [np.nan] * 90, [True] * 10 + [False] * 90
    figures = estimate(labels, flagged, probability, drawn)
    assert figures.precision.value == 1
    assert figures.recall.value is None
    assert figures.recall.low < 0.15
    assert figures.recall.high > 0.99
    nothing = estimate([np.nan] * 3, [True, True, False], [0.5] * 3)
    assert all((one.value, one.low, one.high) == (None, 0, 1) for one in nothing[:2])
    assert estimate([], [], []).precision.value is None


@pytest.mark.parametrize(("probability", "label"), [(0.0, 1.0), (1.5, 1.0), (np.nan, 1.0), (0.5, 2.0)])
def test_a_draw_or_a_label_that_cannot_be_is_refused_with_its_row(probability: float, label: float) -> None:
    with pytest.raises(DataError, match="row 1: "):
        estimate([1, label], [True, True], [0.5, probability])


@pytest.mark.parametrize(
    ("share", "precision", "recall", "looked_at"),
    [(0.28, 0.8, 0.7, (0.5, 0.05)), (0.01, 0.9, 0.5, (0.2, 0.01)), (0.28, 0.97, 0.9, (0.05, 0.02))],
)
def test_the_bounds_hold_in_93_of_100_draws_also_where_few_positives_are_drawn(
    share: float, precision: float, recall: float, looked_at: tuple[float, float]
) -> None:
    rng, n, draws, truth = np.random.default_rng(0), 2_000, 150, (precision, recall, share)
    wrongly = share * recall * (1 - precision) / precision / (1 - share)
    held = np.zeros(3)
    for _ in range(draws):
        positive = rng.random(n) < share
        flagged = rng.random(n) < np.where(positive, recall, wrongly)
        probability = np.where(flagged, *looked_at)
        figures = estimate(positive, flagged, probability, rng.random(n) < probability)
        held += [one.low <= true <= one.high for one, true in zip(figures, truth, strict=True)]
    assert (held / draws >= 0.93).all(), held / draws


def test_a_share_of_posts_has_the_exact_bounds_and_weighs_by_the_effective_number_of_posts() -> None:
    for k, n in ((0, 12), (7, 20), (20, 20)):
        found, exact = share_of(np.arange(n) < k), binomtest(k, n).proportion_ci(0.95, method="exact")
        assert (found.value, found.low, found.high) == pytest.approx((k / n, exact.low, exact.high))
    # 3 of 10 stand for 3 posts, 10 others for 4 each: 43 posts of 13, of which (43 ** 2) / (3 + 10 * 16) count
    weighed = share_of(np.arange(13) < 3, np.where(np.arange(13) < 3, 1.0, 4.0))
    n = 43**2 / 163
    assert weighed.value == pytest.approx(3 / 43)
    assert weighed.high == pytest.approx(beta.ppf(0.975, n * 3 / 43 + 1, n * 40 / 43))
    assert share_of([]).high == 1
