"""`agentps score`: what a manifest holds is scored once, and kept in a store as in a table."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from model.errors import ConfigError, ManifestError, StoreError
from scoring import manifest
from scoring.manifest import _look, _rows, keeping, score_new
from scoring.policy import Policy
from scoring.store import Store
from steps.retrain.live import live, read_scores
from steps.settings import load_settings
from tests.scoring.test_table import MANY, NOW, POSTS, Slow, Stub, score

pytestmark = pytest.mark.usefixtures("agentps_home")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/scores.db"


def test_a_post_without_a_score_is_kept_with_its_error_and_tried_again(url: str) -> None:
    assert score(Stub("b"), url) == (2, 2, ["b: image 1: no such file"], 0)
    with Store.open(url) as store:
        assert store.current(["b"])["b"][0].error == "image 1: no such file"
    assert read_scores(url, "m", 80)["post_id"].tolist() == ["a", "c"]
    again = Stub()
    assert score(again, url) == (1, 1, [], 2)
    assert again.asked == ["b"]
    assert score(Stub(), url) == (0, 0, [], 3)


def test_a_post_that_was_changed_is_scored_again_and_another_version_scores_all(url: str) -> None:
    score(Stub(), url)
    again = Stub()
    assert score(again, url, [*POSTS[:2], POSTS[2] | {"title": "new"}]) == (1, 1, [], 2)
    assert again.asked == ["c"]
    assert score(Stub(version="8"), url) == (3, 3, [], 0)
    later = NOW + timedelta(minutes=1)
    assert score(Stub(), url, now=later)[3] == 0, "rolled back: what is current was said by version 8"
    with Store.open(url) as store:
        assert {record.model_version for record, _ in store.current("abc").values()} == {"7"}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_killed_in_the_middle_the_next_call_scores_what_is_left(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_CHUNK", 20)
    Store.open(url).close()
    process = os.fork()  # a new interpreter would import for longer than it scores
    if not process:
        score(Slow(), url, MANY)
        os._exit(0)

    def kept() -> list[str]:
        with Store.open(url) as store:
            return store.scores("m", "p80")["post_id"].tolist()

    deadline = time.monotonic() + 120
    while not kept():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    before = kept()
    assert 0 < len(before) < len(MANY)
    again = Stub()
    score(again, url, MANY)
    assert again.asked == [row["post_id"] for row in MANY][len(before) :], "nothing twice, nothing left out"
    assert kept() == [row["post_id"] for row in MANY]


def test_two_calls_at_once_score_no_post_twice(url: str) -> None:
    scorers = [Stub(), Stub()]
    threads = [threading.Thread(target=score, args=(scorer, url, MANY)) for scorer in scorers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scorers[0].asked + scorers[1].asked) == sorted(row["post_id"] for row in MANY)


def test_another_policy_decides_anew_without_scoring(url: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("{name: p, version: 1, task: ucc, precision: 80}")
    policy = Policy.load(tmp_path / "p.yaml")
    score(Stub(), url)
    again = Stub()
    for _ in range(2):
        with keeping(url, "m", "7", "p80", again.schema, policy) as kept:
            assert score_new(again, POSTS, again.read, kept, "p80", NOW).before == 3
    assert again.asked == []
    with Store.open(url) as store:
        assert [outcome and outcome.action for _, outcome in store.history("a")] == [None, "flag"]
        assert [outcome and outcome.action for _, outcome in store.current("a").values()] == ["flag"]


def test_pictures_beyond_the_bound_are_scored_in_parts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_CHUNK_BYTES", 10)  # two pictures of five bytes
    sizes: list[int] = []

    class Counting(Stub):
        def __call__(self, inputs, now=None):  # type: ignore[no-untyped-def]
            sizes.append(len(inputs))
            return super().__call__(inputs, now)

    posts = [{"post_id": str(k), "images": ["1.png"]} for k in range(5)]
    assert score(Counting(), url, posts)[0] == 5
    assert sizes == [2, 2, 1]


# --- live figures


def test_live_figures_are_those_of_a_table(url: str, tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps({"post_id": f"p{k}", "label": k % 2}) + "\n" for k in range(100)))
    settings = load_settings({}).retrain
    places = [url, str(tmp_path / "scores.jsonl")]
    for place in places:
        score(Stub(score=0.3), place, MANY[:50])
        score(Stub(), place, MANY[50:80])
        score(Stub(version="8"), place, MANY)
    found = [live(place, labels, "m", "7", settings, 0.95) for place in places]
    assert found[0] == found[1]
    assert (found[0].scored, found[0].labelled, found[0].precision.k, found[0].precision.n) == (80, 80, 15, 30)
    one, other = (
        read_scores(place, "m", 80).sort_values(["model_version", "post_id"]).reset_index(drop=True) for place in places
    )
    pd.testing.assert_frame_equal(one, other)


def test_a_store_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/none/scores.db", f"sqlite:///{tmp_path}/none.db"):
        with pytest.raises(StoreError, match="there is no such file"):
            read_scores(url, "m", 80)
    assert list(tmp_path.glob("none*")) == []


def test_a_version_without_the_precision_s_threshold_is_told_by_live(url: str, tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"post_id": "a", "label": 1}\n')
    score(Stub(), url)
    with pytest.raises(ConfigError, match="m version 7 has no threshold for 95 % precision"):
        live(url, labels, "m", "7", load_settings({"retrain": {"live_precision": 95}}).retrain, 0.95)


# --- the manifest


def test_rows_of_no_post_are_counted_before_anything_is_scored(tmp_path: Path) -> None:
    path = tmp_path / "posts.jsonl"
    rows = ['{"post_id": "a", "images": ["x"]}', '{"post_id": ""}', "{", '{"post_id": "a"}', '{"post_id": 7}']
    path.write_text("\n".join(rows))
    with pytest.raises(ManifestError, match=r"3 of 5 posts are rejected, 5\.0% at most"):
        _look(str(path), [str(path)], 0.05)
    rejects = _look(str(path), [str(path)], 1.0)
    assert [(reject.row, reject.post_id) for reject in rejects] == [(2, None), (3, None), (4, "a")]
    assert "is already the post of row 1" in rejects[2].reason
    left_out = {(reject.manifest, reject.row) for reject in rejects}
    assert [row["post_id"] for row in _rows([str(path)], left_out)] == ["a", 7]
    path.write_text("")
    with pytest.raises(ManifestError, match="holds no rows"):
        _look(str(path), [str(path)], 1.0)
