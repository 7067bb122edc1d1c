"""The process labels of a training, improved with people's by one of `steps.fine_tune.methods`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model.checkpoint import load
from model.data import Batches, Shards
from model.device import best_device
from model.errors import DataError
from model.schema import LABEL, POST_ID, SPLIT, TRAIN
from model.scorer import predict_rows
from steps.fine_tune.launch import TrainingJob, run
from steps.fine_tune.methods import taught
from steps.tables import rows_of

if TYPE_CHECKING:
    from steps.fine_tune.stored import Store


def improved(
    job: TrainingJob, labels: pd.DataFrame, root: Path, store: Store | None = None
) -> tuple[pd.DataFrame, dict[str, float], dict[str, float]]:
    """
    Args:
        job: the training that the labels are for; `job.train.labels` names the method.
        labels: the annotator's.
        root: where trainings have their folders.
        store: as of `run`.

    Returns:
        `labels` with the method's in the rows of the training posts; the questions' weights in the loss; and by
        question the share of the training posts whose label is another, or was missing, before.

    Raises:
        DataError: people labelled no training post for one of the questions.
    """
    task, shards = job.task, Shards(job.shards)
    ids = list(task.question_ids)
    rows = np.flatnonzero((shards.posts[SPLIT] == TRAIN).to_numpy())
    posts = shards.posts.iloc[rows].reset_index(drop=True)
    gold = posts.loc[posts[ids].notna().any(axis=1), [POST_ID, *ids]].reset_index(drop=True)
    if lacking := [id_ for id_ in ids if gold[id_].isna().all()]:
        raise DataError(
            f"fine_tune.labels {job.train.labels}: no training post has people's label for {', '.join(lacking)}: have "
            "people label some (`agentps queue` makes a list, `agentps gold` puts their answers into the manifest), or "
            "set it to plain"
        )
    annotated = rows_of(labels, posts[POST_ID].tolist(), "labels")[[POST_ID, *ids]].astype(dict.fromkeys(ids, "Int8"))

    def answers_of(stages: Sequence[pd.DataFrame]) -> dict[str, NDArray[np.float64]]:
        plain = job.train.model_copy(update={"labels": "plain"})
        start = job.start
        for made in stages:
            start, _ = run(job.model_copy(update={"train": plain, "start": start}), made, root, store)
        loaded = load(cast(Path, start), best_device())
        return predict_rows(loaded.model, Batches(shards, loaded.prompt, task), rows, plain.micro_batch).questions

    made, weighted = taught(job.train.labels, annotated, gold, posts[LABEL], task, answers_of)
    table = labels.set_index(POST_ID)
    new = made.set_index(POST_ID)
    changed = {id_: float((new[id_].fillna(-1) != table.loc[new.index, id_].fillna(-1)).mean()) for id_ in ids}
    for id_ in ids:
        table.loc[new.index, id_] = new[id_]
    weights = {question.id: question.weight for question in weighted.questions}
    return table.reset_index()[list(labels)], weights, changed
