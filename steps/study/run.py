"""Trains the cells of a study: each once, several at a time, and keeps one small record of each that is finished.

A record is named after everything that its figures depend on: the cell, the options, the posts and
labels, and the code. So a study goes on where it was killed, and on another machine from the records alone.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import shutil
import time
import zlib
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from model import checkpoint
from model.agentps import AgentPS
from model.data import Batches, Shards, class_labels
from model.errors import DataError
from model.prompt import Prompt
from model.schema import POST_ID, SPLIT, TRAIN
from model.scorer import in_chunks, predict
from model.settings import BackboneSettings, TrainSettings
from model.task import Task
from model.train import FitResult, fit
from steps.code import code_digest
from steps.evaluate.predictions import prediction_tables
from steps.evaluate.report import SCORE, build_report, labelled
from steps.settings import REPOSITORY, EvaluateSettings
from steps.study import methods
from steps.study.cells import ANNOTATOR, NONE, PEOPLE, Cell
from steps.study.labels import corrupted, draws, gold_subset

logger = logging.getLogger(__name__)

#: What a cell's figures follow from. The rest of `model/` carries weights from here to there, or is a metric's formula.
_CODE = (
    *(f"model/{name}.py" for name in ("agentps", "data", "images", "loss", "prompt", "text", "train")),
    *(f"steps/study/{name}.py" for name in ("labels", "methods", "run")),
)


class Inputs(BaseModel):
    """What all cells of a study share."""

    model_config = ConfigDict(frozen=True)

    #: Every post of every split, with people's process labels where there are any.
    shards: Path
    #: The annotator's labels of the training posts, as Parquet.
    labels: Path
    task: Task
    train: TrainSettings
    #: As it can be loaded, and a name for its content that is the same on every machine.
    backbone: BackboneSettings
    backbone_id: str
    evaluate: EvaluateSettings
    gold_share: float
    #: Where trainings keep their checkpoints while they run.
    work: Path


class Record(BaseModel):
    """A finished cell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    cell: Cell
    #: On test; the names are those of the evaluation report.
    metrics: dict[str, float]
    best_val_average_precision: float
    best_epoch: float
    #: Of the labelled test posts, in the table's order: the place of their score among the distinct scores, 0 the
    #: lowest; uint32, compressed, base64. Every metric of the ranking, and so every interval, follows from it.
    test_ranks: str
    seconds: float
    #: What it was made of, and where: for people, never read by code.
    provenance: dict[str, Any]

    @cached_property
    def ranks(self) -> np.ndarray:
        """float64 (labelled test posts,): ranks in [0, 1], in place of scores."""
        ranks = np.frombuffer(zlib.decompress(base64.b64decode(self.test_ranks)), dtype=np.uint32)
        return ranks / max(int(ranks.max()), 1)


def encoded_ranks(scores: np.ndarray) -> str:
    """`Record.test_ranks` of scores."""
    ranks = np.unique(scores, return_inverse=True)[1].astype(np.uint32)
    return base64.b64encode(zlib.compress(ranks.tobytes(), 9)).decode()


class Study:
    """The cells' common ground: which record belongs to which cell."""

    def __init__(self, inputs: Inputs, records: Path) -> None:
        self.inputs, self.records = inputs, records
        posts = Shards(inputs.shards).posts
        self.available = int((posts[SPLIT] == TRAIN).sum())
        self._code = code_digest(REPOSITORY / name for name in _CODE)
        images = json.loads((inputs.shards / "shards.json").read_text(encoding="utf-8"))["images_sha256"]
        self._posts = _table_digest(posts) + images
        self._labels = _table_digest(pd.read_parquet(inputs.labels)[[POST_ID, *inputs.task.question_ids]])

    def key(self, cell: Cell) -> str:
        inputs = self.inputs
        parts = [
            self._code,
            self._posts,
            self._labels if cell.labels == ANNOTATOR else "",
            cell.model_dump_json(),
            inputs.task.fingerprint,
            inputs.train.model_dump_json(exclude={"variant", "seed"}),
            Shards(inputs.shards).sequence.model_dump_json(),
            inputs.backbone_id,
            inputs.evaluate.model_dump_json(include={"precisions"}),
            "" if cell.method == "plain" else repr(inputs.gold_share),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def record(self, cell: Cell) -> Record | None:
        """The finished cell's record; None where there is none yet."""
        path = self.records / f"{self.key(cell)}.json"
        return Record.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def run(self, cells: Iterable[Cell], workers: int) -> int:
        """Train every cell that has no record; returns how many that were.

        Raises:
            DataError: there are fewer training posts than a cell needs.
        """
        todo = {self.key(cell): cell for cell in cells if self.record(cell) is None}
        wanted = max((cell.train_posts for cell in todo.values()), default=0)
        if wanted > self.available:
            raise DataError(
                f"study.train_posts: {wanted} posts, train has {self.available}: lower it, or bring more posts"
            )
        self.records.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        threads = max(1, (os.cpu_count() or 1) // workers)
        # A fresh interpreter: a forked one would inherit locks that torch's threads hold.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_use_threads, initargs=(threads,)) as pool:
            running = {pool.submit(_run, cell, key, self.inputs, self.records): cell for key, cell in todo.items()}
            try:
                for done, future in enumerate(as_completed(running), start=1):
                    record, minutes = future.result(), (time.monotonic() - started) / 60
                    logger.info(
                        "Cell %d of %d (%s): average precision %.3f; about %.0f minutes left",
                        done,
                        len(todo),
                        describe(record.cell),
                        record.metrics["average_precision"],
                        minutes / done * (len(todo) - done),
                    )
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return len(todo)


def describe(cell: Cell) -> str:
    """A cell in words."""
    asked = f", {len(cell.questions)} questions" if cell.questions else ""
    method = "" if cell.method == "plain" else f" {cell.method}"
    return f"{cell.variant}, {cell.train_posts} posts, labels {cell.labels}{method}{asked}, seed {cell.seed}"


def _use_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _table_digest(table: pd.DataFrame) -> str:
    # Lists (frames, token ids) as text: pandas hashes no lists.
    plain = table.map(lambda cell: cell if np.isscalar(cell) or cell is pd.NA or cell is None else repr(list(cell)))
    return hashlib.sha256(
        pd.util.hash_pandas_object(plain.astype("string"), index=False).to_numpy().tobytes()
    ).hexdigest()


def _run(cell: Cell, key: str, inputs: Inputs, records: Path) -> Record:
    """Train one cell and write its record. Of two processes that are given the same cell, the second waits."""
    path = records / f"{key}.json"
    work = inputs.work / key
    work.mkdir(parents=True, exist_ok=True)
    with (inputs.work / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # also held by what a killed study left running
        if not path.exists():
            record = train_cell(cell, key, inputs, work)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
            part.replace(path)
            shutil.rmtree(work, ignore_errors=True)
    return Record.model_validate_json(path.read_text(encoding="utf-8"))


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
        test_ranks=encoded_ranks(labelled(test, "test", task, cell.variant)[SCORE].to_numpy()),
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
        table = pd.read_parquet(inputs.labels).set_index(POST_ID).reindex(people[POST_ID]).reset_index()
        labels = table[[POST_ID, *task.question_ids]].astype(dict.fromkeys(task.question_ids, "Int8"))
    else:
        labels = corrupted(people, task, cell.labels)
    if cell.method == "plain":
        return labels, task
    gold = people[gold_subset(people[POST_ID].tolist(), inputs.gold_share)]
    known = gold.set_index(POST_ID).reindex(people[POST_ID]).reset_index(drop=True)
    told = methods.question_informedness(labels, known, task)
    if cell.method == "weighted":
        return methods.with_gold(labels, gold), methods.weighted(task, told)
    if cell.method == "gold":
        return methods.with_gold(labels, gold), task
    kept = methods.with_gold(methods.without_uninformative(labels, told), gold)
    if cell.method == "dropped":
        return kept, task
    network, prompt, _ = _fit(task, train, shards, kept, inputs, work / "first")
    batches = Batches(shards, prompt, task)
    rows = np.flatnonzero((shards.posts[SPLIT] == TRAIN).to_numpy())
    answers = predict(network, in_chunks(rows, train.micro_batch, batches)).questions
    return methods.relabelled(labels, answers, gold, task), task


def _fit(
    task: Task, train: TrainSettings, shards: Shards, labels: pd.DataFrame, inputs: Inputs, work: Path
) -> tuple[AgentPS, Prompt, FitResult]:
    set_seed(train.seed)
    network, _, prompt = checkpoint.build(inputs.backbone, task, shards.sequence, train)
    result = fit(network, Batches(shards, prompt, task, labels), train, work, quiet=True)
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
