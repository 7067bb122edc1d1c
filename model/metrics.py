"""Metrics of the final question and of the answers, the thresholds, and the calibration of the score.

Dimensions: N posts. Scores are probabilities in [0, 1], labels bool (or 0/1), True = positive. Every
metric takes `weights` (N,), how often each post counts (default: once): a bootstrap resample (see
`model.bootstrap`) is the same posts with other weights. Where a metric is undefined (no positives, a
single class, no posts) it is NaN; a threshold that cannot be fitted is a ValueError.
The names of the metrics, as reports, records, MLflow and options have them, are at the end of this file.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, Field

from .strict import Strict

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]

#: Beyond it exp() nears overflow; a score this close to 0 or 1 says no more.
_MAX_LOGIT = 700.0


class OperatingPoint(Strict):
    """What the rule `score >= threshold` does. In JSON an infinite threshold is the string "Infinity"."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    #: The precision that the threshold was fitted for.
    min_precision: float = Field(gt=0, le=1)
    #: inf: flag nothing.
    threshold: float
    recall: float = Field(ge=0, le=1)
    #: None where nothing is flagged.
    precision: float | None = Field(ge=0, le=1)


class Calibration(Strict):
    """score = sigmoid(scale * logit + bias). The scale is positive, so the order of posts never changes."""

    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    bias: float = Field(default=0.0, allow_inf_nan=False)

    def apply(self, logits: ArrayLike) -> FloatArray:
        """Scores in [0, 1] of logits of any shape. Logits that saturate float64 (sigmoid 0 or 1) tie."""
        shifted = self.scale * np.asarray(logits, dtype=np.float64) + self.bias
        # This form, for both signs: each operation in it rounds monotonically, so no two posts swap places.
        return 1.0 / (1.0 + np.exp(-np.clip(shifted, -_MAX_LOGIT, _MAX_LOGIT)))


class Curve(NamedTuple):
    """What each threshold would do: one entry per distinct score, highest first. Posts of one score go together."""

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
    score_N, label_N, weight_N = checked(scores, labels, weights)
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
    """The highest recall of any threshold whose precision is at least `min_precision`, which is in (0, 1].

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


def apply_threshold(
    scores: ArrayLike, labels: ArrayLike, threshold: float, min_precision: float, weights: ArrayLike | None = None
) -> OperatingPoint:
    """What a threshold fitted elsewhere does on these posts; its precision may be below `min_precision`.

    Raises:
        ValueError: there are no positives, or a score or the threshold is NaN.
    """
    if math.isnan(threshold):
        raise ValueError("the threshold is NaN")
    score_N, label_N, weight_N = checked(scores, labels, weights)
    if not label_N.any():
        raise ValueError(f"no positives among {len(label_N)} posts: recall is undefined")
    flagged_N = score_N >= threshold
    return OperatingPoint(
        min_precision=min_precision,
        threshold=float(threshold),
        recall=float(np.average(flagged_N[label_N], weights=weight_N[label_N])),
        precision=float(np.average(label_N[flagged_N], weights=weight_N[flagged_N])) if flagged_N.any() else None,
    )


def best_f1_threshold(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The threshold of the highest F1 on these posts (val); of equals the highest threshold.

    Raises:
        ValueError: there are no positives, or a score is NaN.
    """
    curve = threshold_curve(scores, labels, weights)
    f1 = 2 * curve.true_positives / (curve.flagged + _positives(curve))
    return float(curve.thresholds[np.argmax(f1)])


def f1(scores: ArrayLike, labels: ArrayLike, threshold: float, weights: ArrayLike | None = None) -> float:
    """F1 of the rule `score >= threshold`: 2 TP / (flagged + positives). NaN without positives."""
    score_N, label_N, weight_N = checked(scores, labels, weights)
    flagged_N = score_N >= threshold
    positives = weight_N[label_N].sum()
    if positives == 0:
        return math.nan
    return float(2 * weight_N[flagged_N & label_N].sum() / (weight_N[flagged_N].sum() + positives))


def flagged_recall(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Recall of the rule `score >= 0`, of scores less a threshold. NaN without positives."""
    score_N, label_N, weight_N = checked(scores, labels, weights)
    positives = weight_N[label_N].sum()
    return float(weight_N[label_N & (score_N >= 0)].sum() / positives) if positives > 0 else math.nan


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
    score_N, label_N, weight_N = checked(scores, labels, weights)
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


def fit_calibration(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Calibration:
    """Platt's scale and bias for the final logit, fitted on val by maximum likelihood.

    Platt's targets, (P + 1) / (P + 2) for the P positives and 1 / (Q + 2) for the Q negatives, keep
    the fit finite where one threshold separates the classes.

    Args:
        weights: (N,), for how many posts each stands; only their proportions count.

    Returns:
        The identity (scale 1, bias 0), with a warning in the log, where there is nothing to fit (one
        class only, or all logits equal) or the best scale is not positive: a model that ranks val
        backwards must look that way.

    Raises:
        ValueError: no posts, a logit that is not finite, or a label other than 0 and 1.
    """
    logit_N, label_N, weight_N = checked(logits, labels, weights)
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
                sample_weight=np.concatenate([weight_N * target_N, weight_N * (1 - target_N)]) / weight_N.mean(),
            )
    except ConvergenceWarning as warning:
        logger.warning("scores stay uncalibrated: %s", warning)
        return Calibration()
    scale = float(model.coef_[0, 0]) / spread
    if not scale > 0:
        logger.warning("scores stay uncalibrated: the best scale, %g, would reverse the ranking", scale)
        return Calibration()
    return Calibration(scale=scale, bias=float(model.intercept_[0]) - scale * float(logit_N.mean()))


def checked(
    scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[FloatArray, NDArray[np.bool_], FloatArray]:
    """The three as arrays (N,), weights of 1 where there are none.

    Raises:
        ValueError: no posts, arrays of different lengths, a NaN score, or a label other than 0 and 1.
    """
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


# --- the names of the metrics

AVERAGE_PRECISION, ROC_AUC, BRIER_SKILL, F1 = "average_precision", "roc_auc", "brier_skill", "f1"
CALIBRATION_ERROR, POSITIVE_RATE = "calibration_error", "positive_rate"
_RECALL, _SERVED, _ACCURACY = "recall_at_", "served_recall_", "accuracy_"

#: Of scores and labels, more is better; f1 takes scores less the model's own threshold, as served recalls do.
_COMPARABLE: Mapping[str, Callable[..., float]] = {
    AVERAGE_PRECISION: average_precision,
    BRIER_SKILL: brier_skill,
    F1: partial(f1, threshold=0.0),
    ROC_AUC: roc_auc,
}
_LABELS = {AVERAGE_PRECISION: "average precision", ROC_AUC: "ROC AUC", F1: "F1", POSITIVE_RATE: "positive posts"}


def point_name(percent: int) -> str:
    """The key of the operating point for a precision of `percent` %."""
    return f"p{percent}"


def recall_name(point: str) -> str:
    """Of the paper's recall at the precision of an operating point: `recall_at_p80` of `p80`."""
    return _RECALL + point


def served_name(point: str) -> str:
    """Of the recall with the threshold that is served for an operating point: `served_recall_p80` of `p80`."""
    return _SERVED + point


def served_point(name: str) -> str | None:
    """The reverse; None for another metric."""
    return name.removeprefix(_SERVED) if name.startswith(_SERVED) else None


def accuracy_name(question_id: str) -> str:
    return _ACCURACY + question_id


def is_accuracy(name: str) -> bool:
    return name.startswith(_ACCURACY)


def _recall_percent(name: str) -> int | None:
    percent = name.removeprefix(f"{_RECALL}p")
    return int(percent) if name == f"{_RECALL}p{percent}" and percent.isdecimal() and 0 < int(percent) <= 100 else None


def comparable_names(percents: Iterable[int]) -> list[str]:
    """What two models can be compared on, with recalls at these precisions."""
    points = [point_name(percent) for percent in percents]
    return [*_COMPARABLE, *map(recall_name, points), *map(served_name, points)]


def comparable(name: str) -> Callable[..., float] | None:
    """The metric of that name for `model.bootstrap.paired_gain`; None: two models are not compared on it."""
    percent = _recall_percent(name)
    if served_point(name) is not None:
        return flagged_recall
    return _COMPARABLE.get(name) if percent is None else partial(recall, min_precision=percent / 100)


def label_of(name: str) -> str:
    """The name as people read it."""
    percent = _recall_percent(name)
    return _LABELS.get(name, name.replace("_", " ")) if percent is None else f"recall at {percent} % precision"
