"""model/post.py: one post as people give it."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.post import Post, parse, row_of
from model.task import Task
from steps.paths import REPOSITORY

#: Questions whose ids are names of pydantic's own.
TASK = Task.model_validate(
    {
        "name": "t",
        "version": 1,
        "questions": [
            {"id": "copy", "ask": "?", "annotate": "?", "answer": "class", "classes": ["0", "1"]},
            {"id": "model_dump", "ask": "?", "annotate": "?", "rule": "count >= 1"},
        ],
        "final": {"ask": "Bad?", "classes": ["good", "bad"], "positive": "bad"},
    }
)


def cells(**changes: Any) -> dict[str, Any]:
    return {"post_id": "p", "images": ["a.jpg"]} | changes


@pytest.mark.parametrize("null", [None, math.nan, np.float64("nan"), pd.NA, pd.NaT], ids=str)
def test_every_form_of_null_is_an_absent_cell(null: Any) -> None:
    row = row_of(TASK)
    names = set(Post.model_fields) - {"post_id", "images"} | set(TASK.question_ids)
    assert parse(row, cells(**dict.fromkeys(names, null))) == parse(row, cells())
    assert parse(row, cells(post_id=null))[1] == [
        "post_id: missing; text of 1 to 512 characters without control characters and outer blanks, or a whole number "
        "is expected"
    ]


def test_a_question_may_have_any_name_and_a_class_is_named_or_numbered() -> None:
    parsed, faults = parse(row_of(TASK), cells(copy="1", model_dump="yes"))
    assert (faults, parsed is None) == ([], False)
    assert parsed.model_dump(by_alias=True)["copy"] == 1
    assert parsed.model_dump(by_alias=True)["model_dump"] == 1
    assert (
        "model_dump: 2; a class index 0 to 1, one of ['no', 'yes'] or null is expected"
        in parse(row_of(TASK), cells(model_dump=2))[1]
    )


def test_only_the_columns_that_are_asked_for_are_judged() -> None:
    row = row_of(TASK, ("post_id", "label", "copy"))
    parsed, _ = parse(row, {"post_id": 1, "label": 1.0, "copy": 0, "images": 3, "title": 4})
    assert parsed.model_dump(by_alias=True) == {"post_id": "1", "label": 1, "copy": 0}


def test_the_schema_says_what_is_taken_and_the_json_body_is_held_to_it() -> None:
    schema = row_of(TASK).model_json_schema()
    assert schema["required"] == ["post_id", "images"]
    assert all("description" in column for column in schema["properties"].values())
    assert schema["properties"]["copy"]["anyOf"][0] == {"enum": [0, 1, "0", "1"]}
    body = '{"post_id": 7, "images": ["a.jpg"], "created_at": "2025-03-01T12:00:00+01:00", "title": null, "label": 1}'
    parsed = Post.model_validate_json(body)
    assert (parsed.post_id, parsed.title, parsed.label) == ("7", "", 1)
    assert parsed.created_at is not None
    assert parsed.created_at.isoformat() == "2025-03-01T11:00:00+00:00"


def test_a_row_is_read_without_torch() -> None:
    code = "import sys, model.post, steps.ingest.rows, steps.retrain.fresh; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
