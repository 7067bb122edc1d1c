import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, precision_recall_curve, roc_auc_score
from torchmetrics.functional.classification import binary_recall_at_fixed_precision

from model import metrics
from model.metrics import Calibration, OperatingPoint


def noisy_scores(n: int, seed: int, decimals: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated scores, rounded (so that few decimals give many ties), and labels drawn from them."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    return scores.round(decimals), rng.random(n) < scores


# Recall at precision


@pytest.mark.parametrize("decimals", [1, 2, 6])
@pytest.mark.parametrize("min_precision", [0.3, 0.6, 0.7, 0.8, 0.95])
def test_recall_at_precision_matches_torchmetrics(decimals: int, min_precision: float) -> None:
    for seed in range(10):
        scores, labels = noisy_scores(200, seed, decimals)
        point = metrics.recall_at_precision(scores, labels, min_precision)
        recall, threshold = binary_recall_at_fixed_precision(
            torch.tensor(scores),
            torch.tensor(labels).long(),
            # It divides in float32, where 38/40 is a little less than 0.95. Shares of 200 posts lie further apart.
            min_precision=min_precision - 1e-6,
            thresholds=None,
        )
        assert point.recall == pytest.approx(float(recall), abs=1e-6)
        assert math.isinf(point.threshold) if recall == 0 else point.threshold == pytest.approx(float(threshold))


def test_recall_at_precision_by_hand() -> None:
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    labels = [True, False, True, True, False, True]
    # precision from the top: 1, 1/2, 2/3, 3/4, 3/5, 4/6
    assert metrics.recall_at_precision(scores, labels, 0.75) == OperatingPoint(
        min_precision=0.75, threshold=0.6, recall=0.75, precision=0.75
    )
    assert metrics.recall_at_precision(scores, labels, 0.76).threshold == 0.9
    assert metrics.recall_at_precision(scores, labels, 0.6).threshold == 0.4


def test_recall_at_precision_takes_a_precision_that_is_met_exactly() -> None:
    for percent in range(1, 101):
        scores, labels = [0.5] * 100, [True] * percent + [False] * (100 - percent)
        assert metrics.recall_at_precision(scores, labels, percent / 100).recall == 1


def test_recall_at_precision_cannot_split_a_tie() -> None:
    # The first positive alone would have precision 1, but it has the negative's score.
    point = metrics.recall_at_precision([0.9, 0.9, 0.1], [True, False, True], 0.7)
    assert point == OperatingPoint(min_precision=0.7, threshold=math.inf, recall=0, precision=None)


def test_recall_at_precision_prefers_the_more_precise_of_equal_recalls() -> None:
    assert metrics.recall_at_precision([0.9, 0.2], [True, False], 0.5).threshold == 0.9


@pytest.mark.parametrize(
    ("scores", "labels", "min_precision", "message"),
    [
        ([0.1, 0.2], [False, False], 0.5, "no positives among 2"),
        ([0.1, math.nan], [True, False], 0.5, "1 of 2 are NaN"),
        ([], [], 0.5, "no posts"),
        ([0.1, 0.2], [True], 0.5, "shapes differ"),
        ([0.1, 0.2], [0, 2], 0.5, "0 and 1 only"),
        ([0.1, 0.2], [0.0, math.nan], 0.5, "0 and 1 only"),
        ([0.1], [True], 0.0, "min_precision"),
    ],
)
def test_recall_at_precision_refuses(scores: list, labels: list, min_precision: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.recall_at_precision(scores, labels, min_precision)


def test_a_fitted_threshold_is_measured_as_it_is_on_other_posts() -> None:
    test = metrics.apply_threshold([0.95, 0.8, 0.79, 0.1], [True, False, True, False], 0.8, 0.9)
    assert test == OperatingPoint(min_precision=0.9, threshold=0.8, recall=0.5, precision=0.5)  # below the target
    nothing = metrics.apply_threshold([0.95, 0.8], [True, False], math.inf, 0.9)
    assert nothing == OperatingPoint(min_precision=0.9, threshold=math.inf, recall=0, precision=None)


def test_apply_threshold_refuses_what_is_undefined() -> None:
    with pytest.raises(ValueError, match="no positives"):
        metrics.apply_threshold([0.5], [False], 0.5, 0.9)
    with pytest.raises(ValueError, match="threshold is NaN"):
        metrics.apply_threshold([0.5], [True], math.nan, 0.9)


def test_an_infinite_threshold_survives_json() -> None:
    point = OperatingPoint(min_precision=0.9, threshold=math.inf, recall=0, precision=None)
    assert OperatingPoint.model_validate_json(point.model_dump_json()) == point


# Other metrics


@pytest.mark.parametrize("decimals", [1, 6])
def test_curve_matches_scikit_learn(decimals: int) -> None:
    scores, labels = noisy_scores(300, 3, decimals)
    curve = metrics.threshold_curve(scores, labels)
    precision, recall, thresholds = precision_recall_curve(labels, scores)  # ascending, one point more
    np.testing.assert_array_equal(curve.thresholds, thresholds[::-1])
    np.testing.assert_allclose(curve.precision, precision[-2::-1])
    np.testing.assert_allclose(curve.recall, recall[-2::-1])


@pytest.mark.parametrize("decimals", [1, 6])
def test_rank_metrics_match_scikit_learn(decimals: int) -> None:
    scores, labels = noisy_scores(400, 4, decimals)
    assert metrics.average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores))
    assert metrics.roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.f1(scores, labels, 0.4) == pytest.approx(f1_score(labels, scores >= 0.4))


def test_best_f1_threshold_beats_every_other() -> None:
    scores, labels = noisy_scores(150, 5, 2)
    best = metrics.best_f1_threshold(scores, labels)
    f1s = {threshold: f1_score(labels, scores >= threshold) for threshold in scores}
    assert f1s[best] == pytest.approx(max(f1s.values()))


@pytest.mark.parametrize("labels", [[False, False], [True, True]])
def test_metrics_without_one_class_are_nan(labels: list[bool]) -> None:
    scores = [0.2, 0.8]
    assert math.isnan(metrics.roc_auc(scores, labels))
    assert math.isnan(metrics.average_precision(scores, labels)) == (not any(labels))
    assert math.isnan(metrics.f1(scores, labels, 0.5)) == (not any(labels))


def test_accuracy_counts_any_number_of_classes() -> None:
    assert metrics.accuracy([0, 1, 2, 2], [0, 1, 2, 1]) == 0.75
    assert math.isnan(metrics.accuracy([], []))


def test_calibration_error_by_hand() -> None:
    # Bins of two: {0.1, 0.3} mean 0.2, share 0; {0.6, 0.8} mean 0.7, share 1/2.
    assert metrics.expected_calibration_error([0.1, 0.6, 0.3, 0.8], [0, 1, 0, 0], bins=2) == pytest.approx(0.2)
    # Three posts in two bins: 0.6 is halved. {0.9, 0.6/2}: (0.9 + 0.3) / 1.5 against 1 / 1.5;
    # {0.6/2, 0.3}: 0.6 / 1.5 against 0.
    expected = (0.2 / 1.5 + 0.6 / 1.5) / 2
    assert metrics.expected_calibration_error([0.9, 0.6, 0.3], [1, 0, 0], bins=2) == pytest.approx(expected)


def test_calibration_error_does_not_depend_on_the_order_of_ties() -> None:
    scores, labels = noisy_scores(200, 6, 1)
    order = np.random.default_rng(0).permutation(200)
    assert metrics.expected_calibration_error(scores, labels) == pytest.approx(
        metrics.expected_calibration_error(scores[order], labels[order])
    )


# Calibration of the logit


def test_calibration_recovers_scale_and_bias() -> None:
    rng = np.random.default_rng(0)
    truth = Calibration(scale=0.5, bias=-1.0)
    logits = rng.normal(loc=2, scale=3, size=40_000)
    fitted = metrics.fit_calibration(logits, rng.random(40_000) < truth.apply(logits))
    # Standard errors at this size are about 0.006 and 0.02.
    assert fitted.scale == pytest.approx(truth.scale, abs=0.025)
    assert fitted.bias == pytest.approx(truth.bias, abs=0.08)


def test_calibration_never_changes_the_ranking() -> None:
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=3000) * 4).astype(np.float32)
    calibration = metrics.fit_calibration(logits, rng.random(3000) < 0.3 + 0.4 * (logits > 0))
    scores = calibration.apply(logits)
    assert calibration != Calibration()
    np.testing.assert_array_equal(np.argsort(logits, kind="stable"), np.argsort(scores, kind="stable"))


def test_scores_are_the_sigmoid_at_any_logit() -> None:
    scores = Calibration().apply([-1e6, -800.0, -2.0, 0.0, 2.0, 800.0, 1e6])
    expected = [1 / (1 + math.exp(2)), 0.5, 1 / (1 + math.exp(-2))]
    np.testing.assert_allclose(scores[2:5], expected, rtol=1e-15)
    np.testing.assert_allclose(scores[:2], 0, atol=1e-300)
    np.testing.assert_array_equal(scores[5:], 1)


def test_calibration_of_separable_posts_is_finite_and_positive() -> None:
    calibration = metrics.fit_calibration([-2.0, -1.0, 1.0, 2.0], [False, False, True, True])
    assert 0 < calibration.scale < 100
    assert calibration.bias == pytest.approx(0, abs=1e-6)  # by symmetry
    # Platt's target for each of two positives is 3/4; at the optimum sum(logit * (target - score)) is 0.
    assert np.dot([1, 2], 0.75 - calibration.apply([1.0, 2.0])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([0.1, 0.2], [True, True], "2 of 2 posts are positive"),
        ([0.5, 0.5], [True, False], "spread 0"),
        ([3.0, 2.0, -2.0, -3.0], [False, False, True, True], "reverse the ranking"),
    ],
)
def test_calibration_is_the_identity_where_nothing_can_be_fitted(
    logits: list[float], labels: list[bool], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert metrics.fit_calibration(logits, labels) == Calibration(scale=1, bias=0)
    assert message in caplog.text


def test_calibration_refuses_infinite_logits() -> None:
    with pytest.raises(ValueError, match="1 of 2 are infinite"):
        metrics.fit_calibration([math.inf, 0.0], [True, False])


def test_brier_skill_matches_scikit_learn_and_sees_the_calibration() -> None:
    scores, labels = noisy_scores(200, 18)
    share = labels.mean()
    expected = 1 - brier_score_loss(labels, scores) / brier_score_loss(labels, np.full(200, share))
    assert metrics.brier_skill(scores, labels) == pytest.approx(expected)
    assert metrics.brier_skill(np.full(200, share), labels) == pytest.approx(0)
    assert metrics.brier_skill(scores**3, labels) < metrics.brier_skill(scores, labels), "the same ranking, worse"


# Names


def test_a_name_says_which_metric_two_models_are_compared_on() -> None:
    scores, labels = noisy_scores(200, 3)
    assert metrics.recall_name(metrics.point_name(80)) == "recall_at_p80"
    expected = ["recall_at_p60", "recall_at_p80", "served_recall_p60", "served_recall_p80"]
    assert metrics.comparable_names([60, 80])[-4:] == expected
    for name in metrics.comparable_names([60, 80]):
        assert metrics.comparable(name) is not None
    recall = metrics.comparable("recall_at_p60")
    assert recall is not None
    assert recall(scores, labels) == metrics.recall_at_precision(scores, labels, 0.6).recall
    served = metrics.comparable(metrics.served_name("p60"))
    assert served is not None
    assert served(scores - 0.5, labels) == metrics.apply_threshold(scores, labels, 0.5, 0.6).recall
    assert served(scores - math.inf, labels) == 0
    assert metrics.comparable("average_precision") is metrics.average_precision


@pytest.mark.parametrize(
    "name", ["recall_at_p", "recall_at_p0", "recall_at_p101", "recall_at_p8x", "p80", "accuracy_a"]
)
def test_another_name_is_no_metric_to_compare_on(name: str) -> None:
    assert metrics.comparable(name) is None


def test_names_as_people_read_them() -> None:
    names = ("recall_at_p80", "roc_auc", "average_precision", "calibration_error")
    shown = ["recall at 80 % precision", "ROC AUC", "average precision", "calibration error"]
    assert [metrics.label_of(name) for name in names] == shown
