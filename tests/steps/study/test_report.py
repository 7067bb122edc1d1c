from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.schema import IMAGES, LABEL, SPLIT, TEST, TEXT, TITLE, TRAIN
from model.task import load_task
from steps.study.baselines import Baseline, baselines
from steps.study.cells import Cell, cells_of_tables
from steps.study.records import Record, encoded_ranks
from steps.study.report import Report, build
from steps.study.settings import StudySettings, load_study_settings
from tests.support.study import record_of as finished

UCC = load_task("ucc")
N = 60
LABELS = np.arange(N) % 3 == 0
POSTS = pd.DataFrame({SPLIT: [TEST] * N, LABEL: LABELS.astype(int)})
METRICS = ("average_precision", "f1", *(f"recall_at_p{p}" for p in (60, 65, 70, 75, 80)))


def settings(**changes: Any) -> StudySettings:
    return load_study_settings(
        {"study": {"bootstrap": 10, "train_posts": [10, 20], "accuracies": [0.8], **changes}}
    ).study


def record(cell: Cell) -> Record:
    rng = np.random.default_rng([cell.seed, len(cell.questions), cell.train_posts])
    values = {name: round(float(rng.random()), 4) for name in METRICS}
    ranks = encoded_ranks(rng.random(N) + 0.5 * len(cell.questions) * LABELS)
    return finished(cell, f"{hash(cell):x}", metrics=values, best_val_average_precision=0.4321, test_ranks=ranks)


def report(chosen: StudySettings, lacking: frozenset[Cell] = frozenset()) -> Report:
    def record_of(cell: Cell) -> Record | None:
        return None if cell in lacking else record(cell)

    return build(
        cells_of_tables(chosen, UCC), record_of, POSTS, UCC, chosen, [Baseline("nothing", 0.3, 0.0)], "sixty posts"
    )


@pytest.fixture(scope="module")
def whole() -> Report:
    return report(settings())


def test_every_seed_of_every_setting_is_in_the_list_of_cells_with_its_metrics(whole: Report) -> None:
    planned = [(table, cell) for table, cells in cells_of_tables(settings(), UCC).items() for cell in cells]
    assert [(entry["table"], entry["variant"], entry["seed"]) for entry in whole.cells] == [
        (table, cell.variant, cell.seed) for table, cell in planned
    ]
    for entry, (_, cell) in zip(whole.cells, planned, strict=True):
        assert entry["metrics"] == record(cell).metrics
        assert {"train_posts", "labels", "method"} <= entry.keys()


def test_the_tables_figures_are_the_records(whole: Report) -> None:
    cells = [c for c in cells_of_tables(settings(), UCC)["variants"] if c.variant == "vanilla"]
    values = [100 * record(cell).metrics["recall_at_p80"] for cell in cells]
    line = next(line for line in whole.markdown.splitlines() if line.startswith("| vanilla | none | 43.2 |"))
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in line
    for cell, value in zip(cells, values, strict=True):
        assert re.search(rf"\| vanilla \| none \| {cell.seed} \|.*\| {value:.1f} \|$", whole.markdown, re.MULTILINE)


def test_val_chooses_the_method_and_each_seed_is_told() -> None:
    vals = {
        "gold": (0.8, 0.7, 0.9),
        "dropped": (0.7, 0.9, 0.7),
        "relabelled": (0.8, 0.9, 0.8),
        "weighted": (0.9, 0.7, 0.7),
    }

    def record_of(cell: Cell) -> Record:
        val = vals.get(cell.method, (0.1, 0.1, 0.1))[cell.seed]
        return record(cell).model_copy(update={"best_val_average_precision": val})

    chosen = settings(tables=["methods"])
    page = build(cells_of_tables(chosen, UCC), record_of, POSTS, UCC, chosen, [], "sixty posts").markdown
    said = "By val, the mean of the seeds, `relabelled` is chosen; each seed by itself: `weighted`, `dropped`, `gold`."
    assert said in page
    assert "| annotator | relabelled | 83.3 |" in page


def test_every_table_has_its_section_and_every_question_its_row(whole: Report) -> None:
    headings = re.findall(r"^## (.*)$", whole.markdown, re.MULTILINE)
    assert len(headings) == 6
    assert all(f"| {id_} |" in whole.markdown for id_ in UCC.question_ids)


def test_the_page_is_one_file_with_its_plots_in_it(whole: Report) -> None:
    page = whole.html()
    assert page.count("<svg") == len(whole.plots) == 2
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<table>" in page


def test_the_same_records_give_the_same_bytes(whole: Report) -> None:
    assert report(settings()) == whole


def test_an_unfinished_study_says_what_is_lacking_and_shows_no_setting_by_half() -> None:
    cells = cells_of_tables(settings(), UCC)["variants"]
    gone = next(cell for cell in cells if cell.variant == "multitask")
    part = report(settings(), frozenset([gone]))
    assert "**Unfinished: 1 cells are not there yet.**" in part.markdown
    assert f"| multitask | {gone.labels} |" not in part.markdown


def test_written_files_are_those_of_the_report(whole: Report, tmp_path: Any) -> None:
    whole.write(tmp_path)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == whole.markdown
    for link in re.findall(r"!\[\]\((.*?)\)", whole.markdown):
        assert (tmp_path / link).exists()


def test_baselines_find_a_leak_and_the_ceiling() -> None:
    rng = np.random.default_rng(0)
    n = 600
    label = rng.integers(0, 2, n)
    posts = pd.DataFrame(
        {
            SPLIT: np.where(np.arange(n) < 400, TRAIN, TEST),
            LABEL: label,
            TITLE: np.where(label == 1, "secret word", "plain word"),
            TEXT: "",
            IMAGES: [["a"] * int(k) for k in rng.integers(1, 4, n)],
            **{id_: pd.array([None] * n, dtype="Int8") for id_ in UCC.question_ids},
        }
    )
    posts["ugc"] = pd.array(label, dtype="Int8")
    found = {b.name: b.average_precision for b in baselines(posts, UCC)}
    rate = label[400:].mean()
    assert found["the same score for every post"] == pytest.approx(rate)
    assert found["number of images"] == pytest.approx(rate, abs=0.1)
    assert found["words of title and text"] == pytest.approx(1.0)
    assert found["people's answer to ugc"] == found["all of people's answers"] == pytest.approx(1.0)
    assert "people's answer to watermark" not in found, "nobody answered it"
