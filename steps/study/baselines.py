"""What can be had without a network: so that nobody wins by a leak, and everybody knows the ceiling.

Each baseline is fitted on train, and scored on the labelled test posts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier

from model import metrics
from model.schema import IMAGES, LABEL, SPLIT, TEST, TEXT, TITLE, TRAIN
from model.task import Task

#: A leaf of the tree over people's answers holds at least so many posts.
_LEAF = 5


@dataclass(frozen=True)
class Baseline:
    name: str
    average_precision: float
    recall_at_p80: float


def baselines(posts: pd.DataFrame, task: Task) -> list[Baseline]:
    """Majority, image count, words, each single question, and all of people's answers together (the ceiling).

    Args:
        posts: the table of ingest. Questions without people's answers in train are left out.
    """
    known = posts[posts[LABEL].notna()]
    train, test = known[known[SPLIT] == TRAIN], known[known[SPLIT] == TEST]
    target = train[LABEL].to_numpy(int)
    found = [
        _scored("the same score for every post", np.zeros(len(test)), test),
        _scored("number of images", _by_value(train[[IMAGES]].map(len), target, test[[IMAGES]].map(len)), test),
        _scored("words of title and text", _words(train, target, test), test),
    ]
    answered = [q.id for q in task.questions if train[q.id].notna().any()]
    for id_ in answered:
        found.append(_scored(f"people's answer to {id_}", _by_value(train[[id_]], target, test[[id_]]), test))
    if answered:
        found.append(_scored("all of people's answers", _by_value(train[answered], target, test[answered]), test))
    return found


def _by_value(train: pd.DataFrame, target: NDArray[np.int64], test: pd.DataFrame) -> NDArray[np.float64]:
    """The positive share among train posts of the same values, as a tree finds them; a missing value is a value."""
    model = make_pipeline(
        OneHotEncoder(handle_unknown="ignore"), DecisionTreeClassifier(min_samples_leaf=_LEAF, random_state=0)
    )
    model.fit(train.astype("float").fillna(-1), target)
    return _positive(model.predict_proba(test.astype("float").fillna(-1)), model.classes_)


def _words(train: pd.DataFrame, target: NDArray[np.int64], test: pd.DataFrame) -> NDArray[np.float64]:
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), min_df=2), LogisticRegression(max_iter=1000))
    model.fit(train[TITLE] + "\n" + train[TEXT], target)
    return _positive(model.predict_proba(test[TITLE] + "\n" + test[TEXT]), model.classes_)


def _positive(probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    return probabilities[:, list(classes).index(1)] if 1 in classes else np.zeros(len(probabilities))


def _scored(name: str, scores: NDArray[np.float64], test: pd.DataFrame) -> Baseline:
    labels = test[LABEL].to_numpy(int) == 1
    return Baseline(
        name=name,
        average_precision=metrics.average_precision(scores, labels),
        recall_at_p80=metrics.recall_at_precision(scores, labels, 0.8).recall,
    )
