"""Process labels for a cell: the annotator's, people's, or people's with made-up errors of a known kind and rate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from model.schema import POST_ID
from model.task import Task
from steps.study.cells import NOISE_KINDS


def draws(post_ids: Sequence[str], *seed: str) -> np.ndarray:
    """float64 (len(post_ids),) in [0, 1): uniform, the same for the same post and seed on every machine."""
    prefix = hashlib.sha256("\n".join(seed).encode())

    def draw(post_id: str) -> float:
        digest = prefix.copy()
        digest.update(b"\n" + post_id.encode())
        return int.from_bytes(digest.digest()[:6], "big") / 2**48

    return np.array([draw(post_id) for post_id in post_ids])


def corrupted(people: pd.DataFrame, task: Task, source: str) -> pd.DataFrame:
    """People's labels with the errors that `source` names, as "one-sided-80".

    symmetric-A: a label is right with A %, else another class, each as likely.
    one-sided-A: a label other than the first class becomes the first with 100 - A %; the first class always stays.
    missing-A: a label is there with A %, else NA.

    A post that errs at a high accuracy errs at every lower one too.

    Args:
        people: post_id and one Int8 column per question.
    """
    kind, _, percent = source.rpartition("-")
    if kind not in NOISE_KINDS:
        raise ValueError(f"labels {source!r}: one of {', '.join(NOISE_KINDS)}, and the percent that are right")
    noisy = people.copy()
    ids = people[POST_ID].tolist()
    for question in task.questions:
        column = people[question.id]
        errs = (draws(ids, "errs", question.id) >= int(percent) / 100) & column.notna().to_numpy()
        if kind == "missing":
            noisy.loc[errs, question.id] = pd.NA
        elif kind == "one-sided":
            noisy.loc[errs, question.id] = 0
        else:
            others = len(question.classes) - 1
            shift = 1 + (draws(ids, "other", question.id) * others).astype(int)
            wrong = (column.fillna(0).to_numpy(int) + shift) % len(question.classes)
            noisy.loc[errs, question.id] = wrong[errs]
    return noisy


def gold_subset(post_ids: Sequence[str], share: float) -> np.ndarray:
    """bool (len(post_ids),): the posts whose labels by people a method may use."""
    return draws(post_ids, "gold") < share
