"""docs/quarter.md is what the committed record says, and the record shows what it is there for."""

from __future__ import annotations

import json
from typing import Any

from benchmarks import quarter
from steps.retrain.live import Share

RECORD: dict[str, Any] = json.loads(quarter.RECORD.read_text(encoding="utf-8"))


def precision(side: str, first: int, last: int) -> Share:
    weeks = [one[side]["precision"] for one in RECORD["weeks"] if first <= one["week"] <= last]
    return Share(sum(k for k, _ in weeks), sum(n for _, n in weeks))


def test_the_page_is_made_of_the_record() -> None:
    assert quarter.PAGE.read_text(encoding="utf-8") == quarter.page(RECORD)


def test_without_retraining_precision_falls_below_the_target_and_with_it_comes_back() -> None:
    end = (quarter.CHANGED + 1, quarter.WEEKS)
    assert precision("without", *end).high < quarter.PRECISION / 100
    held, lost = precision("with", *end).value, precision("without", *end).value
    assert held is not None
    assert lost is not None
    assert held >= lost + 0.1


def test_twelve_runs_are_explained_and_some_candidates_are_refused() -> None:
    runs = RECORD["runs"][1:]
    assert [run["week"] for run in runs] == list(range(1, 13))
    verdicts = {run["decision"].partition(": ")[0] for run in runs}
    assert {"promoted", "kept"} <= verdicts
    assert all(run["decision"].partition(": ")[2] for run in runs)


def test_no_post_is_annotated_twice_and_nothing_fresh_makes_no_version() -> None:
    counts = RECORD["annotation"]
    assert counts["requests"] == counts["attempts"] == counts["posts"] == sum(run["asked"] for run in RECORD["runs"])
    assert RECORD["idle"]["versions_made"] == 0
    assert RECORD["rollback"]["from"] != RECORD["rollback"]["back_to"]
