"""People as the annotator: the manifest's own process labels."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from model.schema import LABEL_SOURCE, MISSING_REASON, POST_ID, SPLIT
from model.task import Task

HUMAN = "human"
NOT_LABELLED = "not labelled"


def human_labels(posts: pd.DataFrame, task: Task, splits: Sequence[str]) -> pd.DataFrame:
    """The process labels that came with the posts, in the form that the annotator's have.

    Args:
        posts: the table of ingest; a question's column may be absent, which counts as not labelled.
        splits: the posts of these splits are taken, in the order of `posts`.

    Returns:
        post_id, one nullable Int8 column per question, label_source "human", and missing_reason:
        "not labelled" where a post has a label for none of the questions, None where it has one
        for at least one of them. A cell without a label is NA; it weighs nothing in training.
    """
    chosen = posts[posts[SPLIT].isin(list(splits))]
    labels = pd.DataFrame({POST_ID: chosen[POST_ID].to_numpy()})
    for id_ in task.question_ids:
        labels[id_] = pd.array(chosen[id_].array if id_ in chosen else [None] * len(chosen), dtype="Int8")
    unlabelled = labels[list(task.question_ids)].isna().all(axis="columns") & bool(task.questions)
    labels[LABEL_SOURCE] = HUMAN
    labels[MISSING_REASON] = pd.Series([NOT_LABELLED if none else None for none in unlabelled], dtype=object)
    return labels
