"""Metrics of the final question and of the answers, the thresholds, and the calibration of the score.

Dimensions: N posts. Scores are probabilities in [0, 1], labels bool (or 0/1), True = positive. Every
metric takes `weights` (N,), how often each post counts (default: once): a bootstrap resample is the
same posts with other weights. Where a metric is undefined (no positives, a single class, no posts) it
is NaN; a threshold that cannot be fitted is a ValueError.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]

#: Beyond it exp() nears overflow; a score this close to 0 or 1 says no more.
_MAX_LOGIT = 700.0


class OperatingPoint(BaseModel):
    """What the rule `score >= threshold` does. In JSON an infinite threshold is the string "Infinity"."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    #: The precision that the threshold was fitted for.
    min_precision: float = Field(gt=0, le=1)
    #: inf: flag nothing.
    threshold: float
    recall: float = Field(ge=0, le=1)
    #: None where nothing is flagged.
    precision: float | None = Field(ge=0, le=1)


class Calibration(BaseModel):
    """score = sigmoid(scale * logit + bias). The scale is positive, so the order of posts never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    bias: float = Field(default=0.0, allow_inf_nan=False)

    def apply(self, logits: ArrayLike) -> FloatArray:
        """Scores in [0, 1] of logits of any shape. Logits that saturate float64 (sigmoid 0 or 1) tie."""
        shifted = self.scale * np.asarray(logits, dtype=np.float64) + self.bias
        # This form, for both signs: each operation in it rounds monotonically, so no two posts swap places.
        return 1.0 / (1.0 + np.exp(-np.clip(shifted, -_MAX_LOGIT, _MAX_LOGIT)))


class Curve(NamedTuple):
    """What each threshold would do: one entry a distinct score, highest first. Posts of one score go together."""

    thresholds: FloatArray
    #: Weight of the positives at or above the threshold; its last entry is that of all positives.
    true_positives: FloatArray
    #: Weight of all posts at or above the threshold.
    flagged: FloatArray
    #: Sum of weight x score of these posts.
    score_sums: FloatArray

    @property
    def precision(self) -> FloatArray:
        """NaN where nothing is flagged (posts of weight 0 only)."""
        return np.divide(
            self.true_positives, self.flagged, out=np.full_like(self.flagged, np.nan), where=self.flagged > 0
        )

    @property
    def recall(self) -> FloatArray:
        """NaN where there are no positives."""
        positives = self.true_positives[-1]
        return self.true_positives / positives if positives > 0 else np.full_like(self.true_positives, np.nan)


def threshold_curve(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Curve:
    """The curve behind every rank metric. Scores that already descend are not sorted again.

    Raises:
        ValueError: no posts, arrays of different lengths, a NaN score, or a label other than 0 and 1.
    """
    score_N, label_N, weight_N = _checked(scores, labels, weights)
    if (score_N[1:] > score_N[:-1]).any():
        order = np.argsort(-score_N, kind="stable")
        score_N, label_N, weight_N = score_N[order], label_N[order], weight_N[order]
    ends = np.append(np.flatnonzero(score_N[1:] != score_N[:-1]), len(score_N) - 1)
    return Curve(
        thresholds=score_N[ends],
        true_positives=np.cumsum(weight_N * label_N)[ends],
        flagged=np.cumsum(weight_N)[ends],
        score_sums=np.cumsum(weight_N * score_N)[ends],
    )


def recall_at_precision(
    scores: ArrayLike, labels: ArrayLike, min_precision: float, weights: ArrayLike | None = None
) -> OperatingPoint:
    """The highest recall of any threshold whose precision is at least `min_precision`.

    Args:
        scores: (N,) probabilities in [0, 1].
        labels: (N,) bool, True = positive.
        min_precision: in (0, 1].

    Returns:
        The point for the rule `score >= threshold`, the rule that serving applies; of several with
        that recall the most precise. Where no threshold is precise enough: recall 0 at threshold inf
        (flag nothing).

    Raises:
        ValueError: there are no positives, so recall is undefined; a score is NaN; `min_precision` is
            outside (0, 1].
    """
    if not 0 < min_precision <= 1:
        raise ValueError(f"min_precision {min_precision}: expected a share above 0, at most 1")
    curve = threshold_curve(scores, labels, weights)
    positives = _positives(curve)
    precision = curve.precision
    eligible = np.where(precision >= min_precision, curve.true_positives, 0.0)
    best = int(np.argmax(eligible))  # the first of equals: the highest threshold, so the most precise
    if eligible[best] == 0:
        return OperatingPoint(min_precision=min_precision, threshold=math.inf, recall=0.0, precision=None)
    return OperatingPoint(
        min_precision=min_precision,
        threshold=float(curve.thresholds[best]),
        recall=float(eligible[best] / positives),
        precision=float(precision[best]),
    )


def recall(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None, *, min_precision: float) -> float:
    """The recall of `recall_at_precision`, as a metric: NaN without positives."""
    weighed = np.asarray(labels, dtype=np.float64) * (1.0 if weights is None else np.asarray(weights))
    return recall_at_precision(scores, labels, min_precision, weights).recall if weighed.any() else math.nan


def fit_threshold(scores: ArrayLike, labels: ArrayLike, min_precision: float) -> OperatingPoint:
    """The threshold to serve for a precision target: `recall_at_precision` on the posts of val.

    It is the best of many on val, so its precision on test may fall below the target: report what
    `apply_threshold` finds there.
    """
    return recall_at_precision(scores, labels, min_precision)


def apply_threshold(scores: ArrayLike, labels: ArrayLike, threshold: float, min_precision: float) -> OperatingPoint:
    """What a threshold fitted elsewhere does on these posts; its precision may be below `min_precision`.

    Raises:
        ValueError: there are no positives, or a score or the threshold is NaN.
    """
    if math.isnan(threshold):
        raise ValueError("the threshold is NaN")
    score_N, label_N, _ = _checked(scores, labels, None)
    if not label_N.any():
        raise ValueError(f"no positives among {len(label_N)} posts: recall is undefined")
    flagged_N = score_N >= threshold
    return OperatingPoint(
        min_precision=min_precision,
        threshold=float(threshold),
        recall=float(flagged_N[label_N].mean()),
        precision=float(label_N[flagged_N].mean()) if flagged_N.any() else None,
    )


def best_f1_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold of the highest F1 on these posts (val); of equals the highest threshold.

    Raises:
        ValueError: there are no positives, or a score is NaN.
    """
    curve = threshold_curve(scores, labels)
    f1 = 2 * curve.true_positives / (curve.flagged + _positives(curve))
    return float(curve.thresholds[np.argmax(f1)])


def f1(scores: ArrayLike, labels: ArrayLike, threshold: float, weights: ArrayLike | None = None) -> float:
    """F1 of the rule `score >= threshold`: 2 TP / (flagged + positives). NaN without positives."""
    score_N, label_N, weight_N = _checked(scores, labels, weights)
    flagged_N = score_N >= threshold
    positives = weight_N[label_N].sum()
    if positives == 0:
        return math.nan
    return float(2 * weight_N[flagged_N & label_N].sum() / (weight_N[flagged_N].sum() + positives))


def average_precision(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the precision-recall steps (scikit-learn's definition). NaN without positives."""
    curve = threshold_curve(scores, labels, weights)
    positives = curve.true_positives[-1]
    if positives == 0:
        return math.nan
    # Where nothing is flagged yet, precision is NaN and the step is 0. A tenth of scikit-learn's time, as below.
    return float(np.nan_to_num(curve.precision) @ np.diff(curve.true_positives, prepend=0.0) / positives)


def roc_auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Probability that a positive scores above a negative, ties half. NaN where one class is absent."""
    curve = threshold_curve(scores, labels, weights)
    positives, posts = curve.true_positives[-1], curve.flagged[-1]
    if positives == 0 or positives == posts:
        return math.nan
    true_positives = np.append(0.0, curve.true_positives)
    false_positives = np.append(0.0, curve.flagged - curve.true_positives)
    return float(np.trapezoid(true_positives, false_positives) / positives / (posts - positives))


def brier_skill(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """1 - (mean squared distance of score and label) / (that of the constant score "share of positives").

    1 is perfect, 0 no better than the constant, below 0 worse. Unlike the rank metrics it sees the
    calibration: two models of one ranking differ in nothing else. NaN where one class is absent.
    """
    score_N, label_N, weight_N = _checked(scores, labels, weights)
    share = float(np.average(label_N, weights=weight_N)) if weight_N.sum() > 0 else 0.0
    if share in (0.0, 1.0):
        return math.nan
    return float(1 - np.average((score_N - label_N) ** 2, weights=weight_N) / (share * (1 - share)))


def reliability(
    scores: ArrayLike, labels: ArrayLike, bins: int = 15, weights: ArrayLike | None = None
) -> tuple[FloatArray, FloatArray]:
    """Mean score and share of positives in `bins` bins of equal mass, highest scores first; (bins,) each.

    A bin's edge may fall on a post, or into posts of one score: these are shared between the two bins
    in proportion, so that the result depends neither on the order of ties nor on how a weight is written.
    """
    if bins < 1:
        raise ValueError(f"bins {bins}: at least 1 is needed")
    curve = threshold_curve(scores, labels, weights)
    mass = np.append(0.0, curve.flagged)
    edges = np.linspace(0.0, mass[-1], bins + 1)
    per_bin = mass[-1] / bins
    score_sums = np.interp(edges, mass, np.append(0.0, curve.score_sums))
    positives = np.interp(edges, mass, np.append(0.0, curve.true_positives))
    return np.diff(score_sums) / per_bin, np.diff(positives) / per_bin


def expected_calibration_error(
    scores: ArrayLike, labels: ArrayLike, bins: int = 15, weights: ArrayLike | None = None
) -> float:
    """Mean distance between score and share of positives over `bins` bins of equal mass (see `reliability`)."""
    mean_score, positive_share = reliability(scores, labels, bins, weights)
    return float(np.abs(mean_score - positive_share).mean())


def accuracy(predicted: ArrayLike, gold: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of the posts whose predicted class is the gold class; any number of classes. NaN without posts."""
    correct_N = np.asarray(predicted) == np.asarray(gold)
    weight_N = np.ones(len(correct_N)) if weights is None else np.asarray(weights, dtype=np.float64)
    return float(np.average(correct_N, weights=weight_N)) if weight_N.sum() > 0 else math.nan


def fit_calibration(logits: ArrayLike, labels: ArrayLike) -> Calibration:
    """Platt's scale and bias for the final logit, fitted on val by maximum likelihood.

    Platt's targets, (P + 1) / (P + 2) for the P positives and 1 / (Q + 2) for the Q negatives, keep
    the fit finite where one threshold separates the classes.

    Args:
        logits: (N,) before the sigmoid.
        labels: (N,) bool.

    Returns:
        The identity (scale 1, bias 0), with a warning in the log, where there is nothing to fit (one
        class only, or all logits equal) or the best scale is not positive: a model that ranks val
        backwards must look that way.

    Raises:
        ValueError: no posts, a logit that is not finite, or a label other than 0 and 1.
    """
    logit_N, label_N, _ = _checked(logits, labels, None)
    if not np.isfinite(logit_N).all():
        raise ValueError(f"logits: {int((~np.isfinite(logit_N)).sum())} of {len(logit_N)} are infinite")
    positives, spread = int(label_N.sum()), float(logit_N.std())
    if positives in (0, len(label_N)) or spread == 0:
        logger.warning("scores stay uncalibrated: %d of %d posts are positive, logits spread %g",
                       positives, len(label_N), spread)  # fmt: skip
        return Calibration()
    target_N = np.where(label_N, (positives + 1) / (positives + 2), 1 / (len(label_N) - positives + 2))
    unit_N = (logit_N - logit_N.mean()) / spread  # well conditioned, whatever the logits' scale
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-9)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            # A soft target is the same post twice: as a positive of weight t, as a negative of weight 1 - t.
            model.fit(
                np.concatenate([unit_N, unit_N])[:, None],
                np.repeat([1, 0], len(unit_N)),
                sample_weight=np.concatenate([target_N, 1 - target_N]),
            )
    except ConvergenceWarning as warning:
        logger.warning("scores stay uncalibrated: %s", warning)
        return Calibration()
    scale = float(model.coef_[0, 0]) / spread
    if not scale > 0:
        logger.warning("scores stay uncalibrated: the best scale, %g, would reverse the ranking", scale)
        return Calibration()
    return Calibration(scale=scale, bias=float(model.intercept_[0]) - scale * float(logit_N.mean()))


def resample_counts(size: int, n: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each of `size` posts is drawn, (size,), in each of `n` resamples with replacement.

    One seed gives every metric of the same posts the same resamples. One at a time: all at once, those of a hundred
    thousand posts take more memory than the posts.
    """
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield np.bincount(rng.integers(size, size=size), minlength=size)


def bootstrap_interval(
    fn: Callable[..., float], *arrays: NDArray[Any], n: int, seed: int, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of `fn(*arrays, weights=counts)` over `n` resamples of the posts.

    Args:
        fn: a metric of this module, or a partial one; the arrays are never copied or resorted, each
            resample is the same posts weighted by how often they were drawn.
        arrays: (N, ...) each; scores in descending order spare each call its sort.

    Returns:
        (low, high) over the resamples in which the metric is defined: those where it is NaN, for
        want of positives, are skipped. None where none is left (or n is 0).
    """
    if n == 0 or len(arrays[0]) == 0:
        return None
    values = np.array([fn(*arrays, weights=counts) for counts in resample_counts(len(arrays[0]), n, seed)])
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_gain(
    metric: Callable[..., float],
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    *,
    n: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """How much better `a` is than `b`: `metric(a) - metric(b)` on the same posts, and its percentile interval.

    Both models are measured on the same `n` resamples of the posts, so that what makes a resample
    easy or hard for both cancels out.

    Args:
        metric: `metric(scores, labels, weights=counts)`, higher is better; as in `bootstrap_interval`.
        scores_a: (N,), of the model that is judged.
        scores_b: (N,), of the model that it is compared with, in the same order of posts.
        labels: (N,) bool.

    Returns:
        (value, low, high). All NaN where the metric is undefined on the posts; the bounds are NaN
        where it is in every resample (those where it is NaN are skipped), or `n` is 0.

    Raises:
        ValueError: arrays of different lengths, no posts, or what `metric` raises.
    """
    a_N, label_N, _ = _checked(scores_a, labels, None)
    b_N, _, _ = _checked(scores_b, labels, None)
    order_a, order_b = (np.argsort(-scores, kind="stable") for scores in (a_N, b_N))  # once, not in every resample
    a_N, label_a, b_N, label_b = a_N[order_a], label_N[order_a], b_N[order_b], label_N[order_b]
    value = metric(a_N, label_a) - metric(b_N, label_b)
    if math.isnan(value) or n == 0:
        return value, math.nan, math.nan
    gains = np.array(
        [
            metric(a_N, label_a, weights=counts[order_a]) - metric(b_N, label_b, weights=counts[order_b])
            for counts in resample_counts(len(label_N), n, seed)
        ]
    )
    gains = gains[~np.isnan(gains)]
    if len(gains) == 0:
        return value, math.nan, math.nan
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    return value, float(low), float(high)


def _checked(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[FloatArray, NDArray[np.bool_], FloatArray]:
    score_N = np.asarray(scores, dtype=np.float64)
    label_N = np.asarray(labels)
    weight_N = np.ones(len(score_N)) if weights is None else np.asarray(weights, dtype=np.float64)
    if score_N.ndim != 1 or not score_N.shape == label_N.shape == weight_N.shape:
        raise ValueError(f"shapes differ: scores {score_N.shape}, labels {label_N.shape}, weights {weight_N.shape}")
    if len(score_N) == 0:
        raise ValueError("there are no posts")
    if np.isnan(score_N).any():
        raise ValueError(f"scores: {int(np.isnan(score_N).sum())} of {len(score_N)} are NaN")
    if label_N.dtype != np.bool_:
        if not np.isin(label_N, (0, 1)).all():
            raise ValueError("labels: expected 0 and 1 only")
        label_N = label_N.astype(np.bool_)
    return score_N, label_N, weight_N


def _positives(curve: Curve) -> float:
    positives = float(curve.true_positives[-1])
    if positives == 0:
        raise ValueError(f"no positives among {curve.flagged[-1]:g} posts: recall is undefined")
    return positives
