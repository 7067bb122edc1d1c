from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from model.schema import POST_ID
from steps.study import methods
from tests.support.tiny import TASK


def series(*values: int | None) -> pd.Series:
    return pd.Series(values, dtype="Int8")


def table(ids: str, **columns: list[int | None]) -> pd.DataFrame:
    full = {id_: columns.get(id_, [None] * len(ids)) for id_ in TASK.question_ids}
    return pd.DataFrame({POST_ID: list(ids), **full}).astype(dict.fromkeys(TASK.question_ids, "Int8"))


def test_informedness_is_the_balanced_accuracy_adjusted_for_chance() -> None:
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 3, 500)
    annotated = np.where(rng.random(500) < 0.6, gold, rng.integers(0, 3, 500))
    matrix = confusion_matrix(gold, annotated, normalize="true")
    assert methods.informedness(matrix) == pytest.approx(balanced_accuracy_score(gold, annotated, adjusted=True))


def test_peoples_label_takes_the_annotators_place_and_only_where_there_is_one() -> None:
    labels = table("abc", bright=[1, 1, None], calm=[0, 0, 0])
    gold = table("cb", bright=[1, 0], calm=[None, 1])
    mixed = methods.with_gold(labels, gold)
    assert mixed[POST_ID].tolist() == ["a", "b", "c"]
    assert mixed["bright"].tolist() == [1, 0, 1]
    assert mixed["calm"].tolist() == [0, 1, 0]


def test_a_question_whose_labels_tell_nothing_is_dropped() -> None:
    labels = table("ab", bright=[1, 0], calm=[1, 1])
    kept = methods.without_uninformative(labels, {"bright": methods.MIN_INFORMEDNESS, "kind": 0.5, "calm": 0.09})
    assert kept["bright"].tolist() == [1, 0]
    assert kept["calm"].isna().all()
    assert kept["calm"].dtype == "Int8"


def test_weights_are_shares_of_the_most_informative_question_times_the_tasks_own() -> None:
    task = methods.weighted(TASK, {"bright": 0.8, "kind": 0.4, "calm": -0.1})
    assert [q.weight for q in task.questions] == pytest.approx([1.0, 0.5 * 0.5, 0.0])
    assert methods.weighted(TASK, dict.fromkeys(TASK.question_ids, 0.0)) == TASK


def test_posterior_is_bayes_rule() -> None:
    matrix = np.array([[0.9, 0.1], [0.4, 0.6]])
    found = methods.posterior(np.array([[0.5, 0.5], [0.2, 0.8], [0.3, 0.7]]), series(1, 0, None), matrix)
    assert found[0] == pytest.approx([0.1 / 0.7, 0.6 / 0.7])
    assert found[1] == pytest.approx([0.18 / 0.5, 0.32 / 0.5])
    assert found[2] == pytest.approx([0.3, 0.7]), "no answer: the model alone"


def test_an_answer_that_tells_nothing_leaves_the_models_probability() -> None:
    model = np.array([[0.25, 0.75]])
    assert methods.posterior(model, series(0), np.full((2, 2), 0.5)) == pytest.approx(model)


def test_relabelled_keeps_what_is_sure_and_peoples_own() -> None:
    labels = table("abcd", bright=[1, 0, 1, 0])
    gold = table("d", bright=[1])
    answers = {q.id: np.full((4, len(q.classes)), 1 / len(q.classes)) for q in TASK.questions}
    answers["bright"] = np.array([[0.05, 0.95], [0.95, 0.05], [0.5, 0.5], [0.95, 0.05]])
    found = methods.relabelled(labels, answers, gold, TASK)
    # one gold post: the annotator said 0 where people said 1, so its answers count for little
    assert found["bright"].tolist() == [1, 0, pd.NA, 1]
    assert found["calm"].isna().all(), "a coin is never sure"
