"""Agreement as scikit-learn measures it; missing answers are counted, not judged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from model.errors import AnnotationError
from model.task import Task
from steps.annotate.agreement import agreement, confusion, drift, gate, table

FINAL = {"ask": "Bad?", "classes": ["good", "bad"], "positive": "bad"}
TWO = {"id": "two", "ask": "?", "annotate": "?", "rule": "count >= 1"}
NEGATIVE = {"id": "negative", "ask": "?", "annotate": "?", "rule": "count >= 1", "positive": "no"}
THREE = {"id": "three", "ask": "?", "annotate": "?", "answer": "class", "classes": ["a", "b", "c"]}
TASK = Task.model_validate({"name": "t", "version": 1, "questions": [TWO, NEGATIVE, THREE], "final": FINAL})


def random_tables(seed: int, n: int = 400) -> tuple[pd.DataFrame, pd.DataFrame]:
    """People's and an annotator's labels with holes in both, in another order and with posts of one table only."""
    rng = np.random.default_rng(seed)
    columns: list[dict[str, Any]] = [{}, {}]
    for question in TASK.questions:
        size = len(question.classes)
        truth = rng.integers(size, size=n)
        other = np.where(rng.random(n) < 0.7, truth, rng.integers(size, size=n))
        for side, values in zip(columns, (truth, other), strict=True):
            side[question.id] = pd.array(np.where(rng.random(n) < 0.2, -1, values), dtype="Int8")
            side[question.id][side[question.id] == -1] = pd.NA
    ids = [f"p{number}" for number in range(n)]
    gold = pd.DataFrame({"post_id": ids} | columns[0]).iloc[: n - 30]
    labels = pd.DataFrame({"post_id": ids} | columns[1]).iloc[20:].sample(frac=1, random_state=seed)
    return gold, labels


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_scikit_learns_over_the_posts_that_both_labelled(seed: int) -> None:
    gold, labels = random_tables(seed)
    joined = gold.merge(labels, on="post_id", suffixes=("_g", "_l"))
    for found, question in zip(agreement(gold, labels, TASK), TASK.questions, strict=True):
        labelled = joined[joined[f"{question.id}_g"].notna()]
        both = labelled[labelled[f"{question.id}_l"].notna()]
        g, other = both[f"{question.id}_g"].astype(int), both[f"{question.id}_l"].astype(int)
        positive = question.positive_index
        assert (found.gold, found.answered) == (len(labelled), len(both))
        assert found.missing_rate == pytest.approx(1 - len(both) / len(labelled))
        assert found.accuracy == pytest.approx(metrics.accuracy_score(g, other))
        assert found.precision == pytest.approx(metrics.precision_score(g == positive, other == positive))
        assert found.recall == pytest.approx(metrics.recall_score(g == positive, other == positive))
        assert found.f1 == pytest.approx(metrics.f1_score(g == positive, other == positive))
        assert found.kappa == pytest.approx(metrics.cohen_kappa_score(g, other))
        assert np.array_equal(found.counts, metrics.confusion_matrix(g, other))
        for value, interval in (
            (found.accuracy, found.accuracy_interval),
            (found.kappa, found.kappa_interval),
            (found.f1, found.f1_interval),
            (found.missing_rate, found.missing_interval),
        ):
            assert value is not None
            assert interval is not None
            assert interval[0] < value < interval[1]


def test_wilsons_interval_is_as_by_hand() -> None:
    gold = pd.DataFrame({"post_id": list("abcdefghij"), "two": [1] * 10})
    labels = gold.assign(two=[1] * 8 + [0, 0])
    z, n, p = 1.959963984540054, 10, 0.8
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = agreement(gold, labels, TASK)[0]
    assert found.accuracy_interval == (pytest.approx(middle - half), pytest.approx(middle + half))


def test_intervals_from_the_matrix_are_those_of_resampled_posts() -> None:
    gold, labels = random_tables(7, n=300)
    joined = gold.merge(labels, on="post_id", suffixes=("_g", "_l"))[["two_g", "two_l"]].dropna().astype(int).to_numpy()
    rng = np.random.default_rng(1)
    kappas = [metrics.cohen_kappa_score(*joined[rng.integers(len(joined), size=len(joined))].T) for _ in range(800)]
    found = agreement(gold, labels, TASK)[0].kappa_interval
    assert found == (
        pytest.approx(np.quantile(kappas, 0.025), abs=0.03),
        pytest.approx(np.quantile(kappas, 0.975), abs=0.03),
    )


def test_what_cannot_be_measured_is_none_and_not_a_number() -> None:
    gold = pd.DataFrame({"post_id": ["a", "b"], "two": [0, 0], "three": pd.array([None, None], dtype="Int8")})
    labels = pd.DataFrame({"post_id": ["a", "b"], "two": [0, 0], "three": [1, 2]})
    two, negative, three = agreement(gold, labels, TASK)
    assert (two.accuracy, two.kappa, two.precision, two.recall, two.kappa_interval) == (1.0, None, None, None, None)
    for nothing in (negative, three):
        assert (nothing.gold, nothing.accuracy, nothing.kappa, nothing.missing_rate) == (0, None, None, None)


def test_an_annotator_that_answers_nothing_is_missing_and_not_wrong() -> None:
    gold = pd.DataFrame({"post_id": ["a", "b"], "two": [0, 1]})
    labels = gold.assign(two=pd.array([None, None], dtype="Int8"))
    two = agreement(gold, labels, TASK)[0]
    assert (two.gold, two.answered, two.missing_rate, two.accuracy) == (2, 0, 1.0, None)


def test_the_table_has_one_row_a_question_with_accuracy_first() -> None:
    gold, labels = random_tables(0)
    found = table(agreement(gold, labels, TASK))
    assert list(found.columns[:2]) == ["question", "accuracy"]
    assert found["question"].tolist() == ["two", "negative", "three"]


def test_confusion_is_row_normalised_and_smoothed_as_documented() -> None:
    gold = pd.DataFrame({"post_id": list("abcde"), "two": [0, 0, 0, 1, 1], "three": [0, 0, 0, 0, 0]})
    labels = pd.DataFrame({"post_id": list("abcde"), "two": [0, 0, 1, 1, None], "three": [0, 0, 1, 2, None]})
    found = confusion(gold, labels, TASK)
    np.testing.assert_allclose(found["two"], [[3 / 5, 2 / 5], [1 / 3, 2 / 3]])  # (2 + 1) / (3 + 2); (0 + 1) / (1 + 2)
    np.testing.assert_allclose(found["three"], [[3 / 7, 2 / 7, 2 / 7], [1 / 3] * 3, [1 / 3] * 3])
    assert found["two"].dtype == np.float64
    plain = confusion(gold, labels, TASK, smoothing=0)
    np.testing.assert_allclose(plain["two"], [[2 / 3, 1 / 3], [0, 1]])
    assert np.isnan(plain["three"][1:]).all()


def test_confusion_without_smoothing_is_scikit_learns() -> None:
    gold, labels = random_tables(3)
    joined = gold.merge(labels, on="post_id", suffixes=("_g", "_l"))[["three_g", "three_l"]].dropna().astype(int)
    expected = metrics.confusion_matrix(joined["three_g"], joined["three_l"], normalize="true")
    np.testing.assert_allclose(confusion(gold, labels, TASK, smoothing=0)["three"], expected)


def test_drift_is_what_changed_between_two_runs() -> None:
    posts = list("abcdef")
    gold = pd.DataFrame({"post_id": posts, "two": [0, 0, 1, 1, 1, None]})
    before = pd.DataFrame({"post_id": posts, "two": [0, 1, 1, 0, None, 1]})
    after = pd.DataFrame({"post_id": posts, "two": [0, 0, 1, 0, 1, 0]})
    two = drift(before, after, TASK, gold)[0]
    assert (two.both, two.changed) == (5, pytest.approx(2 / 5))
    assert two.accuracy == pytest.approx(3 / 4 - 2 / 4)  # a, b, c, d
    assert two.kappa == pytest.approx(0.5 - 0.0)
    assert two.missing_rate == pytest.approx(-1 / 6)
    assert two.p_value == pytest.approx(1.0)  # one better, none worse
    without = drift(before, after, TASK)[0]
    assert (without.changed, without.accuracy, without.p_value) == (pytest.approx(2 / 5), None, None)


def test_a_steady_change_is_told_from_chance() -> None:
    posts = [f"p{number}" for number in range(20)]
    gold = pd.DataFrame({"post_id": posts, "two": [0, 1] * 10})
    better = drift(gold.assign(two=1 - gold["two"]), gold, TASK, gold)[0]
    assert better.p_value == pytest.approx(2 * 0.5**20)


# --- the gate


def measured() -> tuple[pd.DataFrame, list[Any]]:
    posts = list("abcd")
    gold = pd.DataFrame({"post_id": posts, "two": [0, 0, 1, 1], "negative": [0, 1, 0, 1], "three": [None] * 4})
    labels = pd.DataFrame({"post_id": posts, "two": [0, 0, 1, 1], "negative": [0, 0, 1, 1], "three": [0, 1, 2, 0]})
    return labels, agreement(gold, labels, TASK)  # kappa 1, 0 and unknown


def test_a_warning_leaves_the_labels_as_they_are() -> None:
    labels, questions = measured()
    kept, below = gate(labels, questions, 0.5, "warn")
    assert kept is labels
    assert [verdict.question for verdict in below] == ["negative", "three"]
    assert "kappa against people's labels is 0.000, annotate.min_agreement 0.5" in str(below[0])
    assert "cannot be measured" in str(below[1])


def test_a_dropped_question_is_left_without_labels_and_the_others_are_kept() -> None:
    labels, questions = measured()
    kept, _ = gate(labels, questions, {"negative": 0.1}, "drop")
    assert kept["negative"].isna().all()
    assert kept["two"].tolist() == labels["two"].tolist()
    assert kept["three"].tolist() == labels["three"].tolist()
    assert labels["negative"].notna().all()


def test_a_fatal_gate_names_every_question_below_its_floor() -> None:
    labels, questions = measured()
    with pytest.raises(AnnotationError, match=r"negative.*three.*agentps trial"):
        gate(labels, questions, 0.5, "fail")
    assert gate(labels, questions, {"two": 0.99}, "fail")[1] == []


def test_without_floors_nothing_is_judged() -> None:
    labels, questions = measured()
    kept, below = gate(labels, questions, None, "fail")
    assert kept is labels
    assert below == []


def test_a_floor_of_an_unknown_question_is_named() -> None:
    labels, questions = measured()
    with pytest.raises(AnnotationError, match=r"ugly is no question; the task has two, negative, three"):
        gate(labels, questions, {"ugly": 0.5}, "warn")


def test_a_post_that_stands_twice_and_a_class_that_is_none_are_named() -> None:
    labels, _ = measured()
    with pytest.raises(AnnotationError, match=r"gold: row \d, post 'a', stands there twice"):
        agreement(pd.concat([labels, labels]), labels, TASK)
    with pytest.raises(AnnotationError, match="labels: row 1, post 'a', question three: 3 is no class index of 0 to 2"):
        agreement(labels, labels.assign(three=3), TASK)
