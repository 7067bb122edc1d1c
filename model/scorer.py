"""Scoring: the checkpoint's answers to posts, from shards (evaluation) or from raw posts (serving).

Dimensions: N posts · C classes of one question
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .agentps import AgentPS, normalize
from .checkpoint import Loaded, OperatingPoints, load, read_operating_points
from .data import Batches, padded_frames
from .errors import ImageError
from .images import ImageLimits, frame_indices, read_frame, read_source
from .schema import IMAGE_SHA256, IMAGES, ROOT, TEXT, TITLE
from .task import Task
from .text import encode_post_text

#: Larger images than any camera's are refused at scoring time; ingest's own limits are settings.
SERVING_LIMITS = ImageLimits(max_bytes=20_000_000, max_pixels=50_000_000)


@dataclass(frozen=True)
class RawAnswers:
    """final_N: float64 logits. questions: by question id, float64 (N, C) probabilities."""

    final_N: np.ndarray
    questions: dict[str, np.ndarray]


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
    back = np.argsort(order)
    return RawAnswers(answers.final_N[back], {name: found[back] for name, found in answers.questions.items()})


def in_chunks(
    rows: np.ndarray, size: int, make: Callable[[np.ndarray], dict[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """`make` of `size` rows at a time."""
    for start in range(0, len(rows), size):
        yield make(rows[start : start + size])


def answer_columns(answers: RawAnswers, task: Task) -> dict[str, np.ndarray]:
    """Per question `answer_<id>`, the probability of its positive class, and `class_<id>`, the most
    probable class's index. With more than two classes, `answer_<id>` is that class's probability.
    """
    columns: dict[str, np.ndarray] = {}
    for question in task.questions:
        if question.id in answers.questions:
            probability_NC = answers.questions[question.id]
            predicted = probability_NC.argmax(1)
            binary = len(question.classes) == 2
            columns[f"answer_{question.id}"] = (
                probability_NC[:, question.positive_index] if binary else probability_NC.max(1)
            )
            columns[f"class_{question.id}"] = predicted
    return columns


class _SeenImages:
    """The tower's states of the images that were read last, by the sha256 of their files, in main memory.

    A stream of posts shows many pictures again: reposts, templates, the next version of a post.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._states: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = Lock()  # a server may score in several threads

    def get(self, key: bytes) -> Tensor | None:
        """(P, W), or None for an image that is not kept."""
        with self._lock:
            if key in self._states:
                self._states.move_to_end(key)
            return self._states.get(key)

    def put(self, key: bytes, states_PW: Tensor) -> None:
        with self._lock:
            if key not in self._states:
                self._states[key] = states_PW
                self._free -= states_PW.nbytes
            while self._free < 0:
                self._free += self._states.popitem(last=False)[1].nbytes


class Scorer:
    """Scores raw posts with a checkpoint directory: decode, resize, tokenize, answer, calibrate, decide."""

    def __init__(
        self, loaded: Loaded, points: OperatingPoints, micro_batch: int = 32, seen_bytes: int = 500_000_000
    ) -> None:
        """
        Args:
            seen_bytes: main memory for what the tower said of images, which are then neither decoded nor encoded again.
        """
        self._loaded = loaded
        self._points = points
        self._micro_batch = micro_batch
        self._seen = _SeenImages(seen_bytes)

    @classmethod
    def from_directory(cls, directory: Path, device: torch.device | None = None) -> Scorer:
        """Raises: CheckpointError where the checkpoint cannot decide."""
        return cls(load(directory, device), read_operating_points(directory))

    @property
    def task(self) -> Task:
        return self._loaded.info.task

    def _batch(self, posts: pd.DataFrame) -> dict[str, Tensor]:
        sequence = self._loaded.info.sequence
        number: dict[bytes, int] = {}  # an image that stands in several posts is read once
        states: dict[bytes, Tensor] = {}
        images: dict[bytes, np.ndarray] = {}
        rows: list[list[int]] = []
        for post in posts.to_dict("records"):
            sources, root = post[IMAGES], post.get(ROOT)
            if len(sources) == 0:
                raise ImageError("no image in the post; at least one is needed")
            order: list[bytes] = []
            for source, sha256 in zip(sources, post.get(IMAGE_SHA256, [None] * len(sources)), strict=True):
                data = read_source(source, SERVING_LIMITS, root=root, sha256=sha256)
                key = hashlib.sha256(data).digest()
                if key not in number:
                    number[key] = len(number)
                    kept = self._seen.get(key)
                    if kept is None:
                        images[key] = read_frame(data, sequence.image_size, SERVING_LIMITS)
                    else:
                        states[key] = kept
                order.append(key)
            shown = frame_indices(len(order), sequence.frames, repeat=sequence.repeat_frames)
            rows.append([number[order[k]] for k in shown])
        if images:
            model = self._loaded.model
            pixels_UCHW = normalize(np.stack(list(images.values()))).to(next(model.parameters()).device)
            # copies: a row alone would keep the whole tensor
            for key, states_PW in zip(images, model.tower_states(pixels_UCHW).cpu(), strict=True):
                states[key] = states_PW.clone()
                self._seen.put(key, states[key])
        ids = [
            encode_post_text(self._loaded.tokenizer, title, text, sequence.max_text_tokens)
            for title, text in zip(posts[TITLE].fillna(""), posts[TEXT].fillna(""), strict=True)
        ]
        batch: dict[str, Any] = dict(self._loaded.prompt.batch(ids, [len(row) for row in rows]))
        batch["tower_states_UPW"] = torch.stack([states[key] for key in number])
        batch["frame_index_BF"] = torch.from_numpy(padded_frames(rows, sequence.frames))
        return batch

    def answers(self, posts: pd.DataFrame) -> RawAnswers:
        """The network's answers to posts as `score` takes them, in order.

        Raises:
            ImageError: an image cannot be used.
        """
        rows = np.arange(len(posts))
        return predict(self._loaded.model, in_chunks(rows, self._micro_batch, lambda r: self._batch(posts.iloc[r])))

    def score(self, posts: pd.DataFrame) -> pd.DataFrame:
        """One row a post, in order.

        Args:
            posts: `title`, `text`, and `images`: absolute paths, or the files' bytes.

        Returns:
            `score` in [0, 1]; `decision_p60` … (bool: flagged at that precision); `answer_<question>`,
            the probability of the question's positive class, or the name of its most probable class
            with `answer_<question>_probability` where there are more than two.

        Raises:
            ImageError: an image cannot be used.
        """
        answers = self.answers(posts)
        scores = self._points.calibration.apply(answers.final_N)
        table = pd.DataFrame({"score": scores}, index=posts.index)
        for name, point in self._points.thresholds.items():
            table[f"decision_{name}"] = scores >= point.threshold
        columns = answer_columns(answers, self.task)
        for question in self.task.questions:
            if f"answer_{question.id}" not in columns:
                continue
            if len(question.classes) == 2:
                table[f"answer_{question.id}"] = columns[f"answer_{question.id}"]
            else:
                names = np.array(question.classes, dtype=object)
                table[f"answer_{question.id}"] = names[columns[f"class_{question.id}"]]
                table[f"answer_{question.id}_probability"] = columns[f"answer_{question.id}"]
        return table
