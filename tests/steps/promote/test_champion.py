"""The champion's scores are the same from the candidate's shards and from the posts themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model.backbone import load_tokenizer
from model.checkpoint_info import OperatingPoints, write_operating_points
from model.images import ImageLimits
from model.metrics import Calibration
from model.scorer import Scorer
from model.settings import BackboneSettings, SequenceSettings
from steps.preprocess.shards import write_shards
from steps.promote import champion
from tests.support.posts import ingested
from tests.support.tiny import SEQUENCE, TASK, train_settings, write_checkpoint, write_images


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    paths = [str(path) for path in write_images(tmp_path_factory.mktemp("images"), 5)]
    table = pd.DataFrame(
        {
            "post_id": ["a", "b", "c"],
            "title": ["a walk", "今天 🙂", ""],
            "text": ["", "#tag", "sea"],
            "images": [paths[:1], paths[:4], paths[3:]],
            "label": pd.array([0, 1, 0], dtype="Int8"),
            "split": "test",
            **{question: pd.array([0, 1, 0], dtype="Int8") for question in TASK.question_ids},
        }
    )
    return ingested(table, Path(paths[0]).parent)


@pytest.fixture(scope="module")
def checkpoints(tiny_backbone: BackboneSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(champion, candidate)"""
    folder = tmp_path_factory.mktemp("checkpoints")
    made = [write_checkpoint(folder / str(s), tiny_backbone, train_settings(seed=s)) for s in (0, 1)]
    write_operating_points(made[0], OperatingPoints(calibration=Calibration(scale=1.5, bias=-0.25), thresholds={}))
    return made[0], made[1]


def shards(folder: Path, posts: pd.DataFrame, backbone: BackboneSettings, sequence: SequenceSettings) -> Path:
    limits = ImageLimits(max_bytes=10**7, max_pixels=10**7)
    write_shards(folder / "shards", posts, TASK, sequence, load_tokenizer(backbone), limits)
    return folder / "shards"


@pytest.mark.parametrize("frames", [SEQUENCE.frames, SEQUENCE.frames - 1], ids=["from shards", "from the posts"])
def test_the_champion_scores_the_candidates_posts_as_it_would_serve_them(
    posts: pd.DataFrame,
    checkpoints: tuple[Path, Path],
    tiny_backbone: BackboneSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    frames: int,
) -> None:
    held, candidate = checkpoints
    root = shards(tmp_path, posts, tiny_backbone, SEQUENCE.model_copy(update={"frames": frames}))
    expected = Scorer.from_directory(held, image_root="/").score(posts)["score"].to_numpy()
    assert np.ptp(expected) > 0.005, "the posts must differ, or nothing is compared"
    if frames == SEQUENCE.frames:
        monkeypatch.setattr(champion, "scorer_of", None)  # the shards are enough
    scores, errors = champion.score_posts(held, candidate, ["c", "a"], root, posts)
    np.testing.assert_allclose(scores, expected[[2, 0]], atol=1e-5)
    assert errors == []
