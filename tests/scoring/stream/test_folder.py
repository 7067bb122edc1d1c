"""From a watched folder to the store: each post once, each file done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from model.errors import ConfigError
from scoring.store import Store
from scoring.stream.folder import FolderSource
from scoring.stream.run import replay, store_of, stream
from tests.support.stream import INGEST, PICTURE, StubScore, settings

pytestmark = pytest.mark.usefixtures("agentps_home")


def post(post_id: Any, text: str = "", images: Any = (PICTURE,)) -> dict[str, Any]:
    return {"post_id": post_id, "title": "t", "text": text, "images": list(images)}


def lines(*posts: Any) -> str:
    return "".join(json.dumps(found) + "\n" for found in posts)


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def go(watched: Path, score: StubScore | None = None, **more: Any) -> tuple[StubScore, Store]:
    score = score or StubScore()
    chosen = settings(watched.parent, str(watched), **more)
    stream(chosen, INGEST, score, lambda _: None, once=True)
    return score, store_of(chosen)


def test_all_forms_of_files_become_records_and_move_to_done(watched: Path) -> None:
    (watched / "a.json").write_text(json.dumps(post(1)))
    (watched / "b.jsonl").write_text("\ufeff" + lines(*(post(f"b{k}") for k in range(10))) + "\n")
    pd.DataFrame([post("c0"), post("c1")]).to_parquet(watched / "c.parquet")
    (watched / "notes.txt").write_text("not ours")
    (watched / ".hidden.json").write_text("half")
    score, store = go(watched)
    ids = ["1", *(f"b{k}" for k in range(10)), "c0", "c1"]
    assert sorted(score.asked) == sorted(ids)
    assert {record.score for record, _ in store.current(ids).values()} == {0.0}
    assert sorted(path.name for path in (watched / "done").iterdir()) == ["a.json", "b.jsonl", "c.parquet"]
    assert {path.name for path in watched.iterdir() if path.is_file()} >= {"notes.txt", ".hidden.json"}


def test_an_updated_post_is_scored_again_and_an_unchanged_one_is_not(watched: Path) -> None:
    (watched / "a.jsonl").write_text(lines(post("a"), post("b"), post("a"), post("a", "new"), post("a")))
    score, store = go(watched)
    assert score.asked == ["a", "b", "a", "a"], "the second is the first again; the last goes back to it"
    again = lines(post("a"), post("b", "new"))
    (watched / "a.jsonl").write_text(again)
    assert go(watched)[0].asked == ["b"]
    assert len(list((watched / "done").iterdir())) == 2, "a file of the same name does not replace the older one"
    (watched / "a.jsonl").write_text(again)
    assert go(watched, StubScore("2"))[0].asked == ["a", "b"], "another version says something else"
    current = store.current(["a", "b"])
    assert [record.model_version for record, _ in current.values()] == ["2", "2"]


def test_what_is_no_post_is_a_dead_letter_with_its_reason_and_stops_nobody(watched: Path) -> None:
    bodies = [b"{", b"[1]", b'{"post_id": 1.5}', b'{"post_id": "a", "post_id": "b"}', b"\xff\xfe", b"[" * 100_000]
    bodies += [lines(post("good")).encode(), lines(post("gone", images=["gone.png"])).encode()]
    bodies += [lines(post("crash", "crash")).encode(), lines(post("form", images=[])).encode()]
    (watched / "a.jsonl").write_bytes(b"\n".join(body.strip() for body in bodies))
    (watched / "b.parquet").write_bytes(b"no Parquet")
    _, store = go(watched)
    letters = store.dead_letters()
    reasons = {letter.message_id.partition("@")[0]: letter.reason for letter in letters}
    for place, reason in {
        "a.jsonl:1": "no JSON object: ",
        "a.jsonl:2": "no JSON object: found the list",
        "a.jsonl:3": "post_id: 1.5; ",
        "a.jsonl:4": "no JSON object: the key 'post_id' stands there more than once",
        "a.jsonl:5": "no JSON object: ",
        "a.jsonl:6": "no JSON object: ",
        "a.jsonl:8": "pictures: image 1: no such file",
        "a.jsonl:9": "the scorer failed: RuntimeError: a picture that kills",
        "b.parquet": "no JSON object: ",
    }.items():
        assert reasons.pop(place).startswith(reason)
    assert not reasons
    current = store.current(["good", "gone", "crash", "form"])
    assert {post_id: record.error for post_id, (record, _) in current.items()} == {
        "good": None,
        "gone": "image 1: no such file",
        "form": "images: []; a list of one or more images is expected",
    }


def test_a_picture_that_comes_a_moment_later_is_waited_for(watched: Path) -> None:
    class Late(StubScore):
        def renew(self) -> StubScore:  # a batch begins
            (watched / "late.png").write_bytes(b"x")
            return self

    (watched / "a.json").write_text(json.dumps(post("a", images=["late.png"])))
    assert go(watched, Late())[1].dead_letters() == []


def test_dead_letters_are_taken_again_and_none_puts_old_content_back(watched: Path) -> None:
    posts = [post(name, "old", ["gone.png"]) for name in ("a", "b")]
    (watched / "a.jsonl").write_text(lines(*posts) + "{\n")
    _, store = go(watched)
    (watched / "b.json").write_text(json.dumps(post("b", "the new text")))
    go(watched)
    letters = store.dead_letters()
    assert len(letters) == 3
    chosen = settings(watched.parent, str(watched))
    assert replay(chosen, INGEST, StubScore(), letters) == (0, 1, 2)
    (watched / "gone.png").write_bytes(b"x")
    left = store.dead_letters()
    assert len(left) == 2
    assert replay(chosen, INGEST, StubScore(), left) == (1, 0, 1)
    assert [letter.body for letter in store.dead_letters()] == [b"{\n"]
    current = store.current(["a", "b"])
    assert [current[name][0].score for name in "ab"] == [0.3, 0.1]


def test_a_dead_letter_of_another_file_of_the_same_name_stays(watched: Path) -> None:
    for body in (b"{", b"["):
        (watched / "a.json").write_bytes(body)
        _, store = go(watched)
    assert [letter.body for letter in store.dead_letters()] == [b"{", b"["]


def test_a_file_that_still_grows_is_not_read_yet(watched: Path) -> None:
    source = FolderSource(watched, 10)
    path = watched / "a.jsonl"
    path.write_text(lines(post("a")))
    assert list(source._look()) == []
    path.write_text(lines(post("a"), post("b")))
    assert list(source._look()) == []
    assert list(source._look()) == [path.resolve()]


def test_a_file_that_is_taken_away_or_cannot_be_read_stops_nobody(
    watched: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        (watched / f"{name}.json").write_text(json.dumps(post(name)))
    look = FolderSource._look

    def race(self: FolderSource) -> list[Path]:
        found = look(self)
        if any(path.name == "b.json" for path in found):
            (watched / "b.json").unlink()
        return found

    monkeypatch.setattr(FolderSource, "_look", race)
    score, store = go(watched)
    assert score.asked == ["a", "c"]
    assert "b.json: cannot be read (No such file or directory): it is passed over until it changes" in caplog.text
    assert store.dead_letters() == []


def test_a_folder_that_files_cannot_be_moved_in_is_told(watched: Path) -> None:
    (watched / "a.json").write_text(json.dumps(post("a")))
    (watched / "done").write_text("a file")
    with pytest.raises(ConfigError, match=r"a\.json: is done, and cannot be moved to .*done \(File exists\)"):
        go(watched)
    (watched / "done").unlink()
    assert go(watched)[0].asked == []


def test_the_columns_of_a_manifest_reach_the_policy(watched: Path) -> None:
    (watched.parent / "policy.yaml").write_text(
        "name: p\nversion: 1\ntask: ucc\nprecision: 80\nallow: {fields: {author: [newsroom]}}\n"
    )
    rows = [post(name, "flagged") | {"author": author} for name, author in (("a", "newsroom"), ("b", "x"))]
    pd.DataFrame(rows).to_parquet(watched / "a.parquet")
    (watched / "b.jsonl").write_text(lines(*(row | {"post_id": f"{row['post_id']}2"} for row in rows)))
    _, store = go(watched, policy=str(watched.parent / "policy.yaml"))
    found = store.current(["a", "b", "a2", "b2"])
    actions = {name: outcome.action for name, (_, outcome) in found.items() if outcome is not None}
    assert actions == {"a": "pass", "b": "flag", "a2": "pass", "b2": "flag"}
    assert len({record.policy_version for record, _ in found.values()}) == 1


def test_a_folder_has_one_worker(watched: Path) -> None:
    first, second = FolderSource(watched, 1), FolderSource(watched, 1)
    first.open()
    with pytest.raises(ConfigError, match=r"process \d+ on .* works on it: one worker for a folder"):
        second.open()
    first.close()
    second.open()
    second.close()
    with pytest.raises(ConfigError, match="is no folder: make it"):
        FolderSource(watched / "none", 1)
