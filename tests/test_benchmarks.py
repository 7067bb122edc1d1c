"""The benchmarks run on few posts; the tables within hand-written pages are those of the committed records."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import (
    albums,
    batch_scoring,
    gate_power,
    growth,
    language,
    overhead,
    preprocessing,
    quantization,
    queue_training,
    same_scores,
    serving,
    stream_scoring,
)
from benchmarks.record import PAGE


@pytest.mark.parametrize(
    ("benchmark", "page"),
    [
        (preprocessing, PAGE),
        (growth, PAGE),
        (overhead, PAGE),
        (quantization, quantization.PAGE),
        (language, language.PAGE),
        (queue_training, queue_training.PAGE),
        (batch_scoring, batch_scoring.PAGE),
        (stream_scoring, stream_scoring.PAGE),
        (same_scores, same_scores.PAGE),
        (serving, serving.PAGE),
        (albums, albums.PAGE),
    ],
)
def test_the_pages_tables_are_made_of_the_record(benchmark: ModuleType, page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name, table in benchmark.tables(json.loads(benchmark.RECORD.read_text(encoding="utf-8"))).items():
        assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in text


@pytest.mark.parametrize("stage", growth.STAGES)
def test_every_stage_whose_growth_is_measured_runs(stage: str) -> None:
    assert growth.measure(stage, 60)["posts"] == 60


def test_preprocessing_is_measured_beside_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "STEP_IMAGES", 5)
    picture = preprocessing.encoded(preprocessing.photo(800, 600), "JPEG")
    assert preprocessing.memory_row(20, 32)["peak_MB"] > 0
    assert min(preprocessing.step_rows(picture).values()) > 0
    row = preprocessing.frame_row("photo", picture)
    assert row["difference"]["mean"] < 2, "of 255: the same picture"


def test_the_gates_draws_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_power, "POPULATION", 20_000)
    shares = gate_power.verdicts("average_precision", 0.15, 1000, 2, whole_gate=False)
    assert shares == {"promoted": 1, "kept": 0, "needs a person": 0}, "fifteen points are not to be overlooked"
