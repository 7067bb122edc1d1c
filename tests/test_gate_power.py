"""docs/gate.md is what the committed record says, and the default metric and test do what they were chosen for."""

from __future__ import annotations

import json
from typing import Any

from benchmarks import gate_power
from steps.settings import load_settings

RECORD: dict[str, list[dict[str, Any]]] = json.loads(gate_power.RECORD.read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_record() -> None:
    assert gate_power.PAGE.read_text(encoding="utf-8") == gate_power.page(RECORD)


def test_at_4000_posts_the_default_finds_five_points_and_is_not_fooled() -> None:
    metric = load_settings({}).promote.metric
    rows = {r["gain"]: r["promoted"] for r in RECORD["gate"] if (r["metric"], r["size"]) == (metric, 4000)}
    assert rows[0.05] >= 0.95
    assert rows[0.0] <= 0.05
    assert rows[-0.05] == 0
