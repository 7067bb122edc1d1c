from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from steps.retrain.drift import Difference, compare, render
from steps.retrain.profile import CHARACTERS, FEATURES, N_IMAGES
from steps.settings import load_settings
from tests.support.tiny import TASK

SETTINGS = load_settings({}).retrain


def table(seed: int, n: int = 600, **changes: Any) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        CHARACTERS: rng.integers(20, 80, n),
        N_IMAGES: rng.integers(1, 9, n),
        "label": pd.array((rng.random(n) < 0.3).astype(int), "Int8"),
        **{q.id: pd.array(rng.integers(len(q.classes), size=n), "Int8") for q in TASK.questions},
        FEATURES: list(rng.normal(size=(n, 5))),
    }
    return pd.DataFrame(columns | changes)


def outcomes(lines: list[Difference]) -> dict[str, str]:
    return {line.what: line.outcome for line in lines}


def test_equal_posts_are_within_limits_on_every_line() -> None:
    found = outcomes(compare(table(1), table(2), TASK, SETTINGS))
    assert set(found.values()) == {"within limits"}
    assert len(found) == 5 + len(TASK.questions)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({CHARACTERS: np.arange(600) % 60 + 45}, "characters of title and text"),
        ({N_IMAGES: np.arange(600) % 4 + 1}, "images"),
        ({"label": pd.array([1, 0] * 300, "Int8")}, "label"),
        ({"bright": pd.array([1, None] * 300, "Int8")}, "answers to bright"),
        ({FEATURES: list(np.random.default_rng(3).normal(0.7, 1, (600, 5)))}, "tower's features"),
    ],
)
def test_each_kind_of_change_is_named_alone(changes: dict[str, Any], what: str) -> None:
    found = outcomes(compare(table(1), table(2, **changes), TASK, SETTINGS))
    assert [name for name, outcome in found.items() if outcome == "drift"] == [what]


def test_a_column_that_came_or_went_is_a_drift_of_the_schema() -> None:
    line = compare(table(1), table(2).rename(columns={"calm": "quiet"}), TASK, SETTINGS)[0]
    assert (line.outcome, line.found) == ("drift", "gone: ['calm'], new: ['quiet']")


def test_effects_are_those_of_their_definitions() -> None:
    fifty = {"n": 100, CHARACTERS: np.arange(100), "label": pd.array([1] * 50 + [0] * 50, "Int8")}
    other = {"n": 100, CHARACTERS: np.arange(100) + 25, "label": pd.array([1] * 90 + [0] * 10, "Int8")}
    lines = {line.what: line for line in compare(table(1, **fifty), table(2, **other), TASK, SETTINGS)}
    assert lines["characters of title and text"].effect == pytest.approx(0.25), "shifted by a quarter of the range"
    # phi of the table 50 50 / 90 10: (50 * 10 - 50 * 90) / sqrt(100 * 100 * 140 * 60)
    assert lines["label"].effect == pytest.approx(4000 / np.sqrt(100 * 100 * 140 * 60))


def test_a_small_difference_of_many_posts_is_significant_and_no_drift() -> None:
    n = 20_000
    label = {side: pd.array((np.arange(n) % 100 < share).astype(int), "Int8") for side, share in (("a", 30), ("b", 33))}
    old, new = table(1, n, label=label["a"]), table(2, n, label=label["b"])
    line = next(line for line in compare(old, new, TASK, SETTINGS) if line.what == "label")
    assert line.p is not None
    assert line.p < 1e-6
    assert line.outcome == "within limits"


def test_too_few_posts_are_never_a_silent_pass() -> None:
    lines = compare(table(1), table(2, 29), TASK, SETTINGS)
    assert {line.outcome for line in lines[1:]} == {"not compared"}
    page = render(lines, "heading")
    assert page.count(">not compared<") == len(lines) - 1
    assert "600 and 29 rows; 30 are needed" in page
    assert "no profile" in render([], "heading", "Version 1 carries no profile")


def test_labels_of_a_queue_are_compared_by_the_posts_that_they_stand_for() -> None:
    """Half of the queue's labels are positive, and each negative one stands for as many posts as make it 3 of 10."""
    queue = table(2, label=pd.array([1, 0] * 300, "Int8"))
    weighed = queue.assign(inclusion_probability=np.tile([1.0, 3 / 7], 300))
    found = {line.what: line for line in compare(table(1), weighed, TASK, SETTINGS)}
    assert {line.outcome for line in found.values()} == {"within limits"}
    assert "fresh 70.0%; 1: " in found["label"].found
    assert outcomes(compare(table(1), queue, TASK, SETTINGS))["label"] == "drift"
