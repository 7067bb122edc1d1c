import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from model import metrics
from model.bootstrap import bootstrap_interval, paired_gain, resample_counts
from tests.model.test_metrics import noisy_scores


def recall_at_70(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    return metrics.recall_at_precision(scores, labels, 0.7, weights).recall


METRICS = [
    metrics.average_precision,
    metrics.roc_auc,
    metrics.brier_skill,
    metrics.expected_calibration_error,
    partial(metrics.f1, threshold=0.4),
    metrics.accuracy,
    recall_at_70,
]


@pytest.mark.parametrize("fn", METRICS)
@pytest.mark.parametrize("decimals", [1, 6])
def test_weighting_a_resample_equals_resampling(fn: Callable[..., float], decimals: int) -> None:
    scores, labels = noisy_scores(300, 7, decimals)
    for counts in resample_counts(300, 5, seed=8):
        drawn = np.repeat(np.arange(300), counts)
        assert fn(scores, labels, weights=counts) == pytest.approx(fn(scores[drawn], labels[drawn]), rel=1e-12)


def test_interval_equals_that_of_plain_resampling() -> None:
    scores, labels = noisy_scores(200, 9)
    plain = []
    rng = np.random.default_rng(3)
    for _ in range(40):
        drawn = rng.integers(200, size=200)
        plain.append(average_precision_score(labels[drawn], scores[drawn]))
    interval = bootstrap_interval(metrics.average_precision, scores, labels, n=40, seed=3, level=0.9)
    assert interval == pytest.approx(tuple(np.quantile(plain, [0.05, 0.95])))


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        correct = np.random.default_rng(seed).random(300) < 0.8
        low, high = bootstrap_interval(metrics.accuracy, correct, np.ones(300, bool), n=200, seed=seed)
        covered += low <= 0.8 <= high
    assert 87 <= covered <= 100  # 95 expected; four standard deviations are 8.7


def test_resamples_without_positives_are_skipped() -> None:
    scores, labels = np.array([0.9, 0.1, 0.2]), np.array([True, False, False])
    assert bootstrap_interval(metrics.roc_auc, scores, labels, n=50, seed=0) == (1, 1)
    assert bootstrap_interval(metrics.roc_auc, scores, np.zeros(3, bool), n=50, seed=0) is None
    assert bootstrap_interval(metrics.roc_auc, scores, labels, n=0, seed=0) is None


# Paired bootstrap


def test_paired_gain_equals_that_of_plain_paired_resampling() -> None:
    a, labels = noisy_scores(200, 11, decimals=1)  # ties
    b = np.random.default_rng(12).random(200)
    gains = []
    rng = np.random.default_rng(4)
    for _ in range(40):
        drawn = rng.integers(200, size=200)
        gains.append(
            average_precision_score(labels[drawn], a[drawn]) - average_precision_score(labels[drawn], b[drawn])
        )
    value, low, high = paired_gain(metrics.average_precision, a, b, labels, n=40, seed=4, level=0.9)
    assert value == pytest.approx(average_precision_score(labels, a) - average_precision_score(labels, b))
    assert (low, high) == pytest.approx(tuple(np.quantile(gains, [0.05, 0.95])))


def test_a_model_gains_nothing_on_itself_in_any_resample() -> None:
    scores, labels = noisy_scores(300, 13)
    assert paired_gain(metrics.roc_auc, scores, scores, labels, n=20, seed=0) == (0, 0, 0)


def test_paired_gain_turns_its_sign_with_its_models() -> None:
    a, labels = noisy_scores(300, 14)
    b = 0.5 * a + 0.5 * np.random.default_rng(15).random(300)
    value, low, high = paired_gain(metrics.brier_skill, a, b, labels, n=50, seed=0)
    assert paired_gain(metrics.brier_skill, b, a, labels, n=50, seed=0) == pytest.approx((-value, -high, -low))


def test_pairing_narrows_the_interval_of_models_that_err_on_the_same_posts() -> None:
    a, labels = noisy_scores(1000, 16)
    b = np.clip(a + np.random.default_rng(17).normal(0, 0.05, 1000), 0, 1)
    _, low, high = paired_gain(metrics.average_precision, a, b, labels, n=200, seed=0)
    alone = bootstrap_interval(metrics.average_precision, a, labels, n=200, seed=0)
    assert high - low < 0.5 * (alone[1] - alone[0])


def test_paired_gain_is_nan_where_the_metric_is_undefined() -> None:
    scores = np.array([0.9, 0.1, 0.2])
    gain = paired_gain(metrics.average_precision, scores, scores, np.zeros(3, bool), n=50, seed=0)
    assert all(map(math.isnan, gain))
    value, low, high = paired_gain(metrics.roc_auc, scores, scores[::-1], [True, False, False], n=0, seed=0)
    assert value == 0.5  # 1 against: one of two negatives above the positive
    assert math.isnan(low)
    assert math.isnan(high)


def test_paired_gain_refuses_scores_of_other_posts() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        paired_gain(metrics.roc_auc, [0.1, 0.2], [0.1, 0.2, 0.3], [True, False], n=1, seed=0)


def test_bootstrap_of_eight_thousand_posts_is_fast() -> None:
    scores, labels = noisy_scores(8000, 10)
    order = np.argsort(-scores)
    start = time.process_time()
    for fn in [*METRICS, *[recall_at_70] * 4]:
        bootstrap_interval(fn, scores[order], labels[order], n=200, seed=0)
    assert time.process_time() - start < 10  # 1.3 s on an idle core
