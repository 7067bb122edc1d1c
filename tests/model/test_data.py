from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from model.data import FRAMES, TEXT_IDS, Batches, PostDataset, Shards, ShardWriter, class_labels
from model.errors import CheckpointError, DiskError
from model.schema import NO_LABEL
from model.settings import BackboneSettings, SequenceSettings
from tests.support.disk import files_end_at
from tests.support.tiny import TASK, network, train_settings

SEQUENCE = SequenceSettings(frames=2, image_size=8, max_text_tokens=4, max_tokens=8)


def image(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


@pytest.mark.parametrize("per_file", [1, 3, 7, 8, 100])
def test_images_come_back_by_their_numbers_from_any_number_of_files(tmp_path: Path, per_file: int) -> None:
    with ShardWriter(tmp_path, SEQUENCE, "tok", images_per_file=per_file) as writer:
        assert [writer.add(image(10 * k)) for k in range(7)] == list(range(7))
        writer.add_posts(pd.DataFrame({"post_id": ["a"], FRAMES: [[0, 6]], TEXT_IDS: [[1]]}))
        writer.add_posts(pd.DataFrame({"post_id": ["b"], FRAMES: [[2, 2]], TEXT_IDS: [[]]}))
    assert len(list(tmp_path.glob("images-*.npy"))) == -(-7 // per_file)
    shards = Shards(tmp_path)
    assert (shards.sequence, shards.n_images) == (SEQUENCE, 7)
    assert shards.images([6, 0, 3, 3])[:, 0, 0, 0].tolist() == [60, 0, 30, 30]
    assert shards.images([6]).shape == (1, 8, 8, 3)


def test_what_was_written_before_a_failure_is_gone(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), ShardWriter(tmp_path, SEQUENCE, "tok", images_per_file=1) as writer:
        writer.add(image(0))
        writer.add_posts(pd.DataFrame({"post_id": ["a"], FRAMES: [[0]], TEXT_IDS: [[1]]}))
        writer.add(image(1 // 0))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match=r"no shards\.json; run the preprocess step again"):
        Shards(tmp_path)


@pytest.mark.parametrize("room", [100, 500, 100_000], ids=["images", "last images, as their file is closed", "posts"])
def test_a_full_disk_is_one_message_and_leaves_no_shards(room: int, tmp_path: Path) -> None:
    posts = pd.DataFrame({"post_id": ["a"], FRAMES: [[0]], TEXT_IDS: [np.arange(room) * 7919 % 10**9]})

    def write() -> None:
        with ShardWriter(tmp_path, SEQUENCE, "tok") as writer:
            writer.add(image(0))
            writer.add(image(1))
            writer.add_posts(posts)

    with (
        files_end_at(room),
        pytest.raises(DiskError, match=rf"^{tmp_path}: cannot be written: File too large; [\d,]+ b"),
    ):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_label_is_no_label() -> None:
    table = pd.DataFrame({"a": pd.array([1, None], "Int8")})
    assert class_labels(table, ["a", "absent"]).tolist() == [[1, NO_LABEL], [NO_LABEL, NO_LABEL]]
    assert class_labels(table, []).shape == (2, 0)


def test_frames_lead_to_the_posts_own_images(tiny_backbone: BackboneSettings, tiny_shards: Shards) -> None:
    _, _, batches = network(tiny_backbone, tiny_shards, train_settings())
    rows = [5, 3, 5]
    batch = batches(rows)
    for k, row in enumerate(rows):
        pixels = batch["images_UHWC"][batch["frame_index_BF"][k]]
        stored = torch.from_numpy(tiny_shards.images(tiny_shards.posts[FRAMES][row]))
        assert torch.equal(pixels, stored)
    distinct = {number for row in rows for number in tiny_shards.posts[FRAMES][row]}
    assert len(batch["images_UHWC"]) == len(distinct)


def test_rows_are_those_of_the_split_labelled_or_all(tiny_backbone: BackboneSettings, tiny_shards: Shards) -> None:
    _, _, batches = network(tiny_backbone, tiny_shards, train_settings())
    assert batches.rows("train", labelled=False).tolist() == list(range(48))
    assert batches.rows("train", labelled=True).tolist() == [k for k in range(48) if k % 8]
    assert batches.rows("val", labelled=True).tolist() == list(range(48, 64))
    assert len(PostDataset(batches.rows("test", labelled=False))) == 8


def test_the_annotators_labels_replace_peoples_where_they_are_given(
    tiny_backbone: BackboneSettings, tiny_shards: Shards
) -> None:
    """By post_id, in any order; a post without an annotation has no process label."""
    _, prompt, gold = network(tiny_backbone, tiny_shards, train_settings())
    labels = pd.DataFrame({"post_id": ["train-2", "train-1"], "bright": [0, 1], "kind": [2, None], "calm": [1, 0]})
    batches = Batches(tiny_shards, prompt, TASK, labels.astype(dict.fromkeys(TASK.question_ids, "Int8")))
    found = batches([1, 2, 3])
    assert found["question_labels_BQ"].tolist() == [[1, NO_LABEL, 0], [0, 2, 1], [NO_LABEL] * 3]
    assert torch.equal(found["final_labels_B"], gold([1, 2, 3])["final_labels_B"])
    assert gold([1])["question_labels_BQ"].tolist() == [[1, 1, 1]]
