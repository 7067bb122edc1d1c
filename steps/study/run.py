"""Runs the cells of a study: each once, several at a time, and keeps one small record of each that is finished.

A record is named after everything that its figures depend on: the cell, the options, the posts and
labels, and the code. So a study goes on where it was killed, and on another machine from the records alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers.utils import logging as transformers_logging

from model.data import Shards
from model.errors import DataError
from model.schema import POST_ID, SPLIT, TRAIN
from steps.caching import code_digest
from steps.paths import REPOSITORY
from steps.study.cells import ANNOTATOR, Cell
from steps.study.train import Inputs, Record, train_cell

logger = logging.getLogger(__name__)

#: What a cell's figures follow from. The rest of `model/` carries weights from here to there, or is a metric's formula.
_CODE = (
    *(
        f"model/{name}.py"
        for name in ("agentps", "data", "images", "language", "loss", "prompt", "text", "tower_cache", "train")
    ),
    *(f"steps/study/{name}.py" for name in ("labels", "methods", "train")),
)


class Study:
    """The cells' common ground: which record belongs to which cell."""

    def __init__(self, inputs: Inputs, records: Path) -> None:
        self.inputs, self.records = inputs, records
        posts = Shards(inputs.shards).posts
        self.available = int((posts[SPLIT] == TRAIN).sum())
        self._code = code_digest(REPOSITORY / name for name in _CODE)
        images = json.loads((inputs.shards / "shards.json").read_text(encoding="utf-8"))["images_sha256"]
        self._posts = table_digest(posts) + images
        self._labels = table_digest(pd.read_parquet(inputs.labels)[[POST_ID, *inputs.task.question_ids]])

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
        if not todo:
            return 0
        self.records.mkdir(parents=True, exist_ok=True)
        workers = min(workers, len(todo))
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


def table_digest(table: pd.DataFrame) -> str:
    """Names the content of a table, whose cells may be lists."""
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
