"""The sample's clips: they go the way of a video, and training sees the same posts as without them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.backbone import load_tokenizer
from model.data import Shards
from model.images import decode
from model.settings import BackboneSettings
from model.task import load_task
from model.video import FRAMES, frames
from steps.annotate.client import annotate_posts
from steps.annotate.ledger import Ledger
from steps.annotate.prices import FREE
from steps.annotate.simulated import ACCURACY, SimulatedAnnotator
from steps.ingest.posts import IngestResult, read_manifest
from steps.ingest.sample import render_sample, split_fingerprint
from steps.preprocess.shards import write_shards
from steps.settings import load_settings

TASK = load_task("ucc")
SETTINGS = load_settings({"sample": {"train": 120, "val": 30, "test": 30, "gold_share": 0.5, "clips": 3}})
#: Groups of three posts: each has its clip, unless none of its albums can be one.
GROUPS = (120 + 30 + 30) // 3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def clips(home: Path) -> Path:
    return render_sample(SETTINGS.sample, home)


@pytest.fixture(scope="module")
def albums(home: Path) -> Path:
    return render_sample(SETTINGS.sample.model_copy(update={"clips": 0}), home)


@pytest.fixture(scope="module")
def read(clips: Path, albums: Path, home: Path) -> tuple[IngestResult, IngestResult]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTPS_HOME", str(home))
        return read_manifest(clips, TASK, SETTINGS.ingest), read_manifest(albums, TASK, SETTINGS.ingest)


def rows(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def test_a_post_is_a_clip_or_an_album_and_otherwise_the_same(clips: Path, albums: Path) -> None:
    found = rows(clips)
    for one, other in zip(found, rows(albums), strict=True):
        assert bool(one["images"]) != ("video" in one)
        assert "video" not in other
        assert {**one, "images": 0, "video": 0} == {**other, "images": 0, "video": 0}
    by_split = Counter(row["split"] for row in found if "video" in row)
    assert set(by_split) == {"train", "val", "test"}
    assert 0.8 * GROUPS < by_split.total() <= GROUPS
    assert split_fingerprint(clips, "test") == split_fingerprint(albums, "test")


def test_the_default_sample_has_clips_in_every_split_however_small_it_is(tmp_path: Path) -> None:
    settings = load_settings({"sample": {"train": 40, "val": 20, "test": 20}}).sample
    assert {row["split"] for row in rows(render_sample(settings, tmp_path)) if "video" in row} == {
        "train", "val", "test",
    }  # fmt: skip


def test_a_clip_s_frames_are_its_album_s_images_to_the_last_bit(clips: Path, albums: Path) -> None:
    limits, sizes = SETTINGS.ingest.limits, set()
    for one, other in zip(rows(clips), rows(albums), strict=True):
        if "video" not in one:
            continue
        shown = [
            np.asarray(decode(data, limits)) for data in frames((clips.parent / one["video"]).read_bytes(), limits)
        ]
        images = [np.asarray(decode((albums.parent / name).read_bytes(), limits)) for name in other["images"]]
        n = len(images)
        # the album again and again, each picture in two frames that follow each other
        assert all((shown[k] == images[k // 2 % n]).all() for k in range(FRAMES))
        sizes.add(n)
    assert sizes == {1, 2, 4, 8}


def test_the_shards_of_a_sample_with_clips_are_those_of_the_same_sample_without(
    read: tuple[IngestResult, IngestResult], tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_backbone)
    one, other = (tmp_path / name for name in ("clips", "albums"))
    for folder, result in zip((one, other), read, strict=True):
        assert result.rejects.empty
        write_shards(folder, result.posts, TASK, SETTINGS.preprocess, tokenizer, SETTINGS.ingest.limits)
    assert read[0].posts["video"].notna().sum() > 20
    pd.testing.assert_frame_equal(Shards(one).posts, Shards(other).posts)
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in one.glob("*.npy"):
        assert (np.load(path) == np.load(other / path.name)).all()
    assert (one / "shards.json").read_bytes() == (other / "shards.json").read_bytes()


def test_the_simulated_annotator_s_labels_are_the_same_too(
    read: tuple[IngestResult, IngestResult], clips: Path, albums: Path, tmp_path: Path
) -> None:
    labels = []
    for manifest, result in zip((clips, albums), read, strict=True):
        truth = pd.read_parquet(manifest.with_name("truth.parquet"))
        everything = SETTINGS.annotate.model_copy(update={"splits": ["train", "val", "test"]})
        with (
            Ledger(f"sqlite:///{tmp_path / manifest.parent.name}.db") as ledger,
            SimulatedAnnotator(truth, TASK, result.posts) as server,
        ):
            made = annotate_posts(
                result.posts, TASK, everything, ledger, base_url=server.base_url, api_key="k", price=FREE
            )
            assert made.asked == len(result.posts)
        labels.append(made.labels)
    pd.testing.assert_frame_equal(*labels)
    as_clip = read[0].posts["video"].notna()
    for id_ in ACCURACY:
        assert set(labels[0].loc[as_clip, id_].dropna()) == {0, 1}


def test_the_truth_names_a_clip_by_its_bytes(clips: Path) -> None:
    truth = pd.read_parquet(clips.with_name("truth.parquet")).set_index("post_id")["video_sha256"]
    for row in rows(clips):
        if "video" in row:
            assert truth[row["post_id"]] == hashlib.sha256((clips.parent / row["video"]).read_bytes()).hexdigest()
        else:
            assert pd.isna(truth[row["post_id"]])
