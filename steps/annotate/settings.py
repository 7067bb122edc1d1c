"""The options of annotate: who is asked, what is sent, what it may cost."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from model.schema import SPLITS, TRAIN
from model.strict import Chosen

#: Fields of a request that bound an answer's tokens; one of them is always sent.
COMPLETION_LIMITS = ("max_tokens", "max_completion_tokens")
#: Fields of a request that `annotate.request_fields` may not set, and why.
_OUR_FIELDS = {
    "model": "set annotate.model, which is a part of every answer's key",
    "messages": "they are the questions and the images of a post",
    "stream": "an answer is read as a whole",
    "n": "one answer is read, and every one is paid for",
}


class AnnotateSettings(Chosen):
    """Asking the annotator for process labels."""

    #: `simulated` answers from the sample's hidden truth, `openai` asks an endpoint, `human` takes
    #: the manifest's own process labels.
    annotator: Literal["simulated", "openai", "human"]
    #: The model's name as the endpoint knows it.
    model: str = Field(min_length=1)
    #: The splits whose posts are annotated. The test split is measured against people's labels.
    splits: tuple[str, ...]
    concurrency: int = Field(ge=1, le=1024)
    #: Seconds for one request, attempts included.
    timeout: float = Field(gt=0, le=86_400)
    #: How often a missing answer (refusal, malformed reply) is asked again with the same options, over all runs.
    retries: int = Field(ge=0, le=1_000)
    #: Image detail sent to the endpoint.
    detail: Literal["low", "high", "auto"]
    max_tokens: int = Field(ge=1, le=10_000_000)
    #: Laid over the other fields of a request; None removes a field.
    request_fields: dict[str, JsonValue]
    #: All questions of a post in one request (the paper's form), or one request per question.
    ask: Literal["together", "singly"]
    #: The post's parts between marks that they cannot close, as data; or the paper's wording, which quotes them only.
    prompt: Literal["delimited", "paper"] = "delimited"
    #: The paper's plain numbers, or structured output where the endpoint has it.
    format: Literal["numbers", "json_schema"]
    #: Single requests, or the endpoint's batch interface.
    mode: Literal["online", "batch"]
    #: Dollars that one run may spend at most; None: no cap.
    max_cost: float | None = Field(gt=0)
    #: A database URL; None: a SQLite file under `home()`.
    ledger: str | None
    #: The least Cohen's kappa against people's labels, of all questions or by id; None: no gate.
    min_agreement: float | dict[str, float] | None
    #: What a question below it is: a warning, left without labels, or the end of the run.
    on_low_agreement: Literal["warn", "drop", "fail"]
    #: The run stops when a larger share of the posts comes back without an answer.
    max_missing_share: float = Field(ge=0, le=1)

    @property
    def source(self) -> str:
        """Names the annotator with its model, "openai:gpt-4o": the labels' `label_source`, and a part of every key."""
        return self.annotator if self.annotator == "human" else f"{self.annotator}:{self.model}"

    @field_validator("splits")
    @classmethod
    def _known_splits(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for split in value:
            if split not in SPLITS:
                raise ValueError(f"{split!r} is not one of {', '.join(SPLITS)}")
        if TRAIN not in value or len(set(value)) != len(value):
            raise ValueError(f"each split once, and {TRAIN} among them: these are the labels that are trained on")
        return value

    @field_validator("request_fields")
    @classmethod
    def _fields_of_a_request(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in value:
            if name in _OUR_FIELDS:
                raise ValueError(f"{name!r} is not to be set here; {_OUR_FIELDS[name]}")
        for name in COMPLETION_LIMITS:
            limit = value.get(name)
            if limit is not None and (type(limit) is not int or limit < 1):
                raise ValueError(f"{name} {limit!r} is no number of tokens")
        if value.get(COMPLETION_LIMITS[0], 0) is None and value.get(COMPLETION_LIMITS[1]) is None:
            raise ValueError("where max_tokens is null, max_completion_tokens must bound what an answer costs")
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError("a number that is not finite cannot be sent") from None
        return value

    @field_validator("min_agreement")
    @classmethod
    def _kappa(cls, value: float | dict[str, float] | None) -> float | dict[str, float] | None:
        for floor in value.values() if isinstance(value, dict) else () if value is None else (value,):
            if not -1 <= floor <= 1:
                raise ValueError(f"{floor} is no kappa: -1 to 1, 0 where chance agrees as often")
        return value

    @model_validator(mode="after")
    def _simulated_form(self) -> AnnotateSettings:
        form = (self.ask, self.format, self.mode)
        if self.annotator == "simulated" and form != ("together", "numbers", "online"):
            raise ValueError("the simulated annotator takes `ask: together`, `format: numbers`, `mode: online` only")
        return self
