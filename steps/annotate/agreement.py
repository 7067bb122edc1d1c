"""How far an annotator can be trusted: its labels against people's, question by question (paper 3.3.1).

Everything here is a pure function of label tables: one row per post with `post_id` and one column per
question, class indices or NA. Posts are matched by `post_id`; those of one table only are left out.

A missing answer is no wrong answer: accuracy, precision, recall, F1, kappa and the confusion matrix
are over the posts that both have labelled, and the missing rate says how many of people's labelled
posts that leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, cohen_kappa_score, precision_recall_fscore_support

from model.errors import AnnotationError, plain
from model.schema import POST_ID
from model.task import Question, Task

_LEVEL = 0.95
_RESAMPLES = 1000
#: Added to every cell of a confusion matrix before its rows are made probabilities (Laplace's rule).
SMOOTHING = 1.0

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class QuestionAgreement:
    """One question's agreement; None where a figure is undefined, for want of posts or of a class."""

    question: str
    ask: str
    classes: tuple[str, ...]
    #: Posts that people labelled; of them answered by the annotator too.
    gold: int
    answered: int
    #: 1 - answered / gold.
    missing_rate: float | None
    accuracy: float | None
    #: Of the question's positive class against all others.
    precision: float | None
    recall: float | None
    f1: float | None
    kappa: float | None
    #: 95 %: Wilson's for accuracy and missing rate, percentiles of resampled posts for kappa and F1.
    accuracy_interval: Interval
    missing_interval: Interval
    kappa_interval: Interval
    f1_interval: Interval
    #: (C, C) posts by people's class (row) and the annotator's (column).
    counts: tuple[tuple[int, ...], ...]


def agreement(gold: pd.DataFrame, labels: pd.DataFrame, task: Task, *, seed: int = 0) -> list[QuestionAgreement]:
    """The agreement of each question, in the order of the task.

    Args:
        gold: people's labels; a question without a column counts as not labelled.
        labels: the annotator's.

    Raises:
        AnnotationError: a table holds a post twice, or a label that is no class of its question.
    """
    joined = _joined(checked_labels(gold, task, "gold"), checked_labels(labels, task, "labels"))
    return [_of_question(joined, question, seed) for question in task.questions]


def checked_labels(table: pd.DataFrame, task: Task, name: str) -> pd.DataFrame:
    """The table's questions as nullable Int64, by post; a question without a column is NA.

    Args:
        name: of the table, for the message.

    Raises:
        AnnotationError: a post stands there twice, a cell is no class index of its question, or no question has a
            column.
    """
    if task.questions and not set(task.question_ids) & set(table.columns):
        raise AnnotationError(
            f"{name}: no column for any of {', '.join(task.question_ids)} (found "
            f"{plain(', '.join(map(str, table.columns))):.500}): labels of this task are expected"
        )
    if table[POST_ID].duplicated().any():
        where = _row(table, table[POST_ID].duplicated().to_numpy())
        raise AnnotationError(f"{name}: {where} stands there twice; one row per post is expected")
    columns: dict[str, Any] = {}
    for question in task.questions:
        cells: Any = table[question.id] if question.id in table else pd.Series(pd.NA, index=table.index)
        try:
            column = pd.array(cells, dtype="Int64")
        except (TypeError, ValueError, OverflowError) as error:
            raise AnnotationError(
                f"{name}: question {question.id}: {error}; whole numbers are expected, the indices of its classes"
            ) from error
        wrong = ~column.isna() & ~np.isin(column.to_numpy(np.int64, na_value=0), range(len(question.classes)))
        if wrong.any():
            found, last = column[wrong][0], len(question.classes) - 1
            where = _row(table, wrong)
            raise AnnotationError(f"{name}: {where} question {question.id}: {found} is no class index of 0 to {last}")
        columns[question.id] = column
    return pd.DataFrame(columns, index=pd.Index(table[POST_ID], name=POST_ID))


def _row(table: pd.DataFrame, marked: np.ndarray) -> str:
    """The first marked row, counted from 1, and its post."""
    place = int(np.flatnonzero(marked)[0])
    return f"row {place + 1}, post {table[POST_ID].iloc[place]!r},"


def _joined(gold: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    return gold.add_suffix("_gold").join(labels.add_suffix("_label"), how="inner")


def _pairs(joined: pd.DataFrame, question: Question) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """People's and the annotator's classes where both are there, and how many posts people labelled."""
    gold, label = joined[f"{question.id}_gold"], joined[f"{question.id}_label"]
    both = gold.notna() & label.notna()
    return gold[both].to_numpy(np.int64), label[both].to_numpy(np.int64), int(gold.notna().sum())


def _of_question(joined: pd.DataFrame, question: Question, seed: int) -> QuestionAgreement:
    gold_N, label_N, n_gold = _pairs(joined, question)
    n = len(gold_N)
    counts_CC = _counts(gold_N, label_N, question)
    positive = question.positive_index
    figures: dict[str, float | None] = dict.fromkeys(("accuracy", "precision", "recall", "f1", "kappa"))
    kappa_interval = f1_interval = None
    if n:
        precision, recall, f1, _ = precision_recall_fscore_support(
            gold_N == positive, label_N == positive, average="binary", zero_division=np.nan
        )
        figures["accuracy"] = float(accuracy_score(gold_N, label_N))
        figures |= {"precision": _defined(precision), "recall": _defined(recall), "f1": _defined(f1)}
        figures["kappa"] = _kappa(gold_N, label_N, question)
        kappa_interval, f1_interval = _resampled(counts_CC, positive, seed)
    return QuestionAgreement(
        question=question.id,
        ask=question.ask,
        classes=question.classes,
        gold=n_gold,
        answered=n,
        missing_rate=1 - n / n_gold if n_gold else None,
        accuracy_interval=_wilson(int(np.trace(counts_CC)), n),
        missing_interval=_wilson(n_gold - n, n_gold),
        kappa_interval=kappa_interval if figures["kappa"] is not None else None,
        f1_interval=f1_interval if figures["f1"] is not None else None,
        counts=tuple(tuple(int(cell) for cell in row) for row in counts_CC),
        **figures,
    )


def _counts(gold_N: NDArray[np.int64], label_N: NDArray[np.int64], question: Question) -> NDArray[np.int64]:
    """(C, C) posts by people's class (row) and the annotator's (column)."""
    size = len(question.classes)
    return np.bincount(gold_N * size + label_N, minlength=size * size).reshape(size, size)


def _kappa(one_N: NDArray[np.int64], other_N: NDArray[np.int64], question: Question) -> float | None:
    if len(set(one_N) | set(other_N)) < 2:  # chance agrees always, and kappa is 0 / 0
        return None
    return float(cohen_kappa_score(one_N, other_N, labels=list(range(len(question.classes)))))


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _wilson(successes: int, n: int) -> Interval:
    if n == 0:
        return None
    interval = binomtest(successes, n).proportion_ci(_LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def _resampled(counts_CC: NDArray[Any], positive: int, seed: int) -> tuple[Interval, Interval]:
    """Percentile intervals of kappa and F1.

    Posts drawn with replacement are draws from the cells of the confusion matrix, and both figures are functions of
    it: the resamples are of the matrix.
    """
    total = int(counts_CC.sum())
    rng = np.random.default_rng(seed)
    draws_RCC = rng.multinomial(total, counts_CC.ravel() / total, size=_RESAMPLES).reshape(-1, *counts_CC.shape)
    gold_RC, label_RC = draws_RCC.sum(axis=2), draws_RCC.sum(axis=1)
    chance_R = (gold_RC * label_RC).sum(axis=1) / total**2
    seen_R = np.trace(draws_RCC, axis1=1, axis2=2) / total
    hit_R = draws_RCC[:, positive, positive]
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa_R = (seen_R - chance_R) / (1 - chance_R)
        f1_R = 2 * hit_R / (gold_RC[:, positive] + label_RC[:, positive])
    return _percentiles(kappa_R), _percentiles(f1_R)


def _percentiles(values: NDArray[Any]) -> Interval:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def table(questions: Sequence[QuestionAgreement]) -> pd.DataFrame:
    """The agreement in the form of the paper's 3.3.1: one row per question, accuracy first, shares of 1."""
    columns = ["question", "accuracy", "precision", "recall", "f1", "kappa", "missing_rate", "gold", "answered"]
    return pd.DataFrame([[getattr(question, column) for column in columns] for question in questions], columns=columns)


def confusion(
    gold: pd.DataFrame, labels: pd.DataFrame, task: Task, *, smoothing: float = SMOOTHING
) -> dict[str, NDArray[np.float64]]:
    """P(annotator's class | people's class) of each question, the input of methods that correct for label noise.

    Args:
        smoothing: added to every cell before the rows are normalised, so that no probability is 0 and a class without
            a gold label gives a row of equal parts. 0: none, and such a row is NaN.

    Returns:
        question id -> (C, C) float64, row: people's class, column: the annotator's; each row sums to 1. Missing
        answers are left out: given that there is an answer.

    Raises:
        AnnotationError: as `agreement`.
    """
    joined = _joined(checked_labels(gold, task, "gold"), checked_labels(labels, task, "labels"))
    found = {}
    for question in task.questions:
        gold_N, label_N, _ = _pairs(joined, question)
        counts_CC = _counts(gold_N, label_N, question) + float(smoothing)
        with np.errstate(invalid="ignore"):
            found[question.id] = counts_CC / counts_CC.sum(axis=1, keepdims=True)
    return found


@dataclass(frozen=True)
class Drift:
    """What changed in one question between two annotation runs."""

    question: str
    #: Posts that both runs answered, and the share of them that got another class.
    both: int
    changed: float | None
    #: After minus before, on the posts that people labelled and both runs answered; None without any.
    accuracy: float | None
    kappa: float | None
    #: After minus before, over the posts of both runs.
    missing_rate: float | None
    #: McNemar's exact test of "as often right as before"; None without gold.
    p_value: float | None


def drift(before: pd.DataFrame, after: pd.DataFrame, task: Task, gold: pd.DataFrame | None = None) -> list[Drift]:
    """The differences between two label tables over the posts that both hold; against `gold` where it is given.

    Raises:
        AnnotationError: as `agreement`.
    """
    runs = _joined(checked_labels(before, task, "before"), checked_labels(after, task, "after"))
    people = checked_labels(gold, task, "gold").reindex(runs.index) if gold is not None else None
    found = []
    for question in task.questions:
        old, new = runs[f"{question.id}_gold"], runs[f"{question.id}_label"]
        both = old.notna() & new.notna()
        changed = float((old[both] != new[both]).mean()) if both.any() else None
        missing = float(new.isna().mean() - old.isna().mean()) if len(runs) else None
        accuracy = kappa = p_value = None
        if people is not None:
            judged = both & people[question.id].notna()
            gold_N, old_N, new_N = (column[judged].to_numpy(np.int64) for column in (people[question.id], old, new))
            if len(gold_N):
                right_N, was_right_N = new_N == gold_N, old_N == gold_N
                accuracy = float(right_N.mean() - was_right_N.mean())
                better, worse = int((right_N & ~was_right_N).sum()), int((was_right_N & ~right_N).sum())
                p_value = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
                kappas = [_kappa(gold_N, column, question) for column in (old_N, new_N)]
                if kappas[0] is not None and kappas[1] is not None:
                    kappa = kappas[1] - kappas[0]
        found.append(Drift(question.id, int(both.sum()), changed, accuracy, kappa, missing, p_value))
    return found


@dataclass(frozen=True)
class Verdict:
    """A question below its floor."""

    question: str
    floor: float
    kappa: float | None

    def __str__(self) -> str:
        kappa = "cannot be measured (no gold label, or one class only)"
        if self.kappa is not None:
            kappa = f"is {self.kappa:.3f}"
        return f"question {self.question}: kappa against people's labels {kappa}, annotate.min_agreement {self.floor}"


def gate(
    labels: pd.DataFrame,
    questions: Sequence[QuestionAgreement],
    floors: float | Mapping[str, float] | None,
    action: Literal["warn", "drop", "fail"],
) -> tuple[pd.DataFrame, list[Verdict]]:
    """The labels that may be trained on, and the questions below their floor; one that cannot be measured is below.

    Args:
        floors: the least kappa, of every question or by question id (the others have none); None: no gate.
        action: `warn` leaves the labels as they are, `drop` takes the question's away, `fail` raises.

    Raises:
        AnnotationError: a floor for a question that the task does not have; or `fail`, and one is below its floor.
    """
    if floors is None:
        return labels, []
    ids = [question.question for question in questions]
    by_id = floors if isinstance(floors, Mapping) else dict.fromkeys(ids, floors)
    unknown = sorted(set(by_id) - set(ids))
    if unknown:
        raise AnnotationError(
            f"annotate.min_agreement: {', '.join(unknown)} is no question; the task has {', '.join(ids)}"
        )
    below = [
        Verdict(question.question, by_id[question.question], question.kappa)
        for question in questions
        if question.question in by_id and (question.kappa is None or question.kappa < by_id[question.question])
    ]
    if below and action == "fail":
        raise AnnotationError(
            "the annotator's labels are not good enough to train on: "
            + "; ".join(map(str, below))
            + ". Reword these questions (`agentps trial` compares wordings), take another model, or set "
            "annotate.on_low_agreement to drop or warn"
        )
    if action == "drop":
        empty = {verdict.question: pd.array([pd.NA] * len(labels), dtype="Int8") for verdict in below}
        labels = labels.assign(**empty)
    return labels, below
