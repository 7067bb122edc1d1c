"""The champion on the posts that the candidate was tested on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model.backbone import read_tokenizer
from model.checkpoint import load
from model.checkpoint_info import read_info, read_operating_points
from model.columns import ERROR, SCORE
from model.data import Batches, Shards
from model.device import best_device
from model.scorer import predict_rows
from steps.register.own_code import runs_ours, scorer_of
from steps.tables import rows_of

logger = logging.getLogger(__name__)


def score_posts(
    checkpoint: Path, candidate: Path, post_ids: Sequence[str], shards: Path, posts: pd.DataFrame
) -> tuple[NDArray[np.float64], list[str]]:
    """Calibrated scores of a registered checkpoint, float64 (N,), in the order of `post_ids`; NaN for a post that it
    cannot read, and the reason for each of these.

    The candidate's shards are read where the checkpoint makes the same frames and tokens, by the same code, else
    the posts themselves, by the checkpoint's own code.

    Args:
        candidate: the checkpoint that was trained on the shards.
        posts: holds every post of `post_ids` (see `steps.ingest.posts`).

    Raises:
        DataError: a post of `post_ids` is not there.
        CheckpointError: the checkpoint does not fit its backbone, or has no operating points.
    """
    data = Shards(shards)
    if runs_ours(checkpoint) and _reads(checkpoint, data, candidate):
        loaded, points = load(checkpoint, best_device()), read_operating_points(checkpoint)
        data.posts = rows_of(data.posts, post_ids, "the candidate's shards")
        batches = Batches(data, loaded.prompt, loaded.info.task)
        answers = predict_rows(loaded.model, batches, np.arange(len(post_ids)), loaded.info.train.micro_batch)
        return points.calibration.apply(answers.final_N), []
    logger.info("the champion reads posts otherwise than the candidate: they are prepared again for it")
    found = scorer_of(checkpoint).score(rows_of(posts, post_ids, "posts"))
    return found[SCORE].to_numpy(np.float64), found[ERROR].dropna().tolist()


def _reads(checkpoint: Path, shards: Shards, candidate: Path) -> bool:
    """Whether the shards hold what this checkpoint would make of the posts."""
    return read_info(checkpoint).sequence == shards.sequence and _tokens(checkpoint) == _tokens(candidate)


def _tokens(checkpoint: Path) -> str:
    """All that makes tokens of a text. A checkpoint's tokenizer is written after use, with the padding and
    truncation of its last batch, which are not among that.
    """
    tokenizer = read_tokenizer(str(checkpoint / "tokenizer"), local=True)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({key: value for key, value in state.items() if key not in ("padding", "truncation")})
