"""What can be done about an annotator's errors, given people's labels of a few posts (the gold subset).

plain       the annotator's labels as they are
gold        people's label wherever there is one
weighted    gold, and each question's loss is weighted by what its labels tell (see `informedness`)
dropped     gold, and a question whose labels tell next to nothing keeps people's labels only
relabelled  dropped, a first training; then every label is made anew from what that model says and what the annotator
            said, weighed by how often it errs; a second training on those of which this is sure enough

Dimensions: N posts · C classes of one question
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model.schema import POST_ID
from model.task import Task
from steps.annotate.agreement import confusion

#: A question whose informedness is below this is dropped: its labels are worth less than their noise costs.
MIN_INFORMEDNESS = 0.1
#: A relabelled answer is kept when its class has at least this probability.
MIN_POSTERIOR = 0.8


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
    questions = tuple(
        q.model_copy(update={"weight": q.weight * max(told[q.id], 0.0) / most if most > 0 else q.weight})
        for q in task.questions
    )
    return task.model_copy(update={"questions": questions})


def posterior(model_NC: NDArray[np.float64], annotated: pd.Series, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, C): the probability of each class, from the model's and from what the annotator said (Bayes' rule).

    The two are taken to err independently, given the class.

    Args:
        model_NC: the model's probabilities.
        annotated: (N,) classes, NA where there is none: the model alone decides.
        matrix: P(annotator's class | people's class), as `steps.annotate.agreement.confusion` gives it.
    """
    likelihood_NC = np.ones_like(model_NC)
    given = annotated.notna().to_numpy()
    likelihood_NC[given] = matrix.T[annotated[given].to_numpy(int)]
    joint_NC = model_NC * likelihood_NC
    return joint_NC / joint_NC.sum(1, keepdims=True)


def relabelled(
    labels: pd.DataFrame, answers: dict[str, NDArray[np.float64]], gold: pd.DataFrame, task: Task
) -> pd.DataFrame:
    """New labels for every post of `labels`; NA where no class is probable enough.

    Args:
        labels: the annotator's, as they came.
        answers: by question id, a first model's probabilities (N, C), row by row of `labels`.
        gold: people's labels of some of these posts, which win; its annotator's errors are counted on them.
    """
    matrices = confusion(gold, labels, task)
    new = {}
    for question in task.questions:
        probability_NC = posterior(answers[question.id], labels[question.id], matrices[question.id])
        sure = probability_NC.max(1) >= MIN_POSTERIOR
        chosen = pd.array(probability_NC.argmax(1), dtype="Int8")
        chosen[~sure] = pd.NA
        new[question.id] = pd.Series(chosen)
    return with_gold(pd.DataFrame({POST_ID: labels[POST_ID].to_numpy(), **new}), gold)
