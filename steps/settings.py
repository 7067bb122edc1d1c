"""Every option of the training pipeline: names, types, ranges. `configs/default.yaml` holds the values.

A run's parameters (`-c FILE`) are laid over `configs/default.yaml`, key by key, and checked here;
an unknown key is an error. Each step receives its own section only, so that changing one section
leaves the other steps cached.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model.errors import ConfigError
from model.schema import SPLITS
from model.settings import BackboneSettings, SequenceSettings, TrainSettings, Variant
from model.task import Task, explain_validation

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = REPOSITORY / "configs" / "default.yaml"
#: The value of `posts` that stands for the embedded sample.
SAMPLE = "sample"


def home() -> Path:
    """Where the project keeps its local state: `$AGENTPS_HOME`, else `.agentps/` in the repository."""
    return Path(os.environ.get("AGENTPS_HOME") or REPOSITORY / ".agentps").resolve()


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleSettings(_Section):
    """The embedded sample: how many posts are rendered for each split, and from which seed."""

    train: int = Field(ge=1)
    val: int = Field(ge=1)
    test: int = Field(ge=1)
    seed: int = Field(ge=0)
    #: Share of the training posts that carry people's process labels; val and test carry them all.
    gold_share: float = Field(ge=0, le=1)


class IngestSettings(_Section):
    """Reading a manifest and its images."""

    #: The run stops when a larger share of the posts is rejected.
    max_reject_share: float = Field(ge=0, le=1)
    max_image_bytes: int = Field(gt=0)
    max_image_pixels: int = Field(gt=0)
    max_images: int = Field(ge=1)
    #: Split of a post that names none: shares of val and test, by a hash of its post_id.
    val_share: float = Field(gt=0, lt=1)
    test_share: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _room_for_train(self) -> IngestSettings:
        if self.val_share + self.test_share >= 1:
            raise ValueError(f"val_share {self.val_share} and test_share {self.test_share} leave nothing to train on")
        return self


class AnnotateSettings(_Section):
    """Asking the annotator for process labels."""

    #: `simulated` answers from the sample's hidden truth, `openai` asks an endpoint, `human` takes
    #: the manifest's own process labels.
    annotator: Literal["simulated", "openai", "human"]
    #: The model's name as the endpoint knows it.
    model: str
    #: The splits whose posts are annotated. The test split is measured against people's labels.
    splits: tuple[str, ...]
    concurrency: int = Field(ge=1, le=1024)
    #: Seconds for one request, attempts included.
    timeout: float = Field(gt=0)
    #: How often a missing answer (refusal, malformed reply) is asked again, over all runs.
    retries: int = Field(ge=0)
    #: Image detail sent to the endpoint.
    detail: Literal["low", "high", "auto"]
    max_tokens: int = Field(ge=1)
    #: The run stops when a larger share of the posts comes back without an answer.
    max_missing_share: float = Field(ge=0, le=1)

    @field_validator("splits")
    @classmethod
    def _known_splits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for split in value:
            if split not in SPLITS:
                raise ValueError(f"{split!r} is not one of {', '.join(SPLITS)}")
        return value


class ValidateSettings(_Section):
    """The expectations on posts and labels. Shares are of the rows they speak of."""

    min_posts: dict[str, int]
    #: The positive share of the final label, in each split.
    positive_share: tuple[float, float]
    #: A question whose labelled posts are rarer than this is a warning.
    min_labelled_share: float = Field(ge=0, le=1)
    #: Share of a split's posts that may share an image, or title and text, with another split.
    max_leaked_share: float = Field(ge=0, le=1)
    max_text_characters: int = Field(ge=1)
    #: True: every test post must be newer than every train post.
    time_ordered: bool

    @field_validator("min_posts")
    @classmethod
    def _known_splits(cls, value: dict[str, int]) -> dict[str, int]:
        if set(value) != set(SPLITS):
            raise ValueError(f"one number for each of {', '.join(SPLITS)} is needed")
        return value


class EvaluateSettings(_Section):
    """The report on the test split."""

    #: Precision targets in percent; a threshold is fitted on val for each.
    precisions: tuple[int, ...]
    #: Resamples for the 95 % intervals; 0: none.
    bootstrap: int = Field(ge=0)
    #: Posts shown for each of: true positives, false positives, false negatives, true negatives.
    examples: int = Field(ge=0)

    @field_validator("precisions")
    @classmethod
    def _percent(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or any(not 0 < p < 100 for p in value) or list(value) != sorted(set(value)):
            raise ValueError("precisions in percent, distinct, ascending, between 1 and 99")
        return value


class RegisterSettings(_Section):
    """Where the model version goes."""

    #: The registered model's name; default `agentps-<task>`.
    name: str | None = None

    def model_name(self, task: Task) -> str:
        return self.name or f"agentps-{task.name}"


class PromoteSettings(_Section):
    """The gate between a new version and the alias `champion`."""

    #: A metric of the report, without its prefix `test_`: candidate and champion are compared on it.
    metric: str
    #: Its least value for any version to pass.
    floor: float
    #: The least values of further metrics of the report: `recall_at_pN`, `accuracy_<question>`, …
    floors: dict[str, float]
    #: The highest calibration error, or what chance alone may show on so few posts, where that is more.
    max_calibration_error: float = Field(gt=0, le=1)
    #: Resamples of the test posts for the interval of the gain.
    bootstrap: int = Field(ge=100)
    #: A champion of more days may be replaced by a version whose gain is above `-stale_tolerance`.
    stale_days: float = Field(ge=0)
    stale_tolerance: float = Field(ge=0)
    #: The metric may not fall by more on any slice that has at least `min_slice_positives` positive posts.
    max_slice_drop: float = Field(ge=0)
    min_slice_positives: int = Field(ge=1)
    #: A registered model of a production registry that gets a copy of every champion; None: no copy.
    target: str | None = None


class TrainingSettings(_Section):
    """All options of `agentps_training`, in the order of its steps."""

    #: `sample`, or the path of a manifest.
    posts: str
    #: The name of a shipped task, or the path of a task file.
    task: str
    #: `auto`: the simulated annotator for the sample, people's own process labels for a manifest.
    annotator: Literal["auto", "simulated", "openai", "human"]
    variant: Variant
    seed: int = Field(ge=0)
    sample: SampleSettings
    ingest: IngestSettings
    annotate: AnnotateSettings
    validate_: ValidateSettings = Field(alias="validate")
    backbone: BackboneSettings
    preprocess: SequenceSettings
    fine_tune: TrainSettings
    evaluate: EvaluateSettings
    register_: RegisterSettings = Field(alias="register")
    promote: PromoteSettings

    @model_validator(mode="after")
    def _known_metric(self) -> TrainingSettings:
        # found now, not in the last step; only metrics of which more is better
        known = [
            "average_precision",
            "brier_skill",
            "f1",
            "roc_auc",
            *(f"recall_at_p{p}" for p in self.evaluate.precisions),
        ]
        if self.promote.metric not in known:
            raise ValueError(f"promote.metric {self.promote.metric!r} is not one of {', '.join(known)}")
        for name in self.promote.floors:  # questions are the task's: the gate looks for them in the report
            if name not in known and not name.startswith("accuracy_"):
                raise ValueError(f"promote.floors: {name!r} is not one of {', '.join(known)}, accuracy_<question>")
        return self

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, raw: Any) -> Any:
        """`annotator`, `variant` and `seed` at the top are what the sections read."""
        if isinstance(raw, dict):
            raw = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
            if raw.get("annotator") == "auto":
                raw["annotator"] = "simulated" if raw.get("posts") == SAMPLE else "human"
            for section, key in (("annotate", "annotator"), ("fine_tune", "variant"), ("fine_tune", "seed")):
                if isinstance(raw.get(section), dict):
                    if key in raw[section]:
                        raise ValueError(f"{section}.{key}: set `{key}` at the top instead")
                    raw[section][key] = raw.get(key)
        return raw


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def load_settings(parameters: dict[str, Any], source: str = "parameters") -> TrainingSettings:
    """The settings of a run: `parameters` laid over `configs/default.yaml`.

    Args:
        parameters: what the user set; keys with the value None count as not set.
        source: named in the error.

    Raises:
        ConfigError: names each key that is unknown, missing or out of range.
    """
    base = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
    try:
        return TrainingSettings.model_validate(_merge(base, {k: v for k, v in parameters.items() if v is not None}))
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain_validation(error)}") from error
