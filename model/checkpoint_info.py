"""What a checkpoint says of itself: `checkpoint.json` and `operating_points.json`. Nothing of this imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from .errors import CheckpointError
from .images import ImageLimits
from .metrics import Calibration, OperatingPoint
from .settings import BackboneSettings, PostLimits, SequenceSettings, TrainSettings
from .strict import Strict, explain_validation
from .task import Task, task_differences

FORMAT = 1
_META, _POINTS = "checkpoint.json", "operating_points.json"


class CheckpointInfo(Strict):
    """What `checkpoint.json` says."""

    format: int
    task: Task
    task_fingerprint: str
    sequence: SequenceSettings
    train: TrainSettings
    backbone: BackboneSettings
    #: The backbone travels inside the checkpoint.
    backbone_embedded: bool
    #: Of the backbone's architecture.
    backbone_fingerprint: str
    #: Data fingerprints, git commit, package versions: for people, never read by code.
    provenance: dict[str, Any] = {}
    #: The largest image that is scored: as large as what ingest let into training. A checkpoint that was registered
    #: before this was written down has the limits of that time.
    limits: ImageLimits = ImageLimits(max_bytes=20_000_000, max_pixels=50_000_000)
    #: The same of a post.
    post_limits: PostLimits = PostLimits()


class OperatingPoints(Strict):
    """How logits become scores and decisions; fitted on val."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    calibration: Calibration
    #: Keyed `p60` for a precision of 60 %; threshold inf where val holds no precise enough one.
    thresholds: dict[str, OperatingPoint]


def write_info(directory: Path, info: CheckpointInfo) -> None:
    (directory / _META).write_text(info.model_dump_json(indent=1), encoding="utf-8")


def read_info(directory: Path) -> CheckpointInfo:
    """Raises: CheckpointError where there is no checkpoint, or one of another format."""
    path = directory / _META
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: no {_META}: this is no checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no JSON ({error}): the checkpoint is damaged") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: a mapping was expected, found {type(raw).__name__}: the checkpoint is damaged")
    if raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {raw.get('format')}, this version reads {FORMAT}: use the version that wrote it"
        )
    try:
        info = CheckpointInfo.model_validate(raw)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {explain_validation(error)}") from error
    if info.task.fingerprint != info.task_fingerprint:
        raise CheckpointError(
            f"{path}: its task was changed after training: {info.task.fingerprint} is not {info.task_fingerprint}"
        )
    return info


def check_task(info: CheckpointInfo, task: Task, source: object) -> None:
    """Raises: CheckpointError where the checkpoint answers another task than `task`; it says what differs."""
    if info.task.fingerprint != task.fingerprint:
        raise CheckpointError(
            f"{source}: made for task {info.task.name} {info.task.fingerprint}, asked for {task.name} "
            f"{task.fingerprint}: {'; '.join(task_differences(info.task, task))}: train for this task, or use the "
            "checkpoint's own"
        )


def write_operating_points(directory: Path, points: OperatingPoints) -> None:
    (directory / _POINTS).write_text(points.model_dump_json(indent=1), encoding="utf-8")


def read_operating_points(directory: Path) -> OperatingPoints:
    """Raises: CheckpointError where none were written: a score without a threshold decides nothing."""
    try:
        return OperatingPoints.model_validate_json((directory / _POINTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{directory}: no {_POINTS}: only a registered checkpoint has thresholds") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{directory / _POINTS}: cannot be read ({error}): the checkpoint is damaged") from error
    except ValidationError as error:
        raise CheckpointError(f"{directory / _POINTS}: {explain_validation(error)}") from error
