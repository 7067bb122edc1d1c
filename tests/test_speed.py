"""The tables within hand-written pages are those of the committed records."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import growth, overhead, preprocessing, quantization
from benchmarks.record import PAGE


@pytest.mark.parametrize(
    ("benchmark", "page"),
    [(preprocessing, PAGE), (growth, PAGE), (overhead, PAGE), (quantization, quantization.PAGE)],
)
def test_the_pages_tables_are_made_of_the_record(benchmark: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name, table in benchmark.tables(json.loads(benchmark.RECORD.read_text(encoding="utf-8"))).items():
        assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in text
