"""Scoring: the checkpoint's answers to posts, from shards (evaluation) or from raw posts (serving).

Dimensions: N posts · C classes of one question
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .agentps import AgentPS
from .checkpoint import Loaded, load
from .checkpoint_info import OperatingPoints, read_operating_points
from .columns import ERROR, LOGIT, SCORE, answer_column, decision_column, probability_column
from .data import Batches
from .device import best_device
from .errors import AgentPSError, ConfigError, DataError, ImageError
from .post import shown
from .reader import PostReader, RawPost, raw_post
from .schema import POST_ID
from .task import Task


@dataclass(frozen=True)
class RawAnswers:
    """final_N: float64 logits. questions: by question id, float64 (N, C) probabilities."""

    final_N: np.ndarray
    questions: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> RawAnswers:
        return RawAnswers(self.final_N[rows], {name: found[rows] for name, found in self.questions.items()})

    def spread(self, rows: Sequence[int], n: int) -> RawAnswers:
        """These answers as those of `rows`, NaN in the others of `n`."""
        place = np.full(n, len(self.final_N))
        place[list(rows)] = np.arange(len(rows))
        nothing = RawAnswers(
            np.append(self.final_N, np.nan),
            {name: np.vstack([found, np.full(found.shape[1], np.nan)]) for name, found in self.questions.items()},
        )
        return nothing.take(place)


@torch.no_grad()
def predict(model: AgentPS, batches: Iterator[dict[str, Tensor]]) -> RawAnswers:
    """The answers to every post of `batches`, in their order."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    finals: list[Tensor] = []
    questions: dict[str, list[Tensor]] = {name: [] for name in model.heads}
    for batch in batches:
        # Labels would only cost a loss that nobody reads.
        inputs = {k: v.to(device) for k, v in batch.items() if not k.endswith(("labels_B", "labels_BQ"))}
        answers = model(**inputs)
        finals.append(answers.final_B.double().cpu())
        for name, logits in zip(questions, answers.questions, strict=True):
            questions[name].append(logits.double().softmax(1).cpu())
    model.train(training)
    if not finals:
        return RawAnswers(np.zeros(0), {name: np.zeros((0, n)) for name, n in model.n_classes.items()})
    return RawAnswers(
        torch.cat(finals).numpy(), {name: torch.cat(values).numpy() for name, values in questions.items()}
    )


def predict_rows(model: AgentPS, batches: Batches, rows: np.ndarray, micro_batch: int) -> RawAnswers:
    """The answers to posts of a shard directory, in the order of `rows`. Albums of one size are read together: a row
    of the batch is as long as its longest.
    """
    order = np.argsort(batches.n_frames(rows), kind="stable")
    answers = predict(model, in_chunks(rows[order], micro_batch, batches))
    return answers.take(np.argsort(order))


def in_chunks(
    rows: np.ndarray, size: int, make: Callable[[np.ndarray], dict[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """`make` of `size` rows at a time."""
    for start in range(0, len(rows), size):
        yield make(rows[start : start + size])


def answer_columns(answers: RawAnswers, task: Task) -> dict[str, np.ndarray]:
    """Of each question that was answered its columns, see `model.columns`; None and NaN for a post without answers."""
    columns: dict[str, np.ndarray] = {}
    for question in task.questions:
        if question.id in answers.questions:
            probability_NC = answers.questions[question.id]
            names: np.ndarray = np.array(question.classes, dtype=object)[probability_NC.argmax(1)]
            names[np.isnan(probability_NC[:, 0])] = None
            columns[answer_column(question.id)] = names
            columns[probability_column(question.id)] = probability_NC.max(1)
    return columns


class Scorer:
    """Scores raw posts with a checkpoint directory: decode, resize, tokenize, answer, calibrate, decide.

    `from_directory` and `score` are what other code may use of a registered version, whose own code this is: see
    `steps.register.pyfunc`.
    """

    def __init__(
        self,
        loaded: Loaded,
        points: OperatingPoints,
        micro_batch: int | None = None,
        seen_bytes: int = 500_000_000,
        image_root: str | None = None,
    ) -> None:
        """
        Args:
            micro_batch: posts that are read and answered together; None: as in training.
            seen_bytes: see `model.reader.PostReader`.
            image_root: an absolute folder whose files whoever gives the posts may name; None: no path is read.

        Raises:
            ConfigError: `image_root` is none.
        """
        if image_root is not None and not (os.path.isabs(image_root) and os.path.isdir(image_root)):
            raise ConfigError(f"image root {image_root!r}: the absolute path of a folder is expected")
        self._loaded = loaded
        self._points = points
        self._micro_batch = micro_batch or loaded.info.train.micro_batch
        self._reader = PostReader(loaded, seen_bytes, image_root)

    @classmethod
    def from_directory(
        cls, directory: Path, device: torch.device | None = None, *, image_root: str | None = None
    ) -> Scorer:
        """On `best_device()`, where no other is given.

        Raises:
            CheckpointError: the checkpoint cannot decide.
            ConfigError: `image_root` is no folder.
        """
        points = read_operating_points(directory)
        return cls(load(directory, device or best_device()), points, image_root=image_root)

    @property
    def task(self) -> Task:
        return self._loaded.info.task

    def _answers(self, posts: pd.DataFrame) -> tuple[RawAnswers, list[str | None]]:
        """The network's answers, NaN for a post that cannot be read, and the reason for each of these."""
        errors: list[str | None] = [None] * len(posts)
        parsed: dict[int, RawPost] = {}
        if not posts.columns.is_unique:
            twice = posts.columns[posts.columns.duplicated()].unique().tolist()
            raise DataError(f"posts: more than one column has the name {', '.join(map(repr, twice))}: keep one")
        records, limits = posts.to_dict("records"), self._loaded.info.post_limits

        def refuse(row: int, error: AgentPSError) -> None:
            post = f" (post {shown(records[row][POST_ID])})" if POST_ID in posts else ""
            errors[row] = f"row {row + 1}{post}: {error}"

        for row, cells in enumerate(records):
            try:
                parsed[row] = raw_post({str(name): cell for name, cell in cells.items()}, limits)
            except DataError as error:
                refuse(row, error)
        # Albums of one size together, as in `predict_rows`: a row of the batch is as long as its longest.
        order = sorted(parsed, key=lambda row: len(self._reader.shown(parsed[row])))
        answered: list[int] = []

        def batches() -> Iterator[dict[str, Tensor]]:
            for start in range(0, len(order), self._micro_batch):
                albums: dict[int, list[bytes]] = {}
                read: dict[bytes, np.ndarray | Tensor] = {}
                for row in order[start : start + self._micro_batch]:
                    try:
                        albums[row] = self._reader.album(parsed[row], read)
                    except ImageError as error:
                        refuse(row, error)
                if albums:
                    answered.extend(albums)
                    yield self._reader.batch([parsed[row] for row in albums], list(albums.values()), read)

        found = predict(self._loaded.model, batches())
        return found.spread(answered, len(posts)), errors

    def score(self, posts: pd.DataFrame) -> pd.DataFrame:
        """One row per post, in order. A post that cannot be used gets its reason in `error`, and costs no other post.

        Args:
            posts: `images`: for each post a list of the files' bytes, of their base64 text or data URLs, or of paths
                under `image_root`; `video`: one video as bytes, data URL or such a path, beside the images or instead
                of them; `title` and `text` may be null or absent. With `root` and `image_sha256`, as ingest makes them,
                names of files under `root` are held to these hashes: who takes posts from others leaves these two
                columns out. `post_id` is named in an error.

        Returns:
            The columns of `model.columns`: logit, score, a decision for each operating point (nullable boolean),
            answer and probability of each question that the variant answers, error.

        Raises:
            DataError: two columns have one name.
        """
        answers, errors = self._answers(posts)
        scores = self._points.calibration.apply(answers.final_N)
        unscored = np.isnan(scores)
        columns: dict[str, Any] = {LOGIT: answers.final_N, SCORE: scores}
        for name, point in self._points.thresholds.items():
            columns[decision_column(name)] = pd.arrays.BooleanArray(scores >= point.threshold, unscored.copy())
        columns |= answer_columns(answers, self.task)
        columns[ERROR] = pd.Series(errors, posts.index, dtype=object)
        return pd.DataFrame(columns, index=posts.index)
