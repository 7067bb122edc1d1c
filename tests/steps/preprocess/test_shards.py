from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from model.backbone import load_tokenizer
from model.data import FRAMES, TEXT_IDS, Shards
from model.errors import ImageError
from model.images import ImageLimits
from model.settings import BackboneSettings, SequenceSettings
from steps.preprocess import shards
from tests.support.posts import ingested
from tests.support.tiny import TASK

SEQUENCE = SequenceSettings(frames=3, image_size=8, max_text_tokens=4, max_tokens=32)
LIMITS = ImageLimits(max_bytes=10**6, max_pixels=10**6)
#: Of each post the shades of its images; two posts share the shade 50, one shows it twice.
ALBUMS = [[10], [50, 20], [50, 50], [30, 40, 60, 70], [80], [90, 95, 99], [5]]


def posts_of(folder: Path) -> pd.DataFrame:
    for shade in {shade for album in ALBUMS for shade in album}:
        Image.new("RGB", (8, 8), (shade,) * 3).save(folder / f"{shade}.png")
    posts = pd.DataFrame(
        {
            "post_id": [f"p{k}" for k in range(len(ALBUMS))],
            "title": [f"title {k}" for k in range(len(ALBUMS))],
            "text": "",
            "images": [[str(folder / f"{shade}.png") for shade in album] for album in ALBUMS],
            "split": "train",
            # the first part has no label at all
            **{name: pd.array([None] * 3 + [1] * 4, "Int8") for name in ("label", *TASK.question_ids)},
        }
    )
    return ingested(posts, folder)


def written(folder: Path, posts: pd.DataFrame, backbone: BackboneSettings) -> Shards:
    assert shards.write_shards(folder, posts, TASK, SEQUENCE, load_tokenizer(backbone), LIMITS) == 12
    return Shards(folder)


def test_parts_of_the_posts_join_to_the_whole_and_each_image_is_kept_once(
    tmp_path: Path, tiny_backbone: BackboneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = posts_of(tmp_path)
    whole = written(tmp_path / "whole", posts, tiny_backbone)
    monkeypatch.setattr(shards, "_PART", 3)
    parts = written(tmp_path / "parts", posts, tiny_backbone)
    pd.testing.assert_frame_equal(parts.posts, whole.posts)
    assert parts.posts["label"].dtype == "Int8"
    # three frames a post: cyclic repeats of few images, spread picks of many
    shades = [parts.images(frames)[:, 0, 0, 0].tolist() for frames in parts.posts[FRAMES]]
    assert shades[:3] == [[10, 10, 10], [50, 20, 50], [50, 50, 50]]
    assert set(shades[3]) < {30, 40, 60, 70}
    assert len(set(shades[3])) == 3
    assert all(0 < len(ids) <= 4 for ids in parts.posts[TEXT_IDS])


def test_no_posts_are_an_empty_table(tmp_path: Path, tiny_backbone: BackboneSettings) -> None:
    nothing = posts_of(tmp_path).iloc[:0]
    assert shards.write_shards(tmp_path / "s", nothing, TASK, SEQUENCE, load_tokenizer(tiny_backbone), LIMITS) == 0
    assert len(Shards(tmp_path / "s").posts) == 0


@pytest.mark.parametrize("other", ["90.png", None], ids=["another picture", "no picture"])
def test_an_image_that_changed_since_ingest_is_named(
    other: str | None, tmp_path: Path, tiny_backbone: BackboneSettings
) -> None:
    """Another picture would be trained on with this one's labels."""
    posts = posts_of(tmp_path)
    (tmp_path / "20.png").write_bytes((tmp_path / other).read_bytes() if other else b"no picture")
    with pytest.raises(ImageError, match=r"20\.png: .*; ingest could read it: run the pipeline again"):
        written(tmp_path / "s", posts, tiny_backbone)


def test_frames_numbers_are_those_of_the_first_appearance(tmp_path: Path, tiny_backbone: BackboneSettings) -> None:
    table = written(tmp_path / "s", posts_of(tmp_path), tiny_backbone).posts
    assert [frames.tolist() for frames in table[FRAMES][:3]] == [[0, 0, 0], [1, 2, 1], [1, 1, 1]]
    assert table[FRAMES][0].dtype == np.int64


def test_posts_elsewhere_make_the_same_shards(tmp_path: Path, tiny_backbone: BackboneSettings) -> None:
    """In another folder, and on another file system."""
    folder = tmp_path / "posts"
    folder.mkdir()
    posts = posts_of(folder)
    for path in folder.iterdir():
        fsspec.filesystem("memory").pipe_file(f"memory://shards/{path.name}", path.read_bytes())
    written(tmp_path / "here", posts, tiny_backbone)
    moved = folder.rename(tmp_path / "moved")
    written(tmp_path / "there", posts.assign(root=str(moved)), tiny_backbone)
    written(tmp_path / "memory", posts.assign(root="memory://shards"), tiny_backbone)
    here, there, memory = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "there", "memory")
    )
    assert here == there == memory
    assert "posts.parquet" in here
