"""The champion on the posts that the candidate was tested on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from model.backbone import load_tokenizer
from model.checkpoint import Loaded, load, read_operating_points
from model.data import Batches, Shards
from model.scorer import Scorer, predict_rows
from model.settings import BackboneSettings
from steps.tables import rows_of

logger = logging.getLogger(__name__)


def score_posts(
    checkpoint: Path, candidate: Path, post_ids: Sequence[str], shards: Path, posts: pd.DataFrame
) -> NDArray[np.float64]:
    """Calibrated scores of a registered checkpoint, float64 (N,), in the order of `post_ids`.

    The candidate's shards are read where the checkpoint reads the same frames and tokens, else the
    posts themselves.

    Args:
        candidate: the checkpoint that was trained on the shards.
        posts: holds every post of `post_ids` (see `steps.ingest.posts`).

    Raises:
        DataError: a post of `post_ids` is not there.
        CheckpointError: the checkpoint does not fit its backbone, or has no operating points.
        ImageError: an image cannot be read any more.
    """
    loaded = load(checkpoint, torch.device("cuda") if torch.cuda.is_available() else None)
    points = read_operating_points(checkpoint)
    data = Shards(shards)
    if _reads(loaded, data, candidate):
        data.posts = rows_of(data.posts, post_ids, "the candidate's shards")
        batches = Batches(data, loaded.prompt, loaded.info.task)
        answers = predict_rows(loaded.model, batches, np.arange(len(post_ids)), loaded.info.train.micro_batch)
        return points.calibration.apply(answers.final_N)
    logger.info("the champion reads other frames or tokens than the candidate: the posts are prepared again for it")
    table = rows_of(posts, post_ids, "posts")
    return Scorer(loaded, points, loaded.info.train.micro_batch).score(table)["score"].to_numpy(np.float64)


def _reads(loaded: Loaded, shards: Shards, candidate: Path) -> bool:
    """Whether the shards hold what this checkpoint would make of the posts."""
    if loaded.info.sequence != shards.sequence:
        return False
    return _tokens(loaded.tokenizer) == _tokens(load_tokenizer(BackboneSettings(name=str(candidate / "tokenizer"))))


def _tokens(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that makes tokens of a text. A checkpoint's tokenizer is written after use, with the padding and
    truncation of its last batch, which are not among that.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({key: value for key, value in state.items() if key not in ("padding", "truncation")})
