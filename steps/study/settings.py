"""The options of the study. `configs/study.yaml` holds the values, laid over `configs/default.yaml`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from model.settings import MAX_SEED, LabelMethod, Variant, answers_questions
from model.strict import Chosen
from steps.paths import DEFAULT_CONFIG, REPOSITORY, STUDY_CONFIG
from steps.settings import SAMPLE, TrainingSettings, load_options

#: What the study can be asked for; each is one table of its report.
StudyTable = Literal["variants", "sizes", "questions", "noise", "methods"]


class StudySettings(Chosen):
    """The cells of the study: what is trained how often on how much."""

    tables: tuple[StudyTable, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field(min_length=1)
    #: Numbers of training posts, ascending; every table but `sizes` takes the last.
    train_posts: tuple[int, ...] = Field(min_length=1)
    #: The variant of `sizes` (beside the paper's `agentps`), `questions`, `noise` and `methods`.
    variant: Variant
    #: Share of the training posts whose labels by people the methods may use, beside the annotator's.
    gold_share: float = Field(gt=0, le=1)
    #: Made-up annotators of table `noise`: the share of right (or of given) answers.
    accuracies: tuple[float, ...]
    methods: tuple[LabelMethod, ...]
    #: Cells trained at once, each on its share of the cores.
    workers: int = Field(ge=1, le=1_024)
    #: Resamples of the test posts for the 95 % intervals.
    bootstrap: int = Field(ge=1, le=100_000)
    #: The folder of `results.md`, `results.json` and `results.html`, and of `records.jsonl`, which keeps the finished
    #: cells. Relative to the repository.
    output: str

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError("each seed once: a second training of one tells nothing")
        return value

    @field_validator("train_posts")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value)) or value[0] < 1:
            raise ValueError("numbers of posts, distinct, ascending, 1 or more")
        return value

    @field_validator("accuracies")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < accuracy < 1 for accuracy in value):
            raise ValueError("shares between 0 and 1, without both: people's own labels are the accuracy of 1")
        return value

    @field_validator("variant")
    @classmethod
    def _answers(cls, value: Variant) -> Variant:
        if not answers_questions(value):
            raise ValueError(f"{value} answers no questions: process labels have no effect on it")
        return value


class StudyRunSettings(TrainingSettings):
    """All options of `pipelines.agentps_study`."""

    defaults = (DEFAULT_CONFIG, STUDY_CONFIG)
    # each cell has its own variant and seed, and no model is registered
    not_taken = frozenset({"variant", "seed", "register", "promote", "retrain"})

    study: StudySettings

    @model_validator(mode="after")
    def _own_output(self) -> StudyRunSettings:
        if self.posts != SAMPLE and (REPOSITORY / self.study.output).resolve() == REPOSITORY / "docs":
            raise ValueError("study.output: docs holds the embedded sample's results: name a folder for your own")
        return self

    @model_validator(mode="after")
    def _method_of_each_cell(self) -> StudyRunSettings:
        if self.fine_tune.labels != "plain":
            raise ValueError("fine_tune.labels: the study compares the methods: name them in study.methods")
        return self


def load_study_settings(parameters: dict[str, Any], source: str = "parameters") -> StudyRunSettings:
    """The settings of a study: `parameters` laid over its defaults. See `load_options`."""
    return load_options(StudyRunSettings, parameters, source)
