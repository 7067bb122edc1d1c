"""Posts to records. A `Score` takes posts whose pictures were read, and is the one way of batch, service and stream.

Who receives posts (a manifest's reader, the service, the stream) makes an `Input` of each with `read_input`, and says
there how the source of a picture becomes its bytes: what may be read differs from door to door, scoring does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from model.checkpoint_info import read_info, read_operating_points
from model.columns import ERROR, LOGIT, SCORE, answer_column, decision_column, probability_column
from model.errors import DataError, ImageError
from model.images import ImageLimits
from model.post import parse, post_id_of, row_of, shown
from model.schema import IMAGES, POST_ID, TEXT, TITLE, VIDEO
from model.settings import PostLimits
from model.video import FRAMES
from scoring.record import Answer, Record, columns_of
from steps.register import history, registry
from steps.register.own_code import scorer_of
from steps.register.registry import RegisteredVersion

if TYPE_CHECKING:
    from model.scorer import Scorer

_TEXTS = row_of(columns=(TITLE, TEXT))


@dataclass(frozen=True)
class Input:
    """A post as it is scored.

    images: the bytes of the encoded pictures, in their order; behind them the frames of the video, where there is one.
    error: why it cannot be scored; None where it can. video_sha256: of the video's file.
    """

    post_id: str
    title: str = ""
    text: str = ""
    images: tuple[bytes, ...] = ()
    error: str | None = None
    video_sha256: str | None = None

    @cached_property
    def sha256(self) -> str | None:
        """Of title, text, pictures and video; None where they were not read."""
        if self.error is not None:
            return None
        own = self.images if self.video_sha256 is None else self.images[:-FRAMES]
        pictures = [hashlib.sha256(image).hexdigest() for image in own]
        pictures += [] if self.video_sha256 is None else [self.video_sha256]
        return hashlib.sha256(json.dumps([self.title, self.text, pictures]).encode()).hexdigest()


def read_input(
    cells: Mapping[str, Any],
    read: Callable[[Any], bytes],
    limits: PostLimits,
    read_video: Callable[[Any], tuple[str, list[bytes]]] | None = None,
) -> Input:
    """A post by the rules of a manifest's row. What is wrong with it, but for its id, is in `error`.

    Args:
        cells: `post_id`, `title`, `text`, `images` and `video`; others are not read.
        read: the bytes of a picture, or an ImageError.
        read_video: the sha256 and the frames of a video, or an ImageError; None: no video is read.

    Raises:
        DataError: it has no usable `post_id`, so no record can be of it.
    """
    post_id = post_id_of(cells.get(POST_ID))
    if post_id is None:
        raise DataError(f"{POST_ID}: {shown(cells.get(POST_ID))}; a text that is not empty is expected")
    texts, faults = parse(_TEXTS, {name: cells.get(name) for name in (TITLE, TEXT)})
    images = cells.get(IMAGES)
    if isinstance(images, np.ndarray):  # how pandas reads a list
        images = images.tolist()
    video = cells.get(VIDEO)
    if video is not None and images is None:
        images = []
    if not isinstance(images, list | tuple) or (not images and video is None):
        faults.append(f"{IMAGES}: {shown(images)}; a list of one or more images is expected")
        images = []
    title, text = (getattr(texts, TITLE), getattr(texts, TEXT)) if texts else ("", "")
    faults += limits.faults(title, text, len(images) + FRAMES * (video is not None))
    if video is not None and read_video is None:
        faults.append(f"{VIDEO}: no video is read here: send its frames as images")
    data: list[bytes] = []
    for number, image in enumerate([] if faults else images, 1):
        try:
            data.append(read(image))
        except ImageError as error:
            faults.append(f"image {number}: {error}")
            break
    sha256 = None
    if video is not None and read_video is not None and not faults:
        try:
            sha256, shown_frames = read_video(video)
            data += shown_frames
        except ImageError as error:
            faults.append(f"video: {error}")
    if faults:
        return Input(post_id, error="; ".join(faults))
    return Input(post_id, title, text, tuple(data), video_sha256=sha256)


class Score(Protocol):
    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        """A record for each post, in order.

        Args:
            now: `scored_at`; None: the time.
        """
        ...


class LocalScore:
    """Scores in this process with one version, by the version's own code."""

    def __init__(self, version: RegisteredVersion, checkpoint: Path, scorer: Scorer) -> None:
        info = read_info(checkpoint)
        self.version, self.task, self.variant = version, info.task, info.train.variant
        self.limits: ImageLimits = info.limits
        self.post_limits: PostLimits = info.post_limits
        self.points = tuple(read_operating_points(checkpoint).thresholds)
        self.schema = columns_of(info.task, self.points)
        self._task_fingerprint, self._scorer = info.task_fingerprint, scorer

    @classmethod
    def of(cls, version: RegisteredVersion) -> LocalScore:
        """Raises: RegistryError, CheckpointError where its files are gone or not those that were registered."""
        checkpoint = registry.fetch(version)
        return cls(version, checkpoint, scorer_of(checkpoint))

    @classmethod
    def champion(cls, name: str) -> LocalScore:
        """Raises: as `of`; RegistryError where there is no champion."""
        return cls.of(history.champion_of(name))

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        usable = [post for post in inputs if post.error is None]
        cells = {
            TITLE: [post.title for post in usable],
            TEXT: [post.text for post in usable],
            IMAGES: [list(post.images) for post in usable],
        }
        found: Iterator[Any] = iter(self._scorer.score(pd.DataFrame(cells)).to_dict("records")) if usable else iter(())
        now, number, records = now or datetime.now(UTC), 0, []
        for post in inputs:
            said: dict[str, Any] = {"error": post.error}
            if post.error is None:
                number += 1
                said = self._said(next(found), number)
            records.append(
                Record(
                    post_id=post.post_id,
                    model_name=self.version.name,
                    model_version=self.version.version,
                    task=self._task_fingerprint,
                    input_sha256=post.sha256,
                    scored_at=now,
                    **said,
                )
            )
        return records

    def _said(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        if isinstance(row[ERROR], str):  # the scorer's table is only ours: its row says nothing to the sender
            return {"error": row[ERROR].removeprefix(f"row {number}: ")}
        answers = {
            question: Answer(answer=row[answer_column(question)], probability=row[probability_column(question)])
            for question in self.task.question_ids
            if answer_column(question) in row
        }
        decisions = {point: bool(row[decision_column(point)]) for point in self.points}
        return {"logit": row[LOGIT], "score": row[SCORE], "answers": answers, "decisions": decisions}
