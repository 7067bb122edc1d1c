"""The table of scored posts: what a post without a score leaves there."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from model.errors import ConfigError, DiskError, ImageError, ManifestError
from model.images import ImageLimits
from model.settings import PostLimits
from scoring import manifest
from scoring.manifest import keeping, score_new
from scoring.record import Answer, Record, columns_of
from scoring.score import Input
from steps.retrain.live import read_score_table
from tests.support.disk import files_end_at
from tests.support.tasks import DEMO

pytestmark = pytest.mark.usefixtures("agentps_home")  # which holds the locks

NOW = datetime(2026, 3, 1, tzinfo=UTC)
Rows = list[dict[str, Any]]
POSTS: Rows = [{"post_id": post_id, "images": [f"{post_id}.png"]} for post_id in "abc"]
TASK = DEMO.model_copy(update={"questions": tuple(q for q in DEMO.questions if q.id == "kind")})


class Stub:
    """As `scoring.score.LocalScore`, for posts that are not called `bad`."""

    schema, limits, post_limits = columns_of(TASK, ["p80"]), ImageLimits(10, 10), PostLimits()

    def __init__(self, *bad: str, score: float = 0.9, version: str = "7") -> None:
        self.bad, self.score, self.version = bad, score, version
        self.asked: list[str] = []

    def read(self, name: str) -> bytes:
        if name.removesuffix(".png") in self.bad:
            raise ImageError("no such file")
        return name.encode()

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        self.asked += [post.post_id for post in inputs]
        return [self._record(post, now or NOW) for post in inputs]

    def _record(self, post: Input, now: datetime) -> Record:
        said: dict[str, Any] = {
            "logit": 2.0, "score": self.score, "decisions": {"p80": self.score > 0.5},
            "answers": {"kind": Answer(answer="all", probability=self.score)},
        }  # fmt: skip
        return Record(
            post_id=post.post_id, model_name="m", model_version=self.version, task="f00d", scored_at=now,
            input_sha256=post.sha256, **({"error": post.error} if post.error else said),
        )  # fmt: skip


def score(scorer: Stub, place: Path | str, posts: Rows = POSTS, now: datetime = NOW) -> tuple[int, int, list[str], int]:
    with keeping(str(place), "m", scorer.version, "p80", scorer.schema) as kept:
        done = score_new(scorer, posts, scorer.read, kept, "p80", now)
    return done.scored, done.flagged, done.errors, done.before


def test_a_post_without_a_score_is_neither_flagged_nor_passed_and_is_tried_again(tmp_path: Path) -> None:
    table = tmp_path / "scores.jsonl"
    assert score(Stub("b"), table) == (2, 2, ["b: image 1: no such file"], 0)
    rows = {row["post_id"]: row for row in map(json.loads, table.read_text().splitlines())}
    assert rows["b"] == {
        "post_id": "b", "score": None, "answer_kind": None, "probability_kind": None, "error": "image 1: no such file",
        "decision": None, "model_version": "7", "scored_at": "2026-03-01T00:00:00+00:00",
    }  # fmt: skip
    assert (rows["a"]["decision"], rows["a"]["error"]) == (True, None)
    assert read_score_table(table)["post_id"].tolist() == ["a", "c"], "what has no score is no scored post"
    again = Stub()
    assert score(again, table) == (1, 1, [], 2)
    assert again.asked == ["b"]
    assert sorted(read_score_table(table)["post_id"]) == ["a", "b", "c"]


def test_a_table_of_nothing_but_errors_is_a_table_without_scored_posts(tmp_path: Path) -> None:
    table = tmp_path / "scores.jsonl"
    assert score(Stub("a", "b", "c"), table)[:2] == (0, 0)
    assert read_score_table(table).empty
    assert score(Stub(), table) == (3, 3, [], 0)


@pytest.mark.parametrize(("column", "expected"), [("score", "a number from 0 to 1"), ("decision", "true or false")])
def test_a_row_without_score_or_decision_needs_an_error(tmp_path: Path, column: str, expected: str) -> None:
    row = {"post_id": "a", "score": 0.5, "decision": True, "model_version": "1", "scored_at": "2026-03-01T00:00:00Z"}
    table = tmp_path / "scores.jsonl"
    table.write_text(json.dumps(row | {column: None}) + "\n")
    with pytest.raises(ManifestError, match=rf"scores\.jsonl:1: {column}: missing; {expected} is expected"):
        read_score_table(table)


# --- a disk that is full, a process that is killed ---------------------------------------------------------

MANY: Rows = [{"post_id": f"p{k}", "images": ["1.png"]} for k in range(600)]


def ids(table: Path) -> list[str]:
    return [json.loads(line)["post_id"] for line in table.read_text().splitlines()]


def test_a_full_disk_keeps_whole_chunks_only_and_the_next_call_scores_the_rest(tmp_path: Path) -> None:
    """The first 256 posts fit, and fifteen and a half lines of the next."""
    table, whole = tmp_path / "scores.jsonl", tmp_path / "whole.jsonl"
    score(Stub(), whole, MANY)
    lines = whole.read_bytes().splitlines(keepends=True)
    room = sum(map(len, lines[: 256 + 15])) + len(lines[256 + 15]) // 2
    expected = rf"^{table}: cannot be written: File too large; [\d,]+ bytes are free there: make room"
    with files_end_at(room), pytest.raises(DiskError, match=expected):
        score(Stub(), table, MANY)
    assert table.read_bytes() == b"".join(lines[:256])
    again = Stub()
    assert score(again, table, MANY) == (344, 344, [], 256)
    assert again.asked == [row["post_id"] for row in MANY][256:]
    assert table.read_bytes() == whole.read_bytes()


def test_where_the_table_cannot_be_there_at_all_that_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"file/scores\.jsonl: cannot be written: File exists; name a place"):
        score(Stub(), tmp_path / "file" / "scores.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("folder.jsonl", "pipe.jsonl"):
        with pytest.raises(ConfigError, match=rf"scores .*{name}: is no file"):
            score(Stub(), tmp_path / name)


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("cut", [1, 7, 40, -1])
def test_a_last_line_that_was_cut_off_is_dropped_and_its_post_scored_again(
    kept: int, cut: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`cut`: so many of its bytes are there. -1: all but the newline, so the line is whole."""
    table = tmp_path / "scores.jsonl"
    score(Stub(), table)
    whole = table.read_bytes()
    lines = whole.splitlines(keepends=True)
    table.write_bytes(b"".join(lines[:kept]) + lines[kept][:cut])
    if kept:
        with caplog.at_level(logging.WARNING):
            assert read_score_table(table)["post_id"].tolist() == ["a", "b", "c"][: kept + (cut < 0)]
        assert (f"{table}:{kept + 1}: the last line was cut off" in caplog.text) == (cut > 0)
    again = Stub()
    with caplog.at_level(logging.WARNING):
        score(again, table)
    assert again.asked == ["a", "b", "c"][kept + (cut < 0) :]
    assert table.read_bytes() == whole
    assert ("cut off: it is dropped, and its post scored again" in caplog.text) == (cut > 0)


def test_a_line_that_was_cut_off_in_the_middle_is_named(tmp_path: Path) -> None:
    table = tmp_path / "scores.jsonl"
    score(Stub(), table)
    lines = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(lines[0] + lines[1][:30] + lines[2])
    before = table.read_bytes()
    for read in (lambda: read_score_table(table), lambda: score(Stub(), table)):
        with pytest.raises(ManifestError, match=rf"scores {table}:2: not JSON: .*correct or remove the line"):
            read()
    assert table.read_bytes() == before


@pytest.mark.parametrize("content", ['{\n "mine": 1\n}', '{"a": 1}\n{"b": ', "post_id,score", '{"mine": '])
def test_a_file_of_somebody_else_is_not_cut(content: str, tmp_path: Path) -> None:
    table = tmp_path / "mine.json"
    table.write_text(content)
    with pytest.raises(ManifestError):
        score(Stub(), table)
    assert table.read_text() == content


class Slow(Stub):
    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        time.sleep(0.05)
        return super().__call__(inputs, now)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_in_the_middle_and_begun_again_the_table_is_that_of_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, whole = tmp_path / "scores.jsonl", tmp_path / "whole.jsonl"
    score(Stub(), whole, MANY)
    monkeypatch.setattr(manifest, "_CHUNK", 20)
    process = os.fork()  # a new interpreter would import for longer than it scores
    if not process:
        score(Slow(), table, MANY)
        os._exit(0)
    deadline = time.monotonic() + 120
    while not table.exists() or not table.stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    kept = ids(table)
    assert 0 < len(kept) < len(MANY)
    again = Stub()
    score(again, table, MANY)
    assert again.asked == [row["post_id"] for row in MANY][len(kept) :], "nothing twice, nothing left out"
    assert table.read_bytes() == whole.read_bytes()


def test_two_calls_at_once_score_no_post_twice(tmp_path: Path) -> None:
    table, scorers = tmp_path / "scores.jsonl", [Stub(), Stub()]
    threads = [threading.Thread(target=score, args=(scorer, table, MANY)) for scorer in scorers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scorers[0].asked + scorers[1].asked) == sorted(row["post_id"] for row in MANY)
    assert sorted(ids(table)) == sorted(row["post_id"] for row in MANY)


def test_a_row_that_is_still_to_come_tells_nothing_and_its_post_is_scored_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One start with a clock of 2099 would keep its rows the newest for ever."""
    table = tmp_path / "scores.jsonl"
    score(Stub(), table, POSTS[:2], datetime(2099, 1, 1, tzinfo=UTC))
    again = Stub()
    assert score(again, table) == (3, 3, [], 0)
    assert again.asked == ["a", "b", "c"]
    assert f"of 2 rows scored_at is still to come, so a clock was wrong: they are left out ({table}:1: 2099-01-01" in (
        caplog.text
    )
    assert set(read_score_table(table)["scored_at"]) == {pd.Timestamp(NOW)}
    assert score(Stub(), table) == (0, 0, [], 3)
