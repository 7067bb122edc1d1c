"""Videos in a manifest: their frames are the images of their posts, for every later step."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from model.images import ImageLimits, read_source
from model.video import FRAMES, frames
from steps.annotate.human import human_labels
from steps.ingest.posts import IngestResult, manifest_fingerprint, read_manifest
from steps.settings import load_settings
from steps.validate.expectations import validate_posts
from tests.model.test_video import BROKEN
from tests.support.clips import clip, numbers
from tests.support.photos import photo
from tests.support.tasks import DEMO as TASK

pytestmark = pytest.mark.usefixtures("agentps_home")

SETTINGS = load_settings({"ingest": {"max_reject_share": 1.0}}).ingest
GROUPED = load_settings({"ingest": {"group_by": ["image"]}}).ingest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    (root / "clip.mp4").write_bytes(clip())
    (root / "other.webm").write_bytes(clip(30, codec="libvpx", container="webm", seed=1))
    photo(0).save(root / "cover.jpg")
    return root


def read(folder: Path, rows: list[dict[str, Any]], settings: Any = SETTINGS) -> IngestResult:
    return read_manifest(write(folder, rows), TASK, settings)


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "posts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def files(post: dict[str, Any]) -> list[bytes]:
    """As every later step reads them."""
    limits = ImageLimits(max_bytes=10**7, max_pixels=10**7)
    named = zip(post["images"], post["image_sha256"], strict=True)
    return [read_source(name, limits, root=post["root"], sha256=sha256) for name, sha256 in named]


def test_a_video_s_frames_are_the_images_of_its_post_and_its_hash_is_of_the_file(
    folder: Path, agentps_home: Path
) -> None:
    result = read(
        folder, [{"post_id": "v", "video": "clip.mp4"}, {"post_id": "a", "images": ["cover.jpg"], "video": None}]
    )
    first, album = result.posts.to_dict("records")
    assert first["video"] == "clip.mp4"
    assert pd.isna(album["video"])
    assert pd.isna(album["video_sha256"])
    assert first["video_sha256"] == hashlib.sha256((folder / "clip.mp4").read_bytes()).hexdigest()
    assert first["root"] == str(agentps_home / "frames")
    assert album["root"] == str(folder)
    assert files(first) == frames((folder / "clip.mp4").read_bytes(), SETTINGS.limits)
    assert len(numbers(files(first))) == FRAMES
    assert (result.counts["posts"], result.counts["images"]) == (2, FRAMES + 1)


def test_images_beside_a_video_come_before_its_frames(folder: Path) -> None:
    (post,) = read(folder, [{"post_id": "b", "images": ["cover.jpg"], "video": "clip.mp4"}]).posts.to_dict("records")
    found = files(post)
    assert found[0] == (folder / "cover.jpg").read_bytes()
    assert found[1:] == frames((folder / "clip.mp4").read_bytes(), SETTINGS.limits)


def test_a_table_without_videos_is_as_it_was(folder: Path) -> None:
    posts = read(folder, [{"post_id": "a", "images": ["cover.jpg"]}]).posts
    assert "video" not in posts
    assert "video_sha256" not in posts


def test_a_broken_video_rejects_its_post_and_no_other(folder: Path, tmp_path: Path) -> None:
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_bytes(b"no video at all " * 50)
    (folder / "cut.mp4").write_bytes(clip()[:-900])
    (tmp_path / "outside.mp4").write_bytes(clip())
    rows = [
        {"post_id": "good", "video": "clip.mp4"},
        *({"post_id": name, "video": f"{name}.mp4"} for name in ("empty", "text", "cut", "none")),
        {"post_id": "outside", "video": "../outside.mp4"},
        {"post_id": "url", "video": "https://example.org/clip.mp4"},
        {"post_id": "number", "video": 3},
        {"post_id": "nothing"},
        {"post_id": "both empty", "images": [], "video": None},
        {"post_id": "list", "video": ["clip.mp4"]},
    ]
    result = read(folder, rows)
    assert result.posts["post_id"].tolist() == ["good"]
    reasons = dict(zip(result.rejects["post_id"], result.rejects["reason"], strict=True))
    assert reasons["empty"] == "video empty.mp4: empty file"
    assert reasons["text"] == "video text.mp4: not an MP4, MOV, WebM or MKV video"
    assert reasons["cut"].startswith("video cut.mp4: cut or corrupt: ")
    assert reasons["none"] == "video none.mp4: no such file"
    assert "outside the manifest's folder" in reasons["outside"]
    assert "is a URL" in reasons["url"]
    assert reasons["number"] == "video: 3; a path or null is expected"
    assert reasons["nothing"] == "images: missing; a list of one or more paths is expected"
    assert reasons["both empty"] == "images: []; a list of one or more paths is expected"
    assert reasons["list"].startswith("video: ['clip.mp4']; a path or null is expected")


def test_every_kind_of_broken_or_hostile_file_rejects_its_own_post_alone(folder: Path) -> None:
    for name, (make, _) in BROKEN.items():
        (folder / f"{name}.mp4").write_bytes(make())
    kinds = [{"post_id": name, "video": f"{name}.mp4"} for name in BROKEN]
    good = [{"post_id": f"good {k}", "video": "clip.mp4"} for k in range(len(kinds))]
    limits = load_settings({"ingest": {"max_reject_share": 1.0, "max_image_pixels": 4_000_000}}).ingest
    result = read(folder, [row for pair in zip(kinds, good, strict=True) for row in pair], limits)
    assert result.posts["post_id"].tolist() == [row["post_id"] for row in good]
    reasons = dict(zip(result.rejects["post_id"], result.rejects["reason"], strict=True))
    assert len(reasons) == len(BROKEN) >= 10
    for name, (_, expected) in BROKEN.items():
        assert re.search(expected, reasons[name].removeprefix(f"video {name}.mp4: ")), reasons[name]
        assert "\n" not in reasons[name]


def test_the_frames_of_a_video_count_as_images(folder: Path) -> None:
    few = load_settings({"ingest": {"max_images": FRAMES, "max_reject_share": 1.0}}).ingest
    assert read(folder, [{"post_id": "v", "video": "clip.mp4"}], few).rejects.empty
    rows = [{"post_id": "v", "video": "clip.mp4"}, {"post_id": "b", "images": ["cover.jpg"], "video": "clip.mp4"}]
    (reject,) = read(folder, rows, few).rejects["reason"]
    assert reject == f"images: {FRAMES + 1} images; at most {FRAMES} are read (ingest.max_images)"


def test_limits_of_videos_are_options(folder: Path) -> None:
    small = load_settings({"ingest": {"max_video_bytes": 100, "max_reject_share": 1.0}}).ingest
    rows = [{"post_id": "a", "images": ["cover.jpg"]}, {"post_id": "v", "video": "clip.mp4"}]
    assert "at most 100 are read" in read(folder, rows, small).rejects["reason"][0]
    short = load_settings({"ingest": {"max_video_seconds": 1, "max_reject_share": 1.0}}).ingest
    assert read(folder, rows, short).rejects["reason"][0] == "video clip.mp4: 2 s long; at most 1 s are read"


def test_the_frames_of_a_video_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"post_id": f"v{k}", "video": "clip.mp4"} for k in range(3)]
    first = read(folder, rows).posts
    monkeypatch.setattr("steps.ingest.pictures.frames", None)  # would fail
    pd.testing.assert_frame_equal(read(folder, rows).posts, first)


def test_the_fingerprint_covers_videos_and_the_frames_that_were_kept(folder: Path, agentps_home: Path) -> None:
    path = write(folder, [{"post_id": "v", "video": "clip.mp4"}])
    first = manifest_fingerprint(path)
    assert manifest_fingerprint(path) == first
    os.utime(folder / "clip.mp4", ns=(1, 1))
    second = manifest_fingerprint(path)
    assert second != first
    shutil.rmtree(agentps_home / "frames")
    assert manifest_fingerprint(path) != second


def leaks(posts: pd.DataFrame) -> list[str]:
    settings = load_settings({"validate": {"min_posts": {"train": 0, "val": 0, "test": 0}}}).validate_
    outcome = validate_posts(posts, human_labels(posts, TASK, ["train"]), TASK, settings, max_images=64)
    return [finding.rule for finding in outcome.critical + outcome.warnings if "leakage of an image" in finding.rule]


def test_videos_that_begin_black_share_no_image_and_the_same_video_does(folder: Path) -> None:
    black = [clip(30, content=[photo_or_black(k, seed) for k in range(30)]) for seed in (1, 2)]
    for name, data in zip(("one.mp4", "two.mp4"), black, strict=True):
        (folder / name).write_bytes(data)
    apart = [
        {"post_id": "p", "video": "one.mp4", "split": "train"},
        {"post_id": "q", "video": "two.mp4", "split": "test"},
    ]
    posts = read(folder, apart).posts
    assert set(posts["image_sha256"][0]) & set(posts["image_sha256"][1]), "both show the same black"
    assert leaks(posts) == []
    assert leaks(read(folder, [apart[0], apart[1] | {"video": "one.mp4"}]).posts) != []


def photo_or_black(number: int, seed: int) -> Any:
    import numpy as np

    return np.zeros((64, 96, 3), np.uint8) if number < 4 else np.asarray(photo(10 * seed, (96, 64)))


def test_a_video_that_was_encoded_anew_is_in_one_group_with_the_first(folder: Path) -> None:
    size = (320, 240)
    (folder / "first.mp4").write_bytes(clip(30, size, seed=5))
    (folder / "again.webm").write_bytes(clip(30, (240, 180), codec="libvpx", container="webm", seed=5))
    (folder / "another.mp4").write_bytes(clip(30, size, seed=6))
    rows = [{"post_id": f"p{k}", "video": name} for k, name in enumerate(["first.mp4", "again.webm", "another.mp4"])]
    result = read(folder, rows, GROUPED)
    assert result.counts["groups"] == 1
    assert result.posts["split"][0] == result.posts["split"][1]
