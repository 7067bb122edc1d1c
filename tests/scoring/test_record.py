"""The record: its two forms hold the same, and it is a score or an error, never both or neither."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from scoring.record import Answer, Record, columns_of, from_row, to_row, to_table
from tests.support.tasks import DEMO

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
WHO: dict[str, Any] = {"post_id": "a", "model_name": "m", "model_version": "7", "task": "f00d", "scored_at": NOW}
SAID: dict[str, Any] = {
    "logit": 1.0986122886681098,
    "score": 0.75,
    "decisions": {"p60": True, "p80": False},
    "answers": {"kind": Answer(answer="photo", probability=0.5)},
    "policy_version": "p1",
    "input_sha256": "00ff",
    "latency_ms": 12.5,
}
SCORED, FAILED = Record(**WHO, **SAID), Record(**WHO, error="image 1: no such file")


@pytest.mark.parametrize("record", [SCORED, FAILED])
def test_both_forms_hold_the_same_to_the_last_bit(record: Record) -> None:
    assert Record.model_validate_json(record.model_dump_json()) == record
    points = list(SAID["decisions"])
    table = to_table([record], columns_of(DEMO, points))
    assert from_row(table.to_pylist()[0], DEMO, points) == record
    assert set(to_row(record)) <= set(table.column_names)


@pytest.mark.parametrize("said", [{}, {"score": 0.5, "error": "both"}, {"error": "no", "decisions": {"p80": True}}])
def test_a_record_is_a_score_or_an_error(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Record(**WHO, **said)
