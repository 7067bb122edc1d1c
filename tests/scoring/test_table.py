"""The table of scored posts: what a post without a score leaves there."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model.errors import ConfigError, ManifestError
from scoring.table import score_new
from steps.retrain.live import read_scores

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POSTS = pd.DataFrame({"post_id": ["a", "b", "c"], "images": [["1"], ["2"], ["3"]]})


class Stub:
    """As `model.scorer.Scorer`, for posts that are not called `bad`."""

    def __init__(self, *bad: str) -> None:
        self.bad = bad
        self.asked: list[str] = []

    def score(self, posts: pd.DataFrame) -> pd.DataFrame:
        self.asked += posts["post_id"].tolist()
        failed = posts["post_id"].isin(self.bad).to_numpy()
        scores = np.where(failed, np.nan, 0.9)
        return pd.DataFrame(
            {
                "logit": scores,
                "score": scores,
                "decision_p80": pd.arrays.BooleanArray(scores > 0.5, failed),
                "answer_kind": pd.Series([None if bad else "all" for bad in failed], dtype=object),
                "probability_kind": scores,
                "error": pd.Series(["image 1: no such file" if bad else None for bad in failed], dtype=object),
            }
        ).set_index(posts.index)


def score(scorer: Stub, table: Path, posts: pd.DataFrame = POSTS) -> tuple[int, int, list[str], int]:
    done = score_new(scorer, "7", posts, table, 80, NOW)  # type: ignore[arg-type]
    return done.scored, done.flagged, done.errors, done.before


def test_a_post_without_a_score_is_neither_flagged_nor_passed_and_is_tried_again(tmp_path: Path) -> None:
    table = tmp_path / "scores.jsonl"
    assert score(Stub("b"), table) == (2, 2, ["image 1: no such file"], 0)
    rows = {row["post_id"]: row for row in map(json.loads, table.read_text().splitlines())}
    assert rows["b"] == {
        "post_id": "b", "score": None, "answer_kind": None, "probability_kind": None, "error": "image 1: no such file",
        "decision": None, "model_version": "7", "scored_at": "2026-03-01T00:00:00+00:00",
    }  # fmt: skip
    assert (rows["a"]["decision"], rows["a"]["error"]) == (True, None)
    assert read_scores(table)["post_id"].tolist() == ["a", "c"], "what has no score is no scored post"
    again = Stub()
    assert score(again, table) == (1, 1, [], 2)
    assert again.asked == ["b"]
    assert sorted(read_scores(table)["post_id"]) == ["a", "b", "c"]


def test_a_table_of_nothing_but_errors_is_a_table_without_scored_posts(tmp_path: Path) -> None:
    table = tmp_path / "scores.jsonl"
    assert score(Stub("a", "b", "c"), table)[:2] == (0, 0)
    assert read_scores(table).empty
    assert score(Stub(), table) == (3, 3, [], 0)


@pytest.mark.parametrize(("column", "expected"), [("score", "a number from 0 to 1"), ("decision", "true or false")])
def test_a_row_without_score_or_decision_needs_an_error(tmp_path: Path, column: str, expected: str) -> None:
    row = {"post_id": "a", "score": 0.5, "decision": True, "model_version": "1", "scored_at": "2026-03-01T00:00:00Z"}
    table = tmp_path / "scores.jsonl"
    table.write_text(json.dumps(row | {column: None}) + "\n")
    with pytest.raises(ManifestError, match=rf"scores\.jsonl:1: {column}: missing; {expected} is expected"):
        read_scores(table)


def test_a_version_without_that_threshold_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no threshold for 60 % precision \(it has decision_p80\)"):
        score_new(Stub(), "7", POSTS, tmp_path / "scores.jsonl", 60, NOW)  # type: ignore[arg-type]
    assert not (tmp_path / "scores.jsonl").exists()
