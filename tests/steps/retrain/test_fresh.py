from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from model.errors import ManifestError
from steps.ingest.posts import split_of
from steps.retrain import fresh
from steps.retrain.fresh import State, advance, plan, read_labels, read_posts, read_state, select, too_little
from steps.settings import IngestSettings, RetrainSettings, load_settings

DAY_0 = datetime(2026, 3, 1, tzinfo=UTC)
INGEST: IngestSettings = load_settings({}).ingest


def settings(**changes: Any) -> RetrainSettings:
    return load_settings({"retrain": {"window_days": 7, "test_days": 3} | changes}).retrain


def day(number: float) -> datetime:
    return DAY_0 + timedelta(days=number)


def post(number: int, at: float, **columns: Any) -> dict[str, Any]:
    return {"post_id": f"p{number}", "created_at": day(at), "images": [f"{number}.jpg"], **columns}


def write(path: Path, posts: list[dict[str, Any]]) -> Path:
    rows = [p | {"created_at": p["created_at"].isoformat()} if p.get("created_at") else p for p in posts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


#: A post an hour for 20 days; nothing says which split it belongs to.
POSTS = [post(n, n / 24) for n in range(480)]


def side(number: int) -> str:
    return split_of(f"p{number}", INGEST.val_share, INGEST.test_share)


def test_the_window_holds_train_and_val_posts_of_its_days_and_test_posts_of_their_own() -> None:
    found = select(POSTS, day(18), {}, settings(), INGEST)
    newest = day(479 / 24)
    assert found.watermark == newest
    assert found.n_fresh == sum(p["created_at"] > day(18) for p in POSTS) == 47
    expected = {
        p["post_id"]
        for n, p in enumerate(POSTS)
        if p["created_at"] > newest - timedelta(days=3 if side(n) == "test" else 7)
    }
    assert {row["post_id"] for row in found.rows} == expected
    assert {row["post_id"]: row["split"] for row in found.rows} == {
        f"p{n}": side(n) for n in range(480) if f"p{n}" in expected
    }


def test_no_post_is_ever_trained_on_and_tested() -> None:
    sides: dict[str, set[str]] = {}
    for week in (5, 10, 15, 20):
        upto = [p for p in POSTS if p["created_at"] <= day(week)]
        for older in ("window", "replay"):
            for row in select(upto, day(week - 5), {}, settings(older=older), INGEST).rows:
                sides.setdefault(row["post_id"], set()).add(row["split"])
    assert len(sides) > 300
    assert all(len(found) == 1 for found in sides.values())


def test_the_benchmark_stays_and_a_manifests_own_split_is_kept() -> None:
    marked = [post(1000, 0, split="test"), post(1001, 19.9, split="train")]
    rows = {row["post_id"]: row["split"] for row in select(POSTS + marked, day(18), {}, settings(), INGEST).rows}
    assert rows["p1000"] == "test", "older than any window"
    assert rows["p1001"] == "train"


def test_replay_takes_so_many_older_posts_a_fresh_one_and_the_same_first() -> None:
    def older(replay: float) -> set[str]:
        found = select(POSTS, day(18), {}, settings(older="replay", replay=replay), INGEST)
        n_fresh = sum(row["created_at"] > day(18) and row["split"] != "test" for row in found.rows)
        taken = {r["post_id"] for r in found.rows if r["created_at"] <= day(18) and r["split"] != "test"}
        assert len(taken) == round(replay * n_fresh)
        return taken

    few, many = older(0.5), older(2.0)
    assert few < many
    assert older(0.0) == set()


def test_before_the_first_watermark_everything_is_fresh_and_taken() -> None:
    found = select(POSTS, None, {}, settings(), INGEST)
    assert found.n_fresh == 480
    assert sum(row["split"] != "test" for row in found.rows) == sum(side(n) != "test" for n in range(480))


def test_a_later_label_replaces_the_manifests() -> None:
    posts = [post(1, 1, label=0), post(2, 1), post(3, 1, label=1)]
    rows = select(posts, None, {"p1": 1, "p2": 0}, settings(test_days=30), INGEST).rows
    assert {row["post_id"]: row["label"] for row in rows} == {"p1": 1, "p2": 0, "p3": 1}


def test_the_watermark_moves_forward_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "m.json"
    assert read_state(path) is None
    for at in (3, 5, 4):
        advance(path, State(watermark=day(at), version=str(at), decision="kept"))
    assert read_state(path) == State(watermark=day(5), version="5", decision="kept")
    assert [p.name for p in path.parent.iterdir()] == ["m.json"], "nothing half-written is left"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"m\.json: 3 faults: correct it, or delete it"):
        read_state(path)


def test_too_little_counts_what_is_newer_than_the_watermark(tmp_path: Path) -> None:
    path = write(tmp_path / "posts.jsonl", POSTS[:48])
    state = State(watermark=day(1), version="1", decision="kept")
    assert too_little(path, state, settings(min_fresh=23)) is None, "hours 25 to 47"
    line = too_little(path, state, settings(min_fresh=24))
    assert line is not None
    assert "23 of 48 posts are fresh" in line
    assert too_little(path, None, settings(min_fresh=48)) is None


def test_a_folder_is_read_by_name_and_the_last_row_of_a_post_counts(tmp_path: Path) -> None:
    write(tmp_path / "2026-03-02.jsonl", [post(1, 2, label=1)])
    write(tmp_path / "2026-03-01.jsonl", [post(1, 1, label=0), post(2, 1)])
    (tmp_path / "images").mkdir()
    found = read_posts(tmp_path, ("post_id", "created_at", "label"))
    assert [(p["post_id"], p["created_at"], p.get("label")) for p in found] == [("p1", day(2), 1), ("p2", day(1), None)]


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (None, r"posts\.jsonl:2: created_at: missing; what is fresh is told by it"),
        ("2026-03-01T00:00:00", r"posts\.jsonl:2: created_at: .*ISO 8601 with a zone"),
        ("2999-03-01T00:00:00Z", r"posts\.jsonl:2: created_at: 2999-.*still to come"),
    ],
)
def test_a_time_that_cannot_be_used_is_named(tmp_path: Path, time: str | None, message: str) -> None:
    path = write(tmp_path / "posts.jsonl", [post(1, 1)])
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"post_id": "p2", "created_at": time, "images": ["a.jpg"]}) + "\n")
    with pytest.raises(ManifestError, match=message):
        read_posts(path)


def test_an_empty_folder_and_a_label_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"the folder holds no \.jsonl"):
        read_posts(tmp_path)
    path = tmp_path / "labels.jsonl"
    path.write_text('{"post_id": "a", "label": 1}\n{"post_id": "a", "label": 0}\n', encoding="utf-8")
    assert read_labels(path) == {"a": 0}
    path.write_text('{"post_id": "a", "label": 2}\n', encoding="utf-8")
    with pytest.raises(ManifestError, match=r"labels\.jsonl:1: label: 2; 0 or 1 is expected"):
        read_labels(path)


def test_a_plan_that_was_begun_keeps_its_champion(tmp_path: Path) -> None:
    """A run that was killed after its candidate was promoted starts again from what it had started from."""
    chosen = select(POSTS, day(18), {}, settings(), INGEST)
    begun = plan(chosen, tmp_path, "3", tmp_path / "work")
    assert plan(chosen, tmp_path, "4", tmp_path / "work") == begun
    assert begun.champion == "3"
    for k in range(5):
        (tmp_path / "work" / f"old-{k}").mkdir()
    assert plan(chosen, tmp_path, "4", tmp_path / "work") == begun
    assert len(list((tmp_path / "work").iterdir())) == 1 + 3
    rows = [json.loads(line) for line in begun.manifest.read_text(encoding="utf-8").splitlines()]
    assert [row["post_id"] for row in rows] == [row["post_id"] for row in chosen.rows]
    relabelled = select(POSTS, day(18), {"p479": 1}, settings(), INGEST)
    other = plan(relabelled, tmp_path, "4", tmp_path / "work")
    assert (other.champion, other.manifest != begun.manifest) == ("4", True)
    assert fresh.Plan.model_validate_json((other.manifest.parent / "plan.json").read_bytes()) == other
