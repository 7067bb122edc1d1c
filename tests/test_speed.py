"""The pages show what the committed records of the benchmarks say, and these keep what was promised."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import growth, overhead, preprocessing, quantization
from benchmarks.record import PAGE

RECORD: dict[str, Any] = json.loads(preprocessing.RECORD.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("benchmark", "page"),
    [(preprocessing, PAGE), (growth, PAGE), (overhead, PAGE), (quantization, quantization.PAGE)],
)
def test_the_pages_tables_are_made_of_the_record(benchmark: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name, table in benchmark.tables(json.loads(benchmark.RECORD.read_text(encoding="utf-8"))).items():
        assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in text


def test_phone_photos_are_preprocessed_twice_as_fast_as_by_the_plain_path() -> None:
    ratios = {row["picture"]: row["ratio"] for row in RECORD["frames"]}
    assert all(ratios[f"phone, 1080 x 1440, JPEG quality {quality}"] >= 2 for quality in (75, 85, 90, 95))
    assert RECORD["step"]["plain"] >= 2 * RECORD["step"]["ours"]


def test_the_pipeline_s_overhead_is_within_its_aim() -> None:
    assert overhead.overhead(json.loads(overhead.RECORD.read_text(encoding="utf-8"))) <= 35


def test_the_memory_of_large_frames_does_not_grow_with_their_number() -> None:
    few, many = (row for row in RECORD["memory"] if row["side"] == preprocessing.SIDE)
    assert many["posts"] >= 4 * few["posts"]
    assert many["peak_MB"] <= 1.1 * few["peak_MB"]
    by_posts = {row["posts"]: row["peak_MB"] - row["with_table_MB"] for row in RECORD["memory"] if row["side"] == 32}
    assert by_posts[100_000] - by_posts[1_000] <= 60
