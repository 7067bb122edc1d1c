"""The record: what one version says of one post, the same in batch, service, stream and store.

It has two forms: nested as JSON (`Record.model_dump_json`), and flat as a row of a table (`to_row`, `from_row`), whose
columns are those of `model.columns` and the names below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from model.columns import (
    ERROR,
    LOGIT,
    MODEL_VERSION,
    SCORE,
    SCORED_AT,
    answer_column,
    decision_column,
    probability_column,
)
from model.schema import POST_ID
from model.task import Task

MODEL_NAME, TASK, POLICY_VERSION = "model_name", "task", "policy_version"
INPUT_SHA256, LATENCY_MS = "input_sha256", "latency_ms"


class Answer(BaseModel):
    """The most probable class of one question, by its name, and its probability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: str
    probability: float = Field(ge=0, le=1)


class Record(BaseModel):
    """One post, scored by one version: a score, or the error that was instead."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    post_id: str
    model_name: str
    model_version: str
    task: str = Field(description="the fingerprint of the task: its questions, wordings and classes")
    policy_version: str | None = Field(None, description="of the policy that decided what happens; null: none did")
    input_sha256: str | None = Field(None, description="of title, text and pictures; null: a picture was not read")
    scored_at: AwareDatetime
    latency_ms: float | None = Field(None, ge=0, description="from arrival to answer; null in a batch")
    logit: float | None = Field(None, description="of the final question, before calibration")
    score: float | None = Field(None, ge=0, le=1, description="the calibrated probability of the positive class")
    decisions: dict[str, bool] = Field({}, description="flagged, by precision target: `p80` is 80 % precision")
    answers: dict[str, Answer] = Field({}, description="by question")
    error: str | None = Field(None, description="why there is no score; null where there is one")

    @model_validator(mode="after")
    def _score_or_error(self) -> Self:
        if (self.score is None) == (self.error is None):
            raise ValueError("a record has either a score or an error")
        if self.score is None and (self.decisions or self.answers):
            raise ValueError("a record with an error has neither decisions nor answers")
        return self


def columns_of(task: Task, points: Iterable[str]) -> pa.Schema:
    """The flat form's columns, in their order.

    Args:
        points: the keys of the operating points, as `p80`.
    """
    text, number, flag = pa.string(), pa.float64(), pa.bool_()
    fields = [(POST_ID, text), (LOGIT, number), (SCORE, number)]
    fields += [(decision_column(point), flag) for point in points]
    for question in task.question_ids:
        fields += [(answer_column(question), text), (probability_column(question), number)]
    fields += [(ERROR, text), (MODEL_NAME, text), (MODEL_VERSION, text), (TASK, text), (POLICY_VERSION, text)]
    fields += [(INPUT_SHA256, text), (SCORED_AT, pa.timestamp("us", "UTC")), (LATENCY_MS, number)]
    return pa.schema(fields)


def to_row(record: Record) -> dict[str, Any]:
    """The flat form; a question or operating point without a value has no column."""
    row = record.model_dump(exclude={"decisions", "answers"})
    row |= {decision_column(point): flagged for point, flagged in record.decisions.items()}
    for question, found in record.answers.items():
        row |= {answer_column(question): found.answer, probability_column(question): found.probability}
    return row


def from_row(row: Mapping[str, Any], task: Task, points: Sequence[str]) -> Record:
    """The reverse of `to_row`; a null cell is the same as an absent one."""
    decisions = {point: row[decision_column(point)] for point in points}
    answers = {
        question: Answer(answer=row[answer_column(question)], probability=row[probability_column(question)])
        for question in task.question_ids
        if row.get(answer_column(question)) is not None
    }
    fields = {name: row[name] for name in Record.model_fields if row.get(name) is not None}
    return Record(**fields, answers=answers, decisions={p: d for p, d in decisions.items() if d is not None})


def to_table(records: Sequence[Record], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([to_row(record) for record in records], schema=schema)
