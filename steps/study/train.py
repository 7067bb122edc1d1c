"""Trains one cell: everything that its figures follow from, and nothing of how cells are run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import set_seed

from model import checkpoint
from model.agentps import AgentPS
from model.columns import SCORE
from model.data import Batches, Shards, class_labels
from model.prompt import Prompt
from model.schema import LABEL, POST_ID, SPLIT, TEST, TRAIN
from model.scorer import in_chunks, predict
from model.settings import BackboneSettings, TrainSettings
from model.task import Task
from model.train import FitResult, fit
from steps.evaluate.predictions import prediction_tables
from steps.evaluate.report import build_report, labelled
from steps.fine_tune.methods import taught
from steps.settings import EvaluateSettings
from steps.study.cells import ANNOTATOR, NONE, PEOPLE, Cell
from steps.study.labels import corrupted, draws, gold_subset
from steps.study.records import Record, encoded_ranks
from steps.tables import rows_of


class Inputs(BaseModel):
    """What all cells of a study share."""

    model_config = ConfigDict(frozen=True)

    #: Every post of every split, with people's process labels where there are any.
    shards: Path
    #: The annotator's labels of the training posts, as Parquet.
    labels: Path
    task: Task
    train: TrainSettings
    #: As it can be loaded, and its fingerprint.
    backbone: BackboneSettings
    backbone_id: str
    evaluate: EvaluateSettings
    gold_share: float
    #: Where trainings keep their checkpoints while they run.
    work: Path


def train_cell(cell: Cell, key: str, inputs: Inputs, work: Path) -> Record:
    """The record of one cell. A training that was interrupted goes on from its last checkpoint in `work`."""
    started = time.monotonic()
    by_id = {question.id: question for question in inputs.task.questions}
    task = inputs.task.model_copy(update={"questions": tuple(by_id[id_] for id_ in cell.questions)})
    train = inputs.train.model_copy(update={"variant": cell.variant, "seed": cell.seed})
    shards = Shards(inputs.shards)
    shards = shards.subset(_chosen(shards.posts, cell.train_posts))
    posts = shards.posts[shards.posts[SPLIT] == TRAIN].reset_index(drop=True)
    people = posts[[POST_ID, *task.question_ids]]
    labels, task = _labels(cell, people, task, train, shards, inputs, work)
    network, prompt, result = _fit(task, train, shards, labels, inputs, work / "final")
    val, test, calibration = prediction_tables(network, prompt, shards, task, train.micro_batch)
    report = build_report(
        val,
        test,
        task,
        inputs.evaluate.model_copy(update={"bootstrap": 0}),
        variant=cell.variant,
        seed=cell.seed,
        backbone=inputs.backbone_id,
        annotator=cell.labels,
        annotated_missing_share={q: float(labels[q].isna().mean()) for q in task.question_ids},
        calibration=calibration,
    )
    return Record(
        key=key,
        cell=cell,
        metrics={name: round(metric.value, 6) for name, metric in report.metrics.items() if metric.value is not None},
        best_val_average_precision=round(result.best_val_average_precision, 6),
        best_epoch=result.best_epoch,
        test_ranks=encoded_ranks(labelled(test, TEST, task, cell.variant)[SCORE].to_numpy()),
        seconds=round(time.monotonic() - started),
        provenance={
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "torch": torch.__version__,
            "annotator_right": _right(labels, people, task) if cell.labels != NONE else {},
        },
    )


def _chosen(posts: pd.DataFrame, train_posts: int) -> np.ndarray:
    """bool (posts,): all of val and test, and `train_posts` of train: a smaller part lies within a larger one."""
    is_train = (posts[SPLIT] == TRAIN).to_numpy()
    keep = ~is_train
    order = np.argsort(draws(posts.loc[is_train, POST_ID].tolist(), "subset"), kind="stable")
    keep[np.flatnonzero(is_train)[order[:train_posts]]] = True
    return keep


def _labels(
    cell: Cell,
    people: pd.DataFrame,
    task: Task,
    train: TrainSettings,
    shards: Shards,
    inputs: Inputs,
    work: Path,
) -> tuple[pd.DataFrame, Task]:
    """The process labels to train on, and the task with the method's question weights."""
    if cell.labels in (NONE, PEOPLE):
        return people, task
    if cell.labels == ANNOTATOR:
        table = rows_of(pd.read_parquet(inputs.labels), people[POST_ID].tolist(), "the annotator's labels")
        labels = table[[POST_ID, *task.question_ids]].astype(dict.fromkeys(task.question_ids, "Int8"))
    else:
        labels = corrupted(people, task, cell.labels)
    if cell.method == "plain":
        return labels, task
    gold = people[gold_subset(people[POST_ID].tolist(), inputs.gold_share)]
    rows = np.flatnonzero((shards.posts[SPLIT] == TRAIN).to_numpy())
    final = shards.posts[LABEL].iloc[rows].reset_index(drop=True)

    def answers_of(stages: Sequence[pd.DataFrame]) -> dict[str, np.ndarray]:
        weights = None
        for number, made in enumerate(stages):
            network, prompt, _ = _fit(task, train, shards, made, inputs, work / str(number), weights)
            weights = checkpoint.trainable_state(network)
        return predict(network, in_chunks(rows, train.micro_batch, Batches(shards, prompt, task))).questions

    return taught(cell.method, labels, gold, final, task, answers_of)


def _fit(
    task: Task,
    train: TrainSettings,
    shards: Shards,
    labels: pd.DataFrame,
    inputs: Inputs,
    work: Path,
    weights: dict[str, Tensor] | None = None,
) -> tuple[AgentPS, Prompt, FitResult]:
    """`weights`: of a training that this one goes on from; None: it begins from the backbone's."""
    set_seed(train.seed)
    network, _, prompt = checkpoint.build(inputs.backbone, task, shards.sequence, train)
    if weights is not None:
        checkpoint.load_trainable_state(network, weights, work)
    batches, begun = Batches(shards, prompt, task, labels), weights is not None
    result = fit(network, batches, train, work, begun=begun, quiet=True)
    return network, prompt, result


def _right(labels: pd.DataFrame, people: pd.DataFrame, task: Task) -> dict[str, float]:
    """By question the share of the labels that are people's, where both are there: how good the labels were."""
    ours, theirs = class_labels(labels, task.question_ids), class_labels(people, task.question_ids)
    both = (ours >= 0) & (theirs >= 0)
    return {
        id_: round(float((ours == theirs)[both[:, k], k].mean()), 4)
        for k, id_ in enumerate(task.question_ids)
        if both[:, k].any()
    }
