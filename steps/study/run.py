"""Runs the cells of a study: each once, several at a time, and keeps one record of each that is finished.

A record's key names everything that its figures depend on: the recipe, the cell, the options, the posts, the labels and
the backbone. So a study goes on where it was killed, and on another machine from the records alone.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers.utils import logging as transformers_logging

from model.data import Shards
from model.errors import DataError
from model.schema import POST_ID, SPLIT, TRAIN
from steps import recipe
from steps.lifetime import end_with_parent
from steps.locks import locked
from steps.study.cells import ANNOTATOR, Cell
from steps.study.records import Record, add_record, read_records
from steps.study.train import Inputs, train_cell

logger = logging.getLogger(__name__)


def cell_key(cell: Cell, inputs: Inputs, shards: dict[str, Any], labels: str) -> str:
    """Names the cell's record.

    Args:
        shards: by `recipe.shards_digest`.
        labels: the digest of the annotator's labels, which count only where the cell is trained on them.
    """
    return recipe.key(
        recipe.TRAINING,
        cell=recipe.options(cell),
        task=recipe.options(inputs.task),
        train=recipe.options(inputs.train, without={"variant", "seed", *recipe.WHERE}),
        backbone=inputs.backbone_id,
        precisions=inputs.evaluate.precisions,
        shards=shards,
        labels=labels if cell.labels == ANNOTATOR else None,
        gold_share=None if cell.method == "plain" else inputs.gold_share,
        **({"relabelled": recipe.RELABELLED} if cell.method == "relabelled" else {}),  # no other cell's key changes
    )


class Study:
    """The cells' common ground: which record belongs to which cell."""

    def __init__(self, inputs: Inputs, records: Path) -> None:
        """
        Args:
            records: the file of the finished cells.
        """
        self._inputs, self._path = inputs, records
        self._records = read_records(records)
        shards = Shards(inputs.shards)
        self._available = int((shards.posts[SPLIT] == TRAIN).sum())
        self._shards = recipe.shards_digest(shards, inputs.task)
        self._labels = recipe.table_digest(pd.read_parquet(inputs.labels)[[POST_ID, *inputs.task.question_ids]])

    def key(self, cell: Cell) -> str:
        return cell_key(cell, self._inputs, self._shards, self._labels)

    def record(self, cell: Cell) -> Record | None:
        """The finished cell's record; None where there is none yet."""
        return self._records.get(self.key(cell))

    def run(self, cells: Iterable[Cell], workers: int) -> int:
        """Train every cell that has no record; returns how many that were.

        Raises:
            DataError: there are fewer training posts than a cell needs.
        """
        todo = {self.key(cell): cell for cell in cells if self.record(cell) is None}
        wanted = max((cell.train_posts for cell in todo.values()), default=0)
        if wanted > self._available:
            raise DataError(
                f"study.train_posts: {wanted} posts, train has {self._available}: lower it, or bring more posts"
            )
        if not todo:
            return 0
        workers = min(workers, len(todo))
        started = time.monotonic()
        threads = max(1, (os.cpu_count() or 1) // workers)
        # A fresh interpreter: a forked one would inherit locks that torch's threads hold.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_use_threads, initargs=(threads,)) as pool:
            running = {pool.submit(_run, cell, key, self._inputs, self._path): cell for key, cell in todo.items()}
            try:
                for done, future in enumerate(as_completed(running), start=1):
                    record, minutes = future.result(), (time.monotonic() - started) / 60
                    self._records[record.key] = record
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
    end_with_parent()
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _run(cell: Cell, key: str, inputs: Inputs, path: Path) -> Record:
    """Train one cell and keep its record. Of two processes that are given the same cell, the second waits."""
    work = inputs.work / key
    with locked(inputs.work / f"{key}.lock", "another study, which trains the same cell"):
        finished = read_records(path).get(key)
        if finished is not None:
            return finished
        work.mkdir(parents=True, exist_ok=True)
        record = train_cell(cell, key, inputs, work)
        add_record(path, record, inputs.work / "records.lock")
        shutil.rmtree(work, ignore_errors=True)
        return record
