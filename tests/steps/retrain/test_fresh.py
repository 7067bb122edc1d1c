from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import fsspec
import pandas as pd
import pytest
from PIL import Image

from model import checkpoint
from model.backbone import load_tokenizer
from model.data import Shards
from model.errors import ManifestError
from model.settings import BackboneSettings
from model.task import load_task
from steps.evaluate.predictions import prediction_tables
from steps.ingest.groups import split_of
from steps.ingest.posts import RejectsError, read_manifest
from steps.preprocess.shards import write_shards
from steps.retrain import fresh
from steps.retrain.fresh import (
    Cursor,
    advance,
    begin,
    read_chances,
    read_cursor,
    read_labels,
    read_posts,
    select,
    too_little,
)
from steps.settings import IngestSettings, RetrainSettings, load_settings
from steps.tables import NoMatchError
from tests.support.tiny import SEQUENCE, train_settings

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
    assert found.newest == newest
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


def test_before_the_first_retraining_everything_is_fresh_and_taken() -> None:
    found = select(POSTS, None, {}, settings(), INGEST)
    assert found.n_fresh == 480
    assert sum(row["split"] != "test" for row in found.rows) == sum(side(n) != "test" for n in range(480))


def test_posts_whose_clock_says_the_first_year_are_taken() -> None:
    posts = [post(1, 0) | {"created_at": datetime(1, 1, 1, tzinfo=UTC)}]
    assert select(posts, None, {}, settings(), INGEST).n_fresh == 1


def test_a_later_label_replaces_the_manifests() -> None:
    posts = [post(1, 1, label=0), post(2, 1), post(3, 1, label=1)]
    rows = select(posts, None, {"p1": 1, "p2": 0}, settings(test_days=30), INGEST).rows
    assert {row["post_id"]: row["label"] for row in rows} == {"p1": 1, "p2": 0, "p3": 1}


def test_the_cursor_moves_forward_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "m.json"
    assert read_cursor(path) is None
    for at in (3, 5, 4):
        advance(path, Cursor(newest=day(at), version=str(at), decision="kept"))
    assert read_cursor(path) == Cursor(newest=day(5), version="5", decision="kept")
    assert [p.name for p in path.parent.iterdir()] == ["m.json"], "nothing half-written is left"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"m\.json: 3 faults: correct it, or delete it"):
        read_cursor(path)


def test_too_little_counts_what_is_newer_than_the_cursor(tmp_path: Path) -> None:
    path = write(tmp_path / "posts.jsonl", POSTS[:48])
    cursor = Cursor(newest=day(1), version="1", decision="kept")
    assert too_little(path, cursor, settings(min_fresh=23)) is None, "hours 25 to 47"
    line = too_little(path, cursor, settings(min_fresh=24))
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
        (None, r"row 2 \(p2\): created_at: missing; what is fresh is told by it"),
        ("2026-03-01T00:00:00", r"row 2 \(p2\): created_at: .*ISO 8601 with a zone"),
    ],
)
def test_a_time_that_cannot_be_used_is_named(tmp_path: Path, time: str | None, message: str) -> None:
    path = write(tmp_path / "posts.jsonl", [post(1, 1)])
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"post_id": "p2", "created_at": time, "images": ["a.jpg"]}) + "\n")
    with pytest.raises(ManifestError, match=message):
        read_posts(path)
    assert len(read_posts(path, max_reject_share=0.5)) == 1


HOURS = timedelta(hours=1)


def test_a_post_of_a_wrong_clock_is_left_out_with_a_word_and_the_others_are_trained_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One post dated 2099 ended every retraining, or made every later post count as old."""
    write(tmp_path / "1.jsonl", [post(n, n) for n in range(4)])
    write(tmp_path / "2.jsonl", [{"post_id": p, "created_at": datetime(2099, 1, 1, tzinfo=UTC)} for p in ("p2", "x")])
    found = read_posts(tmp_path)
    assert [(p["post_id"], p["created_at"]) for p in found] == [(f"p{n}", day(n)) for n in range(4)], "p2's good row"
    assert f"of 2 of 6 posts created_at is still to come, as of {tmp_path}/2.jsonl:1 (p2), 2099-01-01" in caplog.text
    assert select(found, None, {}, settings(), INGEST).newest == day(3)


def test_where_most_posts_are_still_to_come_it_is_this_clock_that_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "posts.jsonl", [post(0, 0), *(post(n, 365_000) for n in (1, 2))])
    with pytest.raises(ManifestError, match=r"of 2 of 3 posts .*is the clock of this machine right\? It says 20"):
        read_posts(path, max_reject_share=1)


def test_a_post_of_a_clock_that_is_hours_ahead_counts_and_the_cursor_stays_in_the_past(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    times = [now - 30 * HOURS, now - 2 * HOURS, now + 5 * HOURS]
    path = write(tmp_path / "posts.jsonl", [{"post_id": str(n), "created_at": time} for n, time in enumerate(times)])
    posts = read_posts(path)
    assert len(posts) == 3
    assert select(posts, None, {}, settings(), INGEST).newest == times[1]
    assert now <= select(posts[2:], None, {}, settings(), INGEST).newest <= datetime.now(UTC)


def test_a_cursor_that_is_still_to_come_tells_nothing_and_is_set_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It said that there is nothing to retrain on, for 73 years."""
    path, posts = tmp_path / "m.json", write(tmp_path / "posts.jsonl", POSTS[:48])
    path.write_text(Cursor(newest=datetime(2099, 1, 1, tzinfo=UTC), version="1", decision="kept").model_dump_json())
    assert too_little(posts, read_cursor(path), settings(min_fresh=48)) is None
    assert "m.json: 2099-01-01T00:00:00+00:00 is still to come, so a clock was wrong: every post counts" in caplog.text
    advance(path, Cursor(newest=day(2), version="2", decision="kept"))
    assert read_cursor(path) == Cursor(newest=day(2), version="2", decision="kept")


@pytest.mark.parametrize("content", ["", "{", '{"newest": "2026-03-01T00:00:00", "version": "1", "decision": "kept"}'])
def test_a_damaged_cursor_is_named(content: str, tmp_path: Path) -> None:
    """The last one has no zone."""
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(ManifestError, match=r"m\.json: 1 faults: correct it, or delete it"):
        read_cursor(tmp_path / "m.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ManifestError, match=r"folder: cannot be read: Is a directory"):
        read_cursor(tmp_path / "folder")


def test_an_empty_folder_and_a_label_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"the folder holds no \.jsonl"):
        read_posts(tmp_path)
    path = tmp_path / "labels.jsonl"
    path.write_text('{"post_id": "a", "label": 1}\n{"post_id": "a", "label": 0}\n', encoding="utf-8")
    assert read_labels(path) == {"a": 0}
    path.write_text('{"post_id": "a", "label": 2}\n', encoding="utf-8")
    with pytest.raises(ManifestError, match=r"labels\.jsonl:1: label: 2; 0, 1 or null is expected"):
        read_labels(path)


def test_a_run_that_was_begun_keeps_its_champion(tmp_path: Path) -> None:
    """A run that was killed after its candidate was promoted starts again from what it had started from."""
    chosen = select(POSTS, day(18), {}, settings(), INGEST)
    begun = begin(chosen, tmp_path, "3", tmp_path / "work")
    assert begin(chosen, tmp_path, "4", tmp_path / "work") == begun
    assert begun.champion == "3"
    for k in range(5):
        (tmp_path / "work" / f"old-{k}").mkdir()
    for k in range(5):  # as the `.DS_Store` of macOS
        (tmp_path / "work" / f"file-{k}").touch()
    assert begin(chosen, tmp_path, "4", tmp_path / "work") == begun
    assert len([path for path in (tmp_path / "work").iterdir() if path.is_dir()]) == 1 + 3
    rows = [json.loads(line) for line in begun.manifest.read_text(encoding="utf-8").splitlines()]
    assert [row["post_id"] for row in rows] == [row["post_id"] for row in chosen.rows]
    relabelled = select(POSTS, day(18), {"p479": 1}, settings(), INGEST)
    other = begin(relabelled, tmp_path, "4", tmp_path / "work")
    assert (other.champion, other.manifest != begun.manifest) == ("4", True)
    assert fresh.Run.model_validate_json((other.manifest.parent / "run.json").read_bytes()) == other


def test_a_cursor_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Else an update would make every post fresh, or end the retraining."""
    path = tmp_path / "m.json"
    path.write_text('{"watermark": "2026-03-03T00:00:00Z", "version": "3", "decision": "kept"}', encoding="utf-8")
    assert read_cursor(path) == Cursor(newest=day(2), version="3", decision="kept")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_labels_by_number_are_those_of_the_posts_and_null_is_no_label_yet(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"labels{suffix}"
    rows = pd.DataFrame({"post_id": [1000, 1001, 1002], "label": [1, None, 0]})
    if suffix == ".jsonl":
        rows.astype({"label": object}).to_json(path, orient="records", lines=True)
    else:
        rows.to_parquet(path)
    assert read_labels(path) == {"1000": 1, "1002": 0}
    posts = [post(1, 1, label=0) | {"post_id": "1000"}, post(2, 1, label=1) | {"post_id": "1002"}]
    found = select(posts, None, read_labels(path), settings(test_days=30), INGEST).rows
    assert {row["post_id"]: row["label"] for row in found} == {"1000": 1, "1002": 0}


def test_labels_of_other_posts_are_said_and_an_error_where_none_is_of_a_post(caplog: pytest.LogCaptureFixture) -> None:
    posts = [post(1, 1)]
    select(posts, None, {"p1": 1, "q1": 0}, settings(), INGEST)
    assert "labels: 1 of its 2 posts are left out, not among the posts: 'q1'" in caplog.text
    with pytest.raises(NoMatchError, match=r"none of its 2 posts is among the posts: .*'q1', 'q2'.*'p1'"):
        select(posts, None, {"q1": 1, "q2": 0}, settings(), INGEST)


TASK = load_task("ucc")
BAD = {
    "NaN": {"label": float("nan"), "watermark": float("nan")},
    "half an emoji": {"text": "so happy \ud83d"},
    "a class by name": {"watermark": "yes"},
    "no class": {"watermark": "maybe"},
    "a label as text": {"label": "1"},
    "an id that is true": {"post_id": True},
    "a post twice": {"post_id": "p0"},
}


@pytest.mark.parametrize(
    ("case", "suffix"), [*((case, ".jsonl") for case in BAD), ("NaN", ".parquet"), ("a post twice", ".parquet")]
)
def test_a_post_is_one_for_a_retraining_where_it_is_one_for_a_training(
    case: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [post(n, n, images=["a.png"], text="t", label=1, watermark=None) for n in range(4)]
    rows[2] |= BAD[case]
    path = tmp_path / f"posts{suffix}"
    if suffix == ".jsonl":
        write(path, [{k: None if v != v else v for k, v in row.items()} for row in rows])
    else:
        pd.DataFrame(rows).to_parquet(path)
    trained = read_manifest(path, TASK, INGEST.model_copy(update={"max_reject_share": 0.5}))
    found = read_posts(path, fresh.columns_of(TASK), TASK, 0.5)
    assert [row["post_id"] for row in found] == trained.posts["post_id"].tolist()
    for row in trained.rejects.itertuples():
        assert f"manifest {path}: row {row.row} ({row.post_id}) is left out: {row.reason}" in caplog.text
    if len(trained.rejects):
        with pytest.raises(RejectsError, match=rf"manifest {path}: 1 of 4 posts are rejected, .*row 3"):
            read_posts(path, fresh.columns_of(TASK), TASK)


def test_what_a_retraining_chose_is_ingested_as_the_manifest_says_and_that_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for n in range(9):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(data / f"{n}.jpg")
    source = write(data / "posts.jsonl", [post(n, n, label=n % 2, watermark="yes") for n in range(9)])
    whole = read_manifest(source, TASK, INGEST)
    opened: list[Path] = []

    def counting(path: str | Path) -> IO[bytes]:
        opened.append(Path(path))
        return Path(path).open("rb")

    monkeypatch.setattr("steps.ingest.rows._open", counting)
    posts = read_posts(source, fresh.columns_of(TASK), TASK)
    run = begin(select(posts, None, {"p3": 0}, settings(test_days=30), INGEST), fresh.folder_of(source), None, tmp_path)
    found = read_manifest(run.manifest, TASK, INGEST, root=fresh.folder_of(source)).posts
    assert opened == [source, run.manifest]
    pd.testing.assert_frame_equal(
        found, whole.posts.assign(label=whole.posts["label"].where(whole.posts["post_id"] != "p3", 0))
    )
    (data / "5.jpg").write_bytes((data / "4.jpg").read_bytes())
    again = begin(select(posts, None, {"p3": 0}, settings(test_days=30), INGEST), str(data), None, tmp_path)
    assert again.manifest == run.manifest
    assert again.fingerprint != run.fingerprint


def test_with_what_probability_people_were_asked_for_a_label_travels_to_the_predictions(
    tmp_path: Path, tiny_backbone: BackboneSettings
) -> None:
    """Thresholds of a retraining are fitted on val: a queue's labels there stand for the posts that were not asked."""
    data = tmp_path / "data"
    data.mkdir()
    for n in range(4):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(data / f"{n}.jpg")
    source = write(
        data / "posts.jsonl", [post(n, n, split=split) for n, split in enumerate(["train", "val", "test", "val"])]
    )
    labels = data / "labels.csv"
    labels.write_text("post_id,label,inclusion_probability\np1,1,0.25\np2,0,1.0\np0,1,\n", encoding="utf-8")
    chances = read_chances(labels)
    assert chances == {"p1": 0.25, "p2": 1.0}
    posts = read_posts(source, fresh.columns_of(TASK), TASK)
    chosen = select(posts, None, read_labels(labels), settings(test_days=30), INGEST, chances=chances)
    run = begin(chosen, fresh.folder_of(source), None, tmp_path)
    table = read_manifest(run.manifest, TASK, INGEST, root=fresh.folder_of(source)).posts
    assert dict(zip(table["post_id"], table["inclusion_probability"], strict=True)) == {
        "p0": 1,
        "p1": 0.25,
        "p2": 1,
        "p3": 1,
    }
    write_shards(tmp_path / "s", table, TASK, SEQUENCE, load_tokenizer(tiny_backbone), INGEST.limits)
    shards = Shards(tmp_path / "s")
    network, _, prompt = checkpoint.build(tiny_backbone, TASK, shards.sequence, train_settings(variant="vanilla"))
    val, test, _ = prediction_tables(network, prompt, shards, TASK, 2)
    assert dict(zip(val["post_id"], val["inclusion_probability"], strict=True)) == {"p1": 0.25, "p3": 1}
    assert test["inclusion_probability"].tolist() == [1]


def test_a_folder_s_hidden_and_stray_files_are_no_manifests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "1.jsonl", [post(1, 1)])
    write(tmp_path / "2.json", [post(2, 2)])
    (tmp_path / "._1.jsonl").write_bytes(b"\0\5\26\7")
    for name in (".DS_Store", "Thumbs.db", "README", "notes.txt", "a\n\x1b[1mb.csv"):
        (tmp_path / name).write_bytes(b"\0")
    (tmp_path / "old.jsonl").mkdir()
    (tmp_path / "info.json").write_text('{\n "made": "by a tool"\n}', encoding="utf-8")
    assert [row["post_id"] for row in read_posts(tmp_path)] == ["p1", "p2"]
    assert "info.json: ignored, its first line is no post" in caplog.text
    strangers = r".DS_Store, ._1.jsonl, README, Thumbs.db, a\n\x1b[1mb.csv, notes.txt"
    assert f"{tmp_path}: not read, no manifests by their names: {strangers}" in caplog.text


def test_a_folder_of_manifests_may_lie_on_another_file_system() -> None:
    files = fsspec.filesystem("memory")
    for n in (1, 2):
        row = {"post_id": f"p{n}", "created_at": day(n).isoformat(), "images": ["a.jpg"]}
        files.pipe_file(f"memory://grown/{n}.jsonl", json.dumps(row).encode())
    assert [row["post_id"] for row in read_posts("memory://grown")] == ["p1", "p2"]
    assert fresh.folder_of("memory://grown") == "memory://grown"
    assert fresh.folder_of("memory://grown/1.jsonl") == "memory://grown"


def test_a_post_that_two_queues_drew_is_refused_and_the_rows_of_one_are_taken(tmp_path: Path) -> None:
    """Drawn from the same posts, before one of them was filled in: those drawn by both would count for too few."""
    one, other = "p1,1,0.25\np2,0,1.0\n", "p2,,1.0\np3,1,0.5\np1,0,0.75\n"
    labels = tmp_path / "labels.csv"
    labels.write_text(f"post_id,label,inclusion_probability\n{one}{other}", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"labels\.csv:6: inclusion_probability: 0\.75, and row 2 of the same post"):
        read_chances(labels)
    labels.write_text(f"post_id,label,inclusion_probability\n{one}", encoding="utf-8")
    assert read_chances(labels) == {"p1": 0.25, "p2": 1}


def test_a_corrected_label_keeps_the_probability_of_its_post(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    rows = "p1,1,0.123456\np2,0,0.5\np1,0,\np2,1,0.5\np1,1,0.1235\n"
    labels.write_text(f"post_id,label,inclusion_probability\n{rows}", encoding="utf-8")
    assert read_labels(labels) == {"p1": 1, "p2": 1}
    assert read_chances(labels) == {"p1": 0.123456, "p2": 0.5}


def test_a_manifest_s_probability_goes_with_the_manifest_s_label(tmp_path: Path) -> None:
    """p0: people gave a later label, for which nobody drew it. p1: the manifest's. p2: a manifest that nobody drew."""
    write(tmp_path / "a.jsonl", [post(n, n, label=1, split="val", inclusion_probability=0.25) for n in range(2)])
    write(tmp_path / "b.jsonl", [post(2, 2, label=1, split="val")])
    posts = read_posts(tmp_path, fresh.columns_of(TASK), TASK)
    rows = select(posts, None, {"p0": 0}, settings(), INGEST).rows
    assert {row["post_id"]: row["inclusion_probability"] for row in rows} == {"p0": 1, "p1": 0.25, "p2": 1}
    asked = select(posts, None, {"p0": 0}, settings(), INGEST, chances={"p0": 0.5}).rows
    assert asked[0]["inclusion_probability"] == 0.5
    plain = read_posts(tmp_path / "b.jsonl", fresh.columns_of(TASK), TASK)
    assert "inclusion_probability" not in select(plain, None, {}, settings(), INGEST).rows[0]


def test_a_retraining_says_that_the_desk_s_labels_count_once_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for place in (None, str(tmp_path / "labels.csv")):
        fresh.tell_unweighed(place)
    assert not caplog.records
    fresh.tell_unweighed(f"sqlite:///{tmp_path}/scores.db")
    assert "labels of the review desk count once each on val and test" in caplog.text
