"""What can be done about an annotator's errors, given people's labels of a few posts (the gold subset).

plain       the annotator's labels as they are
gold        people's label wherever there is one
weighted    gold, and each question's loss is weighted by what its labels tell (see `informedness`)
dropped     gold, and a question whose labels tell next to nothing keeps people's labels only
relabelled  gold, a first training; dropped, a second one that goes on from its weights; then every label is made anew
            from what this model says, what the annotator said and what the final label is, weighed by how often each
            errs; a third training on these, from nothing

Dimensions: N posts · C classes of one question
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from model.schema import POST_ID
from model.settings import LabelMethod
from model.task import Task
from steps.annotate.agreement import confusion

#: A question whose informedness is below this is dropped: its labels are worth less than their noise costs.
MIN_INFORMEDNESS = 0.1
#: Posts of the average rate that a combination of answers is taken to have beside those that were seen.
_PRIOR_POSTS = 2.0


def taught(
    method: LabelMethod,
    labels: pd.DataFrame,
    gold: pd.DataFrame,
    final: pd.Series,
    task: Task,
    answers_of: Callable[[Sequence[pd.DataFrame]], dict[str, NDArray[np.float64]]],
) -> tuple[pd.DataFrame, Task]:
    """The process labels to train on by `method`, and the task with its question weights.

    Args:
        labels: the annotator's: post_id and one nullable Int8 column per question.
        gold: people's, of some of these posts.
        final: (N,) the final labels, 1, 0 or NA, row by row of `labels`.
        answers_of: trains on each of these labels in turn, on the weights that the one before left, and gives the last
            model's answers to every post of them, by question (N, C).
    """
    if method == "plain":
        return labels, task
    told = question_informedness(labels, gold, task)
    if method == "weighted":
        return with_gold(labels, gold), weighted(task, told)
    mixed, dropped = with_gold(labels, gold), with_gold(without_uninformative(labels, told), gold)
    if method == "relabelled":
        # Labels that tell nothing teach a question's head the likelier answer. What the other questions taught lets the
        # second training find the right one from people's few labels; from nothing, it often would not.
        return relabelled(labels, answers_of([mixed, dropped]), final, gold, task), task
    return dropped if method == "dropped" else mixed, task


def informedness(matrix: NDArray[np.float64]) -> float:
    """What an answer tells: 0 as much as a coin, 1 everything. For two classes Youden's J, TPR + TNR - 1."""
    classes = len(matrix)
    return float((np.trace(matrix) - 1) / (classes - 1))


def question_informedness(labels: pd.DataFrame, gold: pd.DataFrame, task: Task) -> dict[str, float]:
    """By question, of the annotator's `labels` over the posts of `gold`."""
    return {id_: informedness(matrix) for id_, matrix in confusion(gold, labels, task).items()}


def with_gold(labels: pd.DataFrame, gold: pd.DataFrame) -> pd.DataFrame:
    """`labels` with people's label in place of the annotator's wherever `gold` has one."""
    mixed = labels.set_index(POST_ID)
    people = gold.set_index(POST_ID).reindex(mixed.index)
    for column in people:
        mixed[column] = people[column].fillna(mixed[column])
    return mixed.reset_index()


def without_uninformative(labels: pd.DataFrame, told: dict[str, float]) -> pd.DataFrame:
    """`labels` without those of the questions that tell less than MIN_INFORMEDNESS."""
    return labels.assign(
        **{
            id_: pd.array([pd.NA] * len(labels), dtype="Int8")
            for id_, value in told.items()
            if value < MIN_INFORMEDNESS
        }
    )


def weighted(task: Task, told: dict[str, float]) -> Task:
    """The task with each question's weight multiplied by its informedness, as a share of the most informative one's."""
    most = max(told.values())
    return with_weights(
        task, {q.id: q.weight * max(told[q.id], 0.0) / most if most > 0 else q.weight for q in task.questions}
    )


def with_weights(task: Task, weights: dict[str, float]) -> Task:
    """The task with other weights of its questions, by id."""
    questions = tuple(q.model_copy(update={"weight": weights[q.id]}) for q in task.questions)
    return task.model_copy(update={"questions": questions})


def calibrated(probability_NC: NDArray[np.float64], people: pd.Series) -> NDArray[np.float64]:
    """(N, C): a model's probabilities, fitted to what people say where they do.

    A model that learned from an annotator gives the annotator's answer, not people's, and is as unsure of it as the
    annotator errs. A logistic regression on its log-probabilities, over the posts that people labelled, undoes both.

    Args:
        people: (N,) classes, NA where people gave none; where one of the C classes is absent, nothing is fitted.
    """
    known = people.notna().to_numpy()
    classes = people[known].to_numpy(int)
    if len(np.unique(classes)) < probability_NC.shape[1]:
        return probability_NC
    logs_NC = np.log(probability_NC.clip(1e-9))
    regression = LogisticRegression(max_iter=1000).fit(logs_NC[known], classes)
    return np.asarray(regression.predict_proba(logs_NC))


def final_rates(gold: pd.DataFrame, final: pd.Series, task: Task) -> NDArray[np.float64]:
    """(C_1, …, C_Q): how often the final label is positive, by the combination of people's answers.

    Combinations that the gold subset shows rarely or never are drawn towards the rate of all its posts.

    Args:
        gold: people's answers; those of posts that lack one are left out.
        final: (len(gold),) 1 or 0, NA where there is none.
    """
    shape = tuple(len(question.classes) for question in task.questions)
    answers = gold[list(task.question_ids)]
    whole = (answers.notna().all(axis=1) & final.notna()).to_numpy()
    labels = final[whole].to_numpy(float)
    cells = np.ravel_multi_index(tuple(answers[whole].to_numpy(int).T), shape)
    size = int(np.prod(shape))
    rate = (labels.sum() + 1) / (len(labels) + 2)
    positives = np.bincount(cells, labels, size) + _PRIOR_POSTS * rate
    return (positives / (np.bincount(cells, minlength=size) + _PRIOR_POSTS)).reshape(shape)


def posteriors(
    probabilities: Sequence[NDArray[np.float64]], final: pd.Series, rates: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """By question (N, C): its probabilities once the final label is known, too (Bayes' rule over all combinations).

    Args:
        probabilities: by question (N, C), before; independent of one another, given the post.
        final: (N,) 1 or 0; where it is NA nothing changes.
        rates: see `final_rates`.
    """
    n_posts, n_questions = len(final), len(probabilities)
    joint = np.ones((n_posts, *rates.shape))
    for axis, probability_NC in enumerate(probabilities):
        joint *= probability_NC.reshape(n_posts, *(-1 if k == axis else 1 for k in range(n_questions)))
    likelihood = {1: rates, 0: 1 - rates}
    for label, of_combination in likelihood.items():
        joint[(final == label).fillna(False).to_numpy(bool)] *= of_combination
    joint /= joint.sum(axis=tuple(range(1, n_questions + 1)), keepdims=True)
    axes = range(1, n_questions + 1)
    return [joint.sum(axis=tuple(other for other in axes if other != axis)) for axis in axes]


def relabelled(
    labels: pd.DataFrame,
    answers: dict[str, NDArray[np.float64]],
    final: pd.Series,
    gold: pd.DataFrame,
    task: Task,
) -> pd.DataFrame:
    """New labels for every post of `labels`.

    Three witnesses speak of each answer, and are taken to err independently: a first model, calibrated; the annotator,
    by its confusion matrix; and the final label. How far each is to be believed is counted on the gold subset.

    Args:
        labels: the annotator's, as they came.
        answers: by question id, a first model's probabilities (N, C), row by row of `labels`.
        final: (N,) the final labels, 1, 0 or NA, row by row of `labels`.
        gold: people's labels of some of these posts, which win.
    """
    matrices = confusion(gold, labels, task)
    people = gold.set_index(POST_ID).reindex(labels[POST_ID])
    probabilities = []
    for question in task.questions:
        probability_NC = calibrated(answers[question.id], people[question.id])
        given = labels[question.id].notna().to_numpy()
        probability_NC[given] *= matrices[question.id].T[labels.loc[given, question.id].to_numpy(int)]
        probabilities.append(probability_NC / probability_NC.sum(1, keepdims=True))
    of_gold = labels[POST_ID].isin(gold[POST_ID]).to_numpy()
    rates = final_rates(people[of_gold].reset_index(drop=True), final[of_gold].reset_index(drop=True), task)
    new = {
        question.id: pd.array(probability_NC.argmax(1), dtype="Int8")
        for question, probability_NC in zip(task.questions, posteriors(probabilities, final, rates), strict=True)
    }
    return with_gold(pd.DataFrame({POST_ID: labels[POST_ID].to_numpy(), **new}), gold)
