from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from model.schema import POST_ID
from steps.fine_tune import methods
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


def test_a_model_that_repeats_a_one_sided_annotator_is_calibrated_to_people() -> None:
    """Of the posts to which the model gives 0.2 people find 3 in 4, of those with 0.05 one in 4."""
    model = np.repeat([[0.8, 0.2], [0.95, 0.05]], 800, axis=0)
    people = pd.Series([*([1, 1, 1, 0] * 100), *([None] * 400), *([1, 0, 0, 0] * 100), *([None] * 400)], dtype="Int8")
    found = methods.calibrated(model, people)
    assert found[:800, 1] == pytest.approx(0.75, abs=0.02)
    assert found[800:, 1] == pytest.approx(0.25, abs=0.02)
    assert found.sum(1) == pytest.approx(1.0)


def test_without_an_example_of_every_class_a_model_is_left_as_it_is() -> None:
    model = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    assert methods.calibrated(model, series(0, 1)) is model


def final_and_answers() -> tuple[pd.DataFrame, pd.Series]:
    """Four posts with every answer, one of which no final label, and one without an answer to `calm`."""
    gold = table("abcde", bright=[1, 1, 1, 0, 1], kind=[2, 2, 2, 0, 2], calm=[0, 0, 0, 1, None])
    return gold, series(1, 1, 0, None, 1)


def test_final_rates_are_counted_by_combination_and_drawn_to_the_average_where_few_are_seen() -> None:
    rates = methods.final_rates(*final_and_answers(), TASK)
    average = (2 + 1) / (3 + 2)
    assert rates.shape == (2, 3, 2)
    assert rates[1, 2, 0] == pytest.approx((2 + 2 * average) / (3 + 2))
    assert rates[0, 0, 1] == pytest.approx(average), "its only post has no final label"
    assert rates[0, 1, 1] == pytest.approx(average), "never seen"


def test_posteriors_are_bayes_rule_over_all_combinations() -> None:
    rates = np.array([[0.2, 0.4], [0.6, 0.9]])
    left, right = np.array([[0.3, 0.7]] * 3), np.array([[0.5, 0.5], [0.5, 0.5], [0.1, 0.9]])
    found = methods.posteriors([left, right], series(1, 0, None), rates)
    positive = np.array([[0.15 * 0.2, 0.15 * 0.4], [0.35 * 0.6, 0.35 * 0.9]])
    negative = np.array([[0.15 * 0.8, 0.15 * 0.6], [0.35 * 0.4, 0.35 * 0.1]])
    for row, joint in enumerate((positive, negative)):
        assert found[0][row] == pytest.approx(joint.sum(1) / joint.sum())
        assert found[1][row] == pytest.approx(joint.sum(0) / joint.sum())
    assert found[0][2] == pytest.approx([0.3, 0.7]), "no final label: as before"
    assert found[1][2] == pytest.approx([0.1, 0.9])


def test_a_final_label_that_tells_nothing_changes_nothing() -> None:
    before = [np.array([[0.3, 0.7]]), np.array([[0.2, 0.5, 0.3]])]
    after = methods.posteriors(before, series(1), np.full((2, 3), 0.4))
    assert [list(row[0]) for row in after] == [pytest.approx(list(row[0])) for row in before]


def test_relabelled_believes_who_was_right_on_the_gold_subset_and_people_most() -> None:
    """The annotator is always wrong about `bright` and always right about `calm`; the model knows neither."""
    ids = "abcdefgh"
    truth = [1, 0, 1, 0, 1, 0, 1, 0]
    labels = table(ids, bright=[1 - t for t in truth], calm=truth)
    gold = table(ids, bright=truth, calm=truth).iloc[:6]
    answers = {q.id: np.full((8, len(q.classes)), 1 / len(q.classes)) for q in TASK.questions}
    found = methods.relabelled(labels, answers, series(*[None] * 8), gold, TASK)
    assert found[POST_ID].tolist() == list(ids)
    assert found["bright"].tolist() == truth
    assert found["calm"].tolist() == truth
    against = gold.assign(bright=series(*[0] * 6))
    assert methods.relabelled(labels, answers, series(*[None] * 8), against, TASK)["bright"].tolist()[:6] == [0] * 6


def test_relabelled_reads_the_final_label() -> None:
    """Neither model nor annotator knows `calm`; the final label is positive exactly where it is 1."""
    ids = "abcdefghijklmnopqrst"
    truth = [k % 2 for k in range(20)]
    gold = table(ids, bright=[0] * 20, kind=[0] * 20, calm=truth).iloc[:18]
    answers = {q.id: np.full((20, len(q.classes)), 1 / len(q.classes)) for q in TASK.questions}
    answers["bright"], answers["kind"] = np.array([[0.98, 0.02]] * 20), np.array([[0.98, 0.01, 0.01]] * 20)
    found = methods.relabelled(table(ids), answers, series(*truth), gold, TASK)
    assert found["calm"].tolist() == truth


def test_relabelled_hears_a_model_that_goes_on_without_the_labels_that_tell_nothing() -> None:
    """The annotator says `calm` at random."""
    ids = "abcdefgh"
    labels = table(ids, bright=[1, 0] * 4, kind=[0, 1, 2, 0] * 2, calm=[1, 1, 0, 0] * 2)
    gold = table(ids, bright=[1, 0] * 4, kind=[0, 1, 2, 0] * 2, calm=[1, 0] * 4).iloc[:6]
    answers = {q.id: np.full((8, len(q.classes)), 1 / len(q.classes)) for q in TASK.questions}
    answers["calm"] = np.array([[0.1, 0.9], [0.9, 0.1]] * 4)
    trained = []

    def answers_of(stages: Sequence[pd.DataFrame]) -> dict[str, np.ndarray]:
        trained.extend(stages)
        return answers

    made, task = methods.taught("relabelled", labels, gold, series(*[None] * 8), TASK, answers_of)
    assert task == TASK
    whole, dropped = trained
    pd.testing.assert_frame_equal(whole, methods.with_gold(labels, gold))
    assert dropped["calm"].tolist() == [1, 0, 1, 0, 1, 0, pd.NA, pd.NA], "people's only"
    assert dropped["bright"].tolist() == labels["bright"].tolist()
    assert made["calm"].tolist() == [1, 0] * 4, "the model's, calibrated"
