"""Scores of videos: the same whichever way they come in, and those that training saw."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model.backbone import load_tokenizer
from model.checkpoint import load
from model.checkpoint_info import write_operating_points
from model.data import Batches, Shards
from model.scorer import Scorer, predict_rows
from model.settings import BackboneSettings, PostLimits
from model.video import FRAMES
from scoring.files import picture_reader, video_reader
from scoring.score import read_input
from steps.ingest.posts import read_manifest
from steps.preprocess.shards import write_shards
from steps.settings import load_settings
from tests.model.test_scorer import CALIBRATION, points
from tests.support.clips import clip
from tests.support.photos import photo
from tests.support.tiny import SEQUENCE, TASK, train_settings, write_checkpoint

INGEST = load_settings({}).ingest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for k in range(3):
        (root / f"{k}.mp4").write_bytes(clip(40, seed=k))
    photo(3).save(root / "cover.jpg")
    return root


@pytest.fixture(scope="module")
def directory(tiny_backbone: BackboneSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scored") / "checkpoint"
    write_checkpoint(path, tiny_backbone, train_settings(variant="agentps_answers"))
    write_operating_points(path, points(threshold=0.5))
    return path


ROWS = [
    {"post_id": "a", "video": "0.mp4", "title": "x"},
    {"post_id": "b", "video": "1.mp4", "images": ["cover.jpg"]},
    {"post_id": "c", "video": "2.mp4", "text": "y"},
    {"post_id": "d", "images": ["cover.jpg"]},
]


def test_a_video_scores_as_its_shards_do_whichever_way_it_comes_in(
    folder: Path, directory: Path, tiny_backbone: BackboneSettings, agentps_home: Path, tmp_path: Path
) -> None:
    manifest = folder / "posts.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    table = read_manifest(manifest, TASK, INGEST).posts
    write_shards(tmp_path / "s", table, TASK, SEQUENCE, load_tokenizer(tiny_backbone), INGEST.limits)
    loaded = load(directory)
    answers = predict_rows(loaded.model, Batches(Shards(tmp_path / "s"), loaded.prompt, TASK), np.arange(4), 4)
    expected = pytest.approx(CALIBRATION.apply(answers.final_N), abs=1e-6)
    assert np.ptp(answers.final_N) > 0.01, "the posts must differ, or nothing is compared"

    scorer = Scorer.from_directory(directory, image_root=str(folder))
    paths = pd.DataFrame(ROWS)
    assert scorer.score(paths)["score"].tolist() == expected
    ours = scorer.score(table)
    assert ours["score"].tolist() == expected, "as ingest made them: the frames are there already"

    data = {name: (folder / name).read_bytes() for name in ("0.mp4", "1.mp4", "2.mp4")}
    as_bytes = paths.assign(video=[data.get(name) for name in paths["video"]])
    assert scorer.score(as_bytes)["score"].tolist() == expected
    urls = {name: f"data:video/mp4;base64,{base64.b64encode(found).decode()}" for name, found in data.items()}
    urls_of = [urls.get(name) for name in paths["video"]]
    assert scorer.score(paths.assign(video=urls_of))["score"].tolist() == expected

    read, watch = picture_reader(str(folder), INGEST.limits), video_reader(str(folder), INGEST.limits)
    inputs = [read_input(row, read, PostLimits(), watch) for row in ROWS]
    assert [len(post.images) for post in inputs] == [FRAMES, FRAMES + 1, FRAMES, 1]
    cells = {
        "title": [post.title for post in inputs],
        "text": [post.text for post in inputs],
        "images": [list(post.images) for post in inputs],
    }
    assert scorer.score(pd.DataFrame(cells))["score"].tolist() == expected


def test_a_broken_video_costs_its_post_alone(folder: Path, directory: Path) -> None:
    scorer = Scorer.from_directory(directory, image_root=str(folder))
    found = scorer.score(pd.DataFrame({"video": ["0.mp4", "none.mp4", b"nothing", 3], "post_id": list("abcd")}))
    assert found["error"].isna().tolist() == [True, False, False, False]
    assert found["error"][1] == "row 2 (post 'b'): video 'none.mp4': no such file"
    assert found["error"][2] == "row 3 (post 'c'): video: not an MP4, MOV, WebM or MKV video"
    assert found["error"][3].startswith("row 4 (post 'd'): video: int given")


def test_what_is_scored_is_known_by_the_video_s_bytes(folder: Path) -> None:
    read, watch = picture_reader(str(folder), INGEST.limits), video_reader(str(folder), INGEST.limits)
    first, again, other = (
        read_input({"post_id": "p", "video": f"{k}.mp4"}, read, PostLimits(), watch) for k in (0, 0, 1)
    )
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256
    assert first.video_sha256 is not None


def test_where_no_video_is_read_a_post_with_one_says_so(folder: Path) -> None:
    read = picture_reader(str(folder), INGEST.limits)
    found = read_input({"post_id": "p", "video": "0.mp4"}, read, PostLimits())
    assert found.error == "video: no video is read here: send its frames as images"


def test_a_post_with_a_broken_video_is_kept_with_its_reason(folder: Path) -> None:
    read, watch = picture_reader(str(folder), INGEST.limits), video_reader(str(folder), INGEST.limits)
    found = read_input({"post_id": "p", "video": "cover.jpg"}, read, PostLimits(), watch)
    assert found.error == "video: not an MP4, MOV, WebM or MKV video"
    many = read_input({"post_id": "p", "video": "0.mp4"}, read, PostLimits(max_images=15), watch)
    assert many.error == "images: 16 images; at most 15 are read (ingest.max_images)"
