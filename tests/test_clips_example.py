"""`examples/clips/`: posts that are videos, from their files to a trained network and its scores."""

from __future__ import annotations

import importlib.util
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from transformers import set_seed

from model import checkpoint
from model.backbone import load_tokenizer
from model.checkpoint_info import write_operating_points
from model.data import FRAMES as FRAME_NUMBERS
from model.data import Batches, Shards
from model.scorer import Scorer, predict_rows
from model.settings import BackboneSettings
from model.task import load_task
from model.train import fit
from model.video import FRAMES, frames
from steps.ingest.posts import read_manifest
from steps.paths import REPOSITORY
from steps.preprocess.shards import write_shards
from steps.settings import load_settings
from tests.model.test_scorer import CALIBRATION, points
from tests.support.clips import opened
from tests.support.tiny import train_settings

EXAMPLE = REPOSITORY / "examples" / "clips"
COUNTS = {"train": 40, "val": 12, "test": 8}
SETTINGS = load_settings({"preprocess": {"frames": 8}})


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("make_posts", EXAMPLE / "make_posts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Path = module.make_posts(tmp_path_factory.mktemp("clips"), COUNTS)
    return made


def test_clips_are_ingested_trained_on_and_scored(
    manifest: Path, tiny_backbone: BackboneSettings, agentps_home: Path, tmp_path: Path
) -> None:
    assert set(yaml.safe_load((EXAMPLE / "config.yaml").read_text(encoding="utf-8"))) == {"posts"}
    task, train = load_task(SETTINGS.task), train_settings(epochs=4, batch=4, micro_batch=4, variant="agentps_answers")
    result = read_manifest(manifest, task, SETTINGS.ingest)
    assert (len(result.posts), len(result.rejects)) == (sum(COUNTS.values()), 0)
    tokenizer = load_tokenizer(tiny_backbone)
    write_shards(tmp_path / "shards", result.posts, task, SETTINGS.preprocess, tokenizer, SETTINGS.ingest.limits)
    shards = Shards(tmp_path / "shards")
    assert set(shards.posts[FRAME_NUMBERS].map(len)) == {8}, "of the 16 frames of each clip"

    set_seed(0)
    model, _, prompt = checkpoint.build(tiny_backbone, task, SETTINGS.preprocess, train)
    batches = Batches(shards, prompt, task)
    losses = [row["loss"] for row in fit(model, batches, train, tmp_path / "work", quiet=True).history if "loss" in row]
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:10])

    checkpoint.save(
        tmp_path / "checkpoint", model, tokenizer, task=task, sequence=SETTINGS.preprocess, train=train,
        backbone=tiny_backbone, embed_backbone=True, provenance={},
    )  # fmt: skip
    write_operating_points(tmp_path / "checkpoint", points(threshold=0.5))
    test = batches.rows("test", labelled=True)
    expected = CALIBRATION.apply(predict_rows(model, batches, test, 4).final_N)
    rows = pd.read_json(manifest, lines=True).iloc[test]
    scored = Scorer.from_directory(tmp_path / "checkpoint", image_root=str(manifest.parent)).score(rows)
    assert scored["error"].isna().all()
    np.testing.assert_allclose(scored["score"], expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 1e-3, "the posts must differ, or nothing is compared"


def test_a_clip_shows_the_pictures_of_its_post_one_after_the_other(manifest: Path) -> None:
    """For four of the clip's pictures each: two frames of one picture are alike, two of different ones are not."""
    import av

    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    several = 0
    for row in rows[:6]:
        data = (manifest.parent / row["video"]).read_bytes()
        with av.open(io.BytesIO(data)) as file:
            n_pictures = file.streams.video[0].frames
        found = [opened(jpeg).astype(int) for jpeg in frames(data, SETTINGS.ingest.limits)]
        shown = [k * (n_pictures - 1) // (FRAMES - 1) // 4 for k in range(FRAMES)]
        assert sorted(set(shown)) == list(range(n_pictures // 4))
        for (one, first), (other, second) in pairwise(zip(shown, found, strict=True)):
            assert (np.abs(first - second).mean() < 4) == (one == other)
        several += n_pictures > 4
    assert several, "the clips must show several pictures, or nothing is compared"
