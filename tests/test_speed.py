"""docs/speed.md shows what the committed records say, and they keep what was promised."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest

from benchmarks import growth, overhead, preprocessing
from benchmarks.record import PAGE

RECORD: dict[str, Any] = json.loads(preprocessing.RECORD.read_text(encoding="utf-8"))


@pytest.mark.parametrize("benchmark", [preprocessing, growth, overhead])
def test_the_pages_tables_are_made_of_the_record(benchmark: ModuleType) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, table in benchmark.tables(json.loads(benchmark.RECORD.read_text(encoding="utf-8"))).items():
        assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in page


def test_phone_photos_are_preprocessed_about_twice_as_fast_as_by_the_plain_path() -> None:
    ratios = {row["picture"]: row["ratio"] for row in RECORD["frames"]}
    assert ratios["phone, 1080 x 1440, JPEG quality 75"] >= 2
    assert all(ratios[f"phone, 1080 x 1440, JPEG quality {quality}"] >= 1.75 for quality in (85, 90))


def test_the_memory_of_large_frames_does_not_grow_with_their_number() -> None:
    few, many = (row for row in RECORD["memory"] if row["side"] == preprocessing.SIDE)
    assert many["posts"] >= 4 * few["posts"]
    assert many["peak_MB"] <= 1.1 * few["peak_MB"]
