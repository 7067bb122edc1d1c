"""Every option of the training pipeline: names, types, ranges. `configs/default.yaml` holds the values.

A run's options are laid over the defaults, key by key, and checked here; an unknown key is an error. Each step receives
its own section only, so that changing one section leaves the other steps cached.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from model.errors import ConfigError
from model.images import ImageLimits
from model.metrics import accuracy_name, comparable_names, is_accuracy
from model.schema import SPLITS
from model.settings import (
    MAX_SEED,
    BackboneSettings,
    PostLimits,
    SequenceSettings,
    TrainSettings,
    Variant,
    answers_questions,
)
from model.strict import Chosen, explain_validation
from model.task import Task
from model.yaml_file import load_yaml
from steps.annotate.settings import AnnotateSettings
from steps.paths import DEFAULT_CONFIG
from steps.register.names import ModelName

#: The value of `posts` that stands for the embedded sample.
SAMPLE = "sample"
#: The longest time that a date can be reckoned back by: a century, in days.
_CENTURY = 36_525


class RunOptions(Chosen):
    """All options of one pipeline."""

    #: The files of its default values, the later ones laid over the earlier.
    defaults: ClassVar[tuple[Path, ...]] = ()
    #: Options of a base class that this pipeline does not take.
    not_taken: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def names(cls) -> frozenset[str]:
        """What a run file may set."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items()) - cls.not_taken


Options = TypeVar("Options", bound=RunOptions)


#: easy: an original text is always about the album, words alone tell. hard: a text about another thing is mostly about
#: one that a few images show too, so that images must be counted.
Difficulty = Literal["easy", "standard", "hard"]


class SampleSettings(Chosen):
    """The embedded sample: how many posts are rendered for each split, and from which seed."""

    train: int = Field(ge=1, le=10_000_000)
    val: int = Field(ge=1, le=10_000_000)
    test: int = Field(ge=1, le=10_000_000)
    seed: int = Field(ge=0, le=MAX_SEED)
    difficulty: Difficulty
    #: Share of the training posts that carry people's process labels; val and test carry them all.
    gold_share: float = Field(ge=0, le=1)
    #: One of so many posts that follow each other comes as a clip in place of an album; 0: none.
    clips: int = Field(default=0, ge=0)


class IngestSettings(Chosen):
    """Reading a manifest and its images."""

    #: The run stops when a larger share of the posts is rejected.
    max_reject_share: float = Field(ge=0, le=1)
    max_image_bytes: int = Field(gt=0, le=2**40)
    max_image_pixels: int = Field(gt=0, le=2**40)
    max_images: int = Field(ge=1, le=100_000)
    max_video_bytes: int = Field(default=ImageLimits.max_video_bytes, gt=0, le=2**40)
    max_video_seconds: float = Field(default=ImageLimits.max_video_seconds, gt=0, le=86_400)
    #: Of title and text together.
    max_text_characters: int = Field(default=PostLimits.max_text_characters, ge=1)
    #: Split of a post that names none: shares of val and test, by a hash of its post_id.
    val_share: float = Field(gt=0, lt=1)
    test_share: float = Field(gt=0, lt=1)
    #: What posts may not share across splits: those that do are put into one. Empty: each post by its id alone.
    group_by: tuple[Literal["image", "text"], ...] = ()

    @property
    def limits(self) -> ImageLimits:
        return ImageLimits(
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
            max_video_bytes=self.max_video_bytes,
            max_video_seconds=self.max_video_seconds,
        )

    @property
    def post_limits(self) -> PostLimits:
        return PostLimits(max_images=self.max_images, max_text_characters=self.max_text_characters)

    @model_validator(mode="after")
    def _room_for_train(self) -> IngestSettings:
        if self.val_share + self.test_share >= 1:
            raise ValueError(f"val_share {self.val_share} and test_share {self.test_share} leave nothing to train on")
        return self


class ValidateSettings(Chosen):
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
        for split, number in value.items():
            if number < 0:
                raise ValueError(f"{split}: {number} is no number of posts: 0 or more")
        return value

    @field_validator("positive_share")
    @classmethod
    def _least_and_most(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError("the least and the most share, each from 0 to 1, the least first")
        return value


class EvaluateSettings(Chosen):
    """The report on the test split."""

    #: Precision targets in percent; a threshold is fitted on val for each.
    precisions: tuple[int, ...]
    #: With which each served threshold keeps its precision (see `steps.evaluate.promise`).
    confidence: float = Field(ge=0.5, le=0.999)
    #: Resamples for the 95 % intervals; 0: none.
    bootstrap: int = Field(ge=0, le=100_000)
    #: Posts shown for each of: true positives, false positives, false negatives, true negatives.
    examples: int = Field(ge=0, le=10_000)

    @field_validator("precisions")
    @classmethod
    def _percent(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or any(not 0 < p < 100 for p in value) or list(value) != sorted(set(value)):
            raise ValueError("precisions in percent, distinct, ascending, between 1 and 99")
        return value


class RegisterSettings(Chosen):
    """Where the model version goes."""

    #: The registered model's name; default `agentps-<task>`.
    name: ModelName | None = None

    def model_name(self, task: Task) -> str:
        return self.name or f"agentps-{task.name}"


class PromoteSettings(Chosen):
    """The gate between a new version and the alias `champion`."""

    #: A metric of the report, without its prefix `test_`: candidate and champion are compared on it.
    metric: str
    #: Its least value for any version to pass.
    floor: float = Field(le=1)
    #: The least values of further metrics of the report: `recall_at_pN`, `accuracy_<question>`, …
    floors: dict[str, Annotated[float, Field(le=1)]]
    #: The highest calibration error, or what chance alone may show on so few posts, where that is more; None: any.
    max_calibration_error: float | None = Field(gt=0, le=1)
    #: How many of 100 versions that know nothing may pass, as a share: `metric` must beat what that many of them reach
    #: by chance on so many test posts. 1: it is not asked.
    guessing: float = Field(gt=0, le=1)
    #: Resamples of the test posts for the interval of the gain.
    bootstrap: int = Field(ge=100, le=100_000)
    #: A champion of more days, or that people's late labels speak against, may be replaced by a version whose gain is
    #: above `-stale_tolerance`.
    stale_days: float = Field(ge=0, le=_CENTURY)
    stale_tolerance: float = Field(ge=0)
    #: The metric may not fall by more on any slice that has at least `min_slice_positives` positive posts.
    max_slice_drop: float = Field(ge=0)
    min_slice_positives: int = Field(ge=1)
    #: A registered model of a production registry that gets a copy of every champion; None: no copy.
    target: ModelName | None = None


class NotifySettings(Chosen):
    """Who is told of a scheduled run that failed: one line. Neither: nobody."""

    #: Takes a POST of `{"text": …}`, as Slack and Mattermost do.
    webhook: str | None = Field(pattern=r"^(https?://|env:\w+$)")
    #: Gets the line on stdin; split as a shell would, but run without one.
    command: str | None

    @field_validator("command")
    @classmethod
    def _words(cls, value: str | None) -> str | None:
        if value is not None and not shlex.split(value):
            raise ValueError("a command of at least one word, or null")
        return value


class RetrainSettings(Chosen):
    """What `agentps_retraining` trains on, starts from and compares with."""

    #: The run ends at once where fewer posts are newer than the retraining cursor.
    min_fresh: int = Field(ge=1)
    #: People's labels that came after the post: a manifest of `post_id` and `label`, or the URL of the review desk's
    #: store. None: the manifest's own only.
    labels: str | None
    #: The scores of production: a store's URL, or a table (see `steps.retrain.live`); None: the store of this machine.
    scores: str | None
    #: The precision in percent that the served threshold promised.
    live_precision: int = Field(gt=0, lt=100)
    #: Only the newest days of a version's scores count: good results from before a change must not hide it.
    live_days: float = Field(gt=0, le=_CENTURY)
    #: Which older posts are trained on beside the fresh ones.
    older: Literal["window", "replay"]
    #: window: those of this many days before the newest post.
    window_days: float = Field(gt=0, le=_CENTURY)
    #: replay: for each fresh post, this many older posts, chosen the same way every time.
    replay: float = Field(ge=0, le=1_000)
    #: The test posts of this many newest days, beside those whose manifest says `split: test`.
    test_days: float = Field(gt=0, le=_CENTURY)
    #: The weights that a training starts from.
    start: Literal["champion", "scratch"]
    #: Effect sizes from which a difference to the champion's training data is a drift.
    max_ks: float = Field(gt=0, le=1)
    max_cramers_v: float = Field(gt=0, le=1)
    max_auc: float = Field(gt=0.5, le=1)
    on_drift: Literal["warn", "fail"]


class TrainingSettings(RunOptions):
    """All options of `agentps_training`, in the order of its steps, and of `agentps_retraining`."""

    defaults: ClassVar[tuple[Path, ...]] = (DEFAULT_CONFIG,)

    #: `sample`, or the path of a manifest.
    posts: str = Field(min_length=1)
    #: The name of a shipped task, or the path of a task file.
    task: str = Field(min_length=1)
    #: `auto`: the simulated annotator for the sample, people's own process labels for a manifest.
    annotator: Literal["auto", "simulated", "openai", "human"]
    variant: Variant
    seed: int = Field(ge=0, le=MAX_SEED)
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
    retrain: RetrainSettings
    notify: NotifySettings

    @model_validator(mode="after")
    def _known_metric(self) -> TrainingSettings:
        # found now, not in the last step; only metrics of which more is better
        known = comparable_names(self.evaluate.precisions)
        if self.promote.metric not in known:
            raise ValueError(f"promote.metric {self.promote.metric!r} is not one of {', '.join(known)}")
        for name in self.promote.floors:  # questions are the task's: the gate looks for them in the report
            if name not in known and not is_accuracy(name):
                raise ValueError(f"promote.floors: {name!r} is not one of {', '.join(known)}, accuracy_<question>")
            if is_accuracy(name) and not answers_questions(self.variant):
                raise ValueError(
                    f"promote.floors: {name}: the variant {self.variant} answers no questions: remove it, or take "
                    "another variant"
                )
        return self

    def check_task(self, task: Task) -> None:
        """What the options say of questions, against the task that has them.

        Raises:
            ConfigError: they name a question that the task does not have.
        """
        agreement, accuracies = self.annotate.min_agreement, [accuracy_name(id_) for id_ in task.question_ids]
        for option, named, known in (
            ("annotate.min_agreement", agreement if isinstance(agreement, dict) else (), task.question_ids),
            ("promote.floors", filter(is_accuracy, self.promote.floors), accuracies),
        ):
            if unknown := sorted(set(named) - set(known)):
                raise ConfigError(
                    f"{option}: {', '.join(unknown)}: the task {task.name} has no such question; it has "
                    f"{', '.join(known) or 'none'}"
                )

    @model_validator(mode="after")
    def _trainable(self) -> TrainingSettings:
        if self.backbone.quantization is not None and self.fine_tune.lora is None:
            raise ValueError(
                f"backbone.quantization {self.backbone.quantization} needs fine_tune.lora: such weights are not trained"
            )
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


def load_settings(parameters: dict[str, Any], source: str = "parameters") -> TrainingSettings:
    """The settings of a training: `parameters` laid over `configs/default.yaml`. See `load_options`."""
    return load_options(TrainingSettings, parameters, source)


def load_options(kind: type[Options], given: dict[str, Any], source: str) -> Options:
    """`given` laid over the defaults of its kind.

    Args:
        given: what the user set; keys with the value None count as not set.
        source: named in the error.

    Raises:
        ConfigError: names each key that is unknown, missing or out of range.
    """
    values: dict[str, Any] = {}
    for layer in (*map(read_yaml, kind.defaults), {key: value for key, value in given.items() if value is not None}):
        values = _merge(values, layer)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain_validation(error)}") from error


def read_yaml(config: Path) -> dict[str, Any]:
    """The mapping that a config file holds, unchecked; an empty file is an empty one.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        raw = load_yaml(config)
    except FileNotFoundError:
        raise ConfigError(
            f"config {config}: no such file: give a path relative to the working directory, or absolute"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config {config}: cannot be read as YAML: {error}") from error
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"config {config}: a mapping of options was expected, found {type(raw).__name__}")
    return raw


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
