"""The documentation's own claims."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, get_args

import pytest

from model.settings import Variant
from steps.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def annotated() -> dict[str, list[dict[str, Any]]]:
    """The study's runs on the annotator's labels (and those that read none), by variant, one run per seed."""
    cells = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    chosen: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["table"] == "variants" and cell["labels"] in ("none", "annotator"):
            chosen.setdefault(cell["variant"], []).append(cell)
    return chosen


def test_the_readmes_comparison_is_that_of_the_records(annotated: dict[str, list[dict[str, Any]]]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(annotated) == set(get_args(Variant))
    for variant, runs in annotated.items():
        assert [run["seed"] for run in runs] == [0, 1, 2], "no seed is picked"
        recalls = [run["metrics"]["recall_at_p80"] for run in runs]
        aps = [run["metrics"]["average_precision"] for run in runs]
        val = [run["best_val_average_precision"] for run in runs]
        figures = [*recalls, *map(statistics.fmean, (recalls, aps, val))]
        assert f"| {variant} | " + " | ".join(f"{100 * figure:.1f}" for figure in figures) + " |" in readme


def test_the_default_variant_is_the_best_on_val(annotated: dict[str, list[dict[str, Any]]]) -> None:
    best = max(annotated, key=lambda name: sum(run["best_val_average_precision"] for run in annotated[name]))
    assert load_settings({}).fine_tune.variant == best


def means_by_row(path: str) -> dict[tuple[str, str], str]:
    """(variant, labels) -> `AP / R@P80` of the table `sizes` at its largest size, means over the seeds."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8")):
        if cell["table"] == "sizes" and cell["train_posts"] == 10_000:
            found.setdefault((cell["variant"], cell["labels"]), []).append(cell["metrics"])
    assert all(len(seeds) == 3 for seeds in found.values())
    return {
        row: " / ".join(
            f"{100 * statistics.fmean(one[name] for one in seeds):.1f}"
            for name in ("average_precision", "recall_at_p80")
        )
        for row, seeds in found.items()
    }


@pytest.mark.parametrize(
    ("heading", "study"), [("Each image once", "each-image-once"), ("Fewer tokens per frame", "pooled-frames")]
)
def test_what_an_option_costs_is_what_both_studies_say(heading: str, study: str) -> None:
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    default, other = means_by_row("docs/results.json"), means_by_row(f"docs/{study}/results.json")
    names = {"none": "", "people": ", people's labels", "annotator": ", the annotator's"}
    assert set(other) == set(default)
    for (variant, labels), figures in default.items():
        assert f"| {variant}{names[labels]} | {figures} | {other[variant, labels]} |" in section
