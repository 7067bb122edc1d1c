"""The numbers of a model on the test split: what `register` stores and the gate of `promote` compares.

A predictions table has one row per post: post_id, split, label (Int8, NA: people gave no final label), one Int8
column of gold labels per question, and the model's columns (`model.columns`): logit, score and, where the variant has
heads for the questions, an answer and its probability per question. Where posts were drawn for people with different
probabilities (`agentps queue`), it also has `inclusion_probability`, and each post weighs 1 / probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model import metrics
from model.bootstrap import bootstrap_interval
from model.columns import SCORE, answer_column, probability_column
from model.errors import DataError
from model.metrics import Calibration, OperatingPoint
from model.schema import LABEL, PROBABILITY, TEST, VAL
from model.settings import Variant, answers_questions
from model.task import Task
from steps.evaluate.promise import posts_needed, promised_threshold
from steps.settings import EvaluateSettings
from steps.survey import weights_of


class _Frozen(BaseModel):
    # A threshold of inf is the string "Infinity" in JSON, which has no number for it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Metric(_Frozen):
    """A value on test and its 95 % bootstrap interval; None where undefined, or no resample was asked for."""

    value: float | None
    low: float | None = None
    high: float | None = None


class EvalReport(_Frozen):
    """One model on the labelled posts of the test split. Write it with `model_dump_json`: thresholds may be inf."""

    task: str
    task_fingerprint: str
    variant: Variant
    seed: int
    backbone: str
    annotator: str
    #: Labelled posts of test, the positives among them, and the posts left out for want of a final label.
    n_posts: int
    n_positive: int
    n_unlabelled: int
    #: How many posts those of test stand for, where these were drawn for people; None: themselves.
    stand_for: int | None = None
    #: The same of val, on which thresholds and calibration are fitted.
    n_val: int
    n_val_unlabelled: int
    #: By their names in `model.metrics`. `recall_at_p<percent>` is the paper's R@P: the highest recall of any
    #: threshold of test's scores that is precise enough on test. `accuracy_<q>`, where the variant answers questions,
    #: is over the posts with a gold label for q.
    metrics: dict[str, Metric]
    #: Keyed "p<percent>": the threshold that val promises, its recall and precision as measured on test.
    operating_points: dict[str, OperatingPoint]
    #: Of these promises (see `steps.evaluate.promise`); None: the best threshold on val, which promises nothing.
    confidence: float | None = None
    #: For each that is not promised about how many labelled posts of val that would take; None: no number would do.
    posts_needed: dict[str, int | None] = {}
    #: The threshold of the highest F1 on val; `metrics["f1"]` is its F1 on test.
    f1_threshold: float
    calibration: Calibration
    #: Share of the test posts counted here without a gold label, by question.
    missing_share: dict[str, float]
    #: Share of the training posts without an annotator's answer, by question.
    annotated_missing_share: dict[str, float]

    def mlflow_metrics(self) -> dict[str, float]:
        """`test_<metric>`, `test_<metric>_low` and `_high`; what is undefined is left out."""
        return {
            f"test_{name}{suffix}": number
            for name, metric in self.metrics.items()
            for suffix, number in (("", metric.value), ("_low", metric.low), ("_high", metric.high))
            if number is not None and math.isfinite(number)
        }

    @property
    def guessing(self) -> float:
        """The average precision of a model that knows nothing: the share of positives."""
        share = self.metrics[metrics.POSITIVE_RATE].value if metrics.POSITIVE_RATE in self.metrics else None
        return self.n_positive / self.n_posts if share is None else share

    @property
    def counted(self) -> str:
        """How the posts of test count, where it is not once each; else empty."""
        return "" if self.stand_for is None else f"drawn for people, they stand for about {self.stand_for:,}"

    def unpromised(self, point: str) -> str:
        """Why the operating point flags nothing."""
        if self.confidence is None:
            return "no threshold is precise enough on val"
        needed = self.posts_needed.get(point)
        return f"not promised; about {needed:,} posts of val would do" if needed else "no part of val is precise enough"

    def _named(self, key: str) -> str:
        value = self.metrics[key].value
        return f"{metrics.label_of(key)} {'-' if value is None else format(value, '.3f')}"

    def table(self) -> str:
        """The recall-at-precision table for a terminal, without a final line break."""
        lines = [
            f"{self.task} · {self.variant} · {self.n_posts:,} test posts, {self.n_positive:,} positive · "
            f"{self._named(metrics.AVERAGE_PRECISION)}, by guessing {self.guessing:.3f}",
            *([f"the test posts were {self.counted}"] if self.counted else []),
            f"{'precision':>9}  {'recall on test':<22}  with the threshold from val",
        ]
        for key, point in self.operating_points.items():
            metric = self.metrics[metrics.recall_name(key)]
            interval = "" if metric.low is None else f" [{_percent(metric.low)}, {_percent(metric.high)}]"
            served = (
                self.unpromised(key)
                if math.isinf(point.threshold)
                else f"recall {_percent(point.recall)}, precision {_percent(point.precision)}"
            )
            lines.append(f"{point.min_precision:>9.0%}  {_percent(metric.value) + interval:<22}  {served}")
        lines.append(" · ".join(self._named(key) for key in (metrics.F1, metrics.ROC_AUC)))
        return "\n".join(lines)


def build_report(
    val: pd.DataFrame,
    test: pd.DataFrame,
    task: Task,
    settings: EvaluateSettings,
    *,
    variant: Variant,
    seed: int,
    backbone: str,
    annotator: str,
    annotated_missing_share: Mapping[str, float],
    calibration: Calibration,
    bootstrap_seed: int = 0,
) -> EvalReport:
    """Fit the thresholds on `val` and measure on `test`; both are predictions tables, scores calibrated.

    Raises:
        DataError: a column is missing, a score is NaN, or a split has no labelled positive post.
    """
    n_val, n_test = len(val), len(test)
    val = labelled(val, VAL, task, variant)
    test = labelled(test, TEST, task, variant).sort_values(
        SCORE, ascending=False, kind="stable"
    )  # sorted: fast bootstrap
    val_scores, val_labels = score_arrays(val)
    scores, labels = score_arrays(test)
    val_weights, weights = weights_of(val), weights_of(test)
    chances = val[PROBABILITY].to_numpy(np.float64) if PROBABILITY in val else None

    def measure(fn: Callable[..., float], *arrays: NDArray[Any], of: NDArray[np.bool_] | None = None) -> Metric:
        """of: the test posts that the arrays are of; None: all."""
        weighed = weights if weights is None or of is None else weights[of]
        value = fn(*arrays, weights=weighed) if len(arrays[0]) else math.nan
        interval = bootstrap_interval(fn, *arrays, n=settings.bootstrap, seed=bootstrap_seed, weights=weighed)
        if math.isnan(value) or interval is None:
            return Metric(value=None if math.isnan(value) else value)
        return Metric(value=value, low=interval[0], high=interval[1])

    f1_threshold = metrics.best_f1_threshold(val_scores, val_labels, val_weights)
    found: dict[str, Metric] = {}
    points: dict[str, OperatingPoint] = {}
    needed: dict[str, int | None] = {}
    for percent in settings.precisions:
        share, point = percent / 100, metrics.point_name(percent)
        found[metrics.recall_name(point)] = measure(partial(metrics.recall, min_precision=share), scores, labels)
        threshold = promised_threshold(val_scores, val_labels, share, settings.confidence, probability=chances)
        points[point] = metrics.apply_threshold(scores, labels, threshold, share, weights)
        found[metrics.served_name(point)] = measure(metrics.flagged_recall, scores - threshold, labels)
        if math.isinf(threshold):
            needed[point] = posts_needed(val_scores, share, settings.confidence)
    found[metrics.F1] = measure(partial(metrics.f1, threshold=f1_threshold), scores, labels)
    found[metrics.AVERAGE_PRECISION] = measure(metrics.average_precision, scores, labels)
    found[metrics.ROC_AUC] = measure(metrics.roc_auc, scores, labels)
    found[metrics.BRIER_SKILL] = measure(metrics.brier_skill, scores, labels)
    found[metrics.CALIBRATION_ERROR] = measure(metrics.expected_calibration_error, scores, labels)
    found[metrics.POSITIVE_RATE] = measure(_positive_rate, labels)
    if answers_questions(variant):
        for question in task.questions:
            known = test[question.id].notna().to_numpy(bool)
            answered = test[known]
            predicted = pd.Categorical(answered[answer_column(question.id)], categories=question.classes).codes
            gold = answered[question.id].to_numpy(int)
            found[metrics.accuracy_name(question.id)] = measure(metrics.accuracy, predicted, gold, of=known)
    return EvalReport(
        task=task.name,
        task_fingerprint=task.fingerprint,
        variant=variant,
        seed=seed,
        backbone=backbone,
        annotator=annotator,
        n_posts=len(test),
        n_positive=int(labels.sum()),
        n_unlabelled=n_test - len(test),
        stand_for=None if weights is None else round(float(weights.sum())),
        n_val=len(val),
        n_val_unlabelled=n_val - len(val),
        metrics=found,
        operating_points=points,
        confidence=settings.confidence,
        posts_needed=needed,
        f1_threshold=f1_threshold,
        calibration=calibration,
        missing_share={question_id: float(test[question_id].isna().mean()) for question_id in task.question_ids},
        annotated_missing_share=dict(annotated_missing_share),
    )


def labelled(predictions: pd.DataFrame, split: str, task: Task, variant: Variant) -> pd.DataFrame:
    """The rows of a predictions table that have a final label.

    Raises:
        DataError: a column is missing, a score is NaN, or no post has the positive label.
    """
    needed = [LABEL, SCORE, *task.question_ids]
    if answers_questions(variant):
        needed += [name(id_) for id_ in task.question_ids for name in (answer_column, probability_column)]
    missing = [name for name in needed if name not in predictions]
    if missing:
        raise DataError(
            f"predictions for {split}: columns {missing} are missing (found {list(predictions)}); variant {variant} of "
            f"task {task.name} needs them: score the posts again with a checkpoint of this variant and task"
        )
    rows = predictions[predictions[LABEL].notna()]
    n_nan = int(rows[SCORE].isna().sum())
    if n_nan:
        raise DataError(
            f"predictions for {split}: {n_nan} of {len(rows)} scores are NaN, so training diverged; "
            "lower fine_tune.learning_rate or max_grad_norm and train again"
        )
    if not (rows[LABEL] == 1).any():
        raise DataError(
            f"split {split}: none of its {len(rows)} labelled posts is {task.final.positive!r} (label 1), so recall is "
            f"undefined; add positive posts to {split} in the manifest, or change its `split` column"
        )
    return rows


def score_arrays(rows: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(scores, labels) of labelled rows, (N,) each."""
    return rows[SCORE].to_numpy(np.float64), (rows[LABEL] == 1).to_numpy(bool)


def _positive_rate(labels: NDArray[np.bool_], weights: NDArray[np.int64] | None = None) -> float:
    return float(np.average(labels, weights=weights))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
