"""What the step that fits thresholds again gets of the settings; and since when labels count."""

from __future__ import annotations

import pandas as pd
import pytest

from steps.retrain.newest import fall, since_the_fall
from steps.retrain.step import refit_options
from steps.settings import load_settings


def test_the_step_reads_the_sections_that_the_run_has() -> None:
    given = {"posts": "m.jsonl", "annotator": "human", "evaluate": {"confidence": 0.9}, "promote": {"floor": 0.3}}
    settings = load_settings(given | {"retrain": {"live_days": 3.5, "scores": "s.jsonl"}, "variant": "vanilla"})
    again = load_settings(refit_options(settings))
    for section in ("posts", "variant", "ingest", "evaluate", "promote", "retrain"):
        assert getattr(again, section) == getattr(settings, section), section


def labelled(right: list[int], of: int = 50) -> pd.DataFrame:
    """A day each, `right` of `of` flagged posts positive; and as many passed ones."""
    days = [
        pd.DataFrame(
            {
                "scored_at": pd.Timestamp("2026-01-01 07:00", tz="UTC") + pd.Timedelta(days=day),
                "decision": [True] * of + [False] * of,
                "label": [1.0] * k + [0.0] * (2 * of - k),
            }
        )
        for day, k in enumerate(right)
    ]
    return pd.concat(days, ignore_index=True)


@pytest.mark.parametrize(
    ("right", "day"),
    [([40] * 9 + [25] * 3, 9), ([40, 20, 20, 20], 1), ([40] * 12, None), ([20] * 6 + [40] * 6, None), ([20], None)],
    ids=["fell", "early", "steady", "rose", "one day"],
)
def test_labels_count_since_the_precision_fell_else_the_newest_half(right: list[int], day: int | None) -> None:
    table = labelled(right)
    found = fall(table)
    assert (None if found is None else (found - pd.Timestamp("2026-01-01", tz="UTC")).days) == day
    kept = since_the_fall(table)["scored_at"].nunique()
    assert kept == (len(right) - day if day is not None else (len(right) + 1) // 2)
