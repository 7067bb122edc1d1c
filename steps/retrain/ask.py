"""The posts that people are asked of next, of those that the champion scored: `agentps queue --budget`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model.columns import DECISION, MODEL_VERSION, SCORE, SCORED_AT
from model.errors import ConfigError, DataError
from model.schema import CREATED_AT, IMAGES, LABEL, POST_ID, PROBABILITY, ROOT, TEXT, TITLE
from model.task import Task
from steps.promote.gate import slices_of
from steps.queue import REASONS, draw, inclusion, not_ruled_out, reach, worth
from steps.register import registry
from steps.register.registry import RegisteredVersion
from steps.retrain.fresh import read_chances, read_labels
from steps.retrain.live import read_scores, scores_place
from steps.retrain.newest import fall
from steps.settings import RetrainSettings
from steps.survey import chance, share_of
from steps.tables import tell_unmatched

_Mask = NDArray[np.bool_]


def whom_to_ask(
    posts: pd.DataFrame,
    task: Task,
    champion: RegisteredVersion,
    place: str | None,
    settings: RetrainSettings,
    confidence: float,
    *,
    budget: int,
    random_share: float,
    seed: int,
    disputed: Collection[str] = (),
) -> pd.DataFrame:
    """A manifest that people fill in: post_id, score, inclusion_probability, reasons, title, text, images as paths, an
    empty `label`, and an empty column per question; the highest scores first.

    Args:
        posts: see `steps.ingest.posts`; those with a label, there or in `retrain.labels`, are not asked of.
        place: of the scores; None: `retrain.scores`, or the store of this machine.
        disputed: the posts for which annotators differ.

    Raises:
        ConfigError: there are no scores; or the budget or the share is out of its range.
        DataError: no post is scored and without a label.
    """
    place = scores_place(place or settings.scores)
    if place is None:
        raise ConfigError("queue: no scores: `agentps score` makes some; or give --scores, or set retrain.scores")
    scored = read_scores(place, champion.name, settings.live_precision)
    tell_unmatched(posts[POST_ID], set(scored[POST_ID]), "the posts", "the scored posts")
    ours = scored[scored[MODEL_VERSION] == champion.version].set_index(POST_ID)
    known = read_labels(settings.labels) if settings.labels else {}
    table = posts[posts[POST_ID].isin(ours.index)].reset_index(drop=True)
    table[LABEL] = table[POST_ID].map(known).astype(float).fillna(table[LABEL].astype(float))
    for column in (SCORE, DECISION, SCORED_AT):
        table[column] = table[POST_ID].map(ours[column])
    chances = read_chances(settings.labels) if settings.labels else {}
    own = table.get(PROBABILITY, pd.Series(np.nan, table.index))
    drawn = [chance(post_id, cell, known, chances) for post_id, cell in zip(table[POST_ID], own, strict=True)]
    table[PROBABILITY] = np.array(drawn, dtype=np.float64)
    table[PROBABILITY] = table[PROBABILITY].fillna(1.0)
    reasons = _reasons(table, scored, champion, settings.live_precision / 100, confidence, disputed)
    asked = table[LABEL].isna().to_numpy(bool)
    if not asked.any():
        raise DataError(
            f"queue: each of the {len(table):,} posts that version {champion.version} scored has a label: score new "
            "ones with `agentps score`"
        )
    score_N = table[SCORE].to_numpy(np.float64)
    flagged_N = table[DECISION].eq(True).to_numpy(bool)
    threshold = float(score_N[flagged_N].min()) if flagged_N.any() else np.inf
    target = settings.live_precision / 100
    lowest = max(reach(score_N, threshold, share=float(score_N.mean())), lowest_in_question(table, target, confidence))
    worth_N, said = worth(score_N[asked], lowest, {reason: holds[asked] for reason, holds in reasons.items()})
    probability_N = inclusion(worth_N, budget, random_share)
    found = table[asked].assign(**{PROBABILITY: probability_N}).assign(**{REASONS: np.array(said, dtype=object)})
    found = found[draw(probability_N, seed)].sort_values(SCORE, ascending=False, kind="stable")
    shown = found[[POST_ID, SCORE, PROBABILITY, REASONS, TITLE, TEXT]].reset_index(drop=True)
    shown[IMAGES] = [
        " ".join(str(Path(root) / name) for name in names)
        for root, names in zip(found[ROOT], found[IMAGES], strict=True)
    ]
    return shown.assign(**dict.fromkeys((LABEL, *task.question_ids), ""))


def lowest_in_question(table: pd.DataFrame, target: float, confidence: float) -> float:
    """The lowest score of a threshold that the labels since the precision fell do not rule out.

    -inf: it did not fall, or no threshold is left, so there is nothing to narrow down.
    """
    known = table[table[LABEL].notna() & table[DECISION].notna()]
    since = fall(known)
    if since is None:
        return -np.inf
    late = known[known[SCORED_AT] >= since]
    score_L, label_L = late[SCORE].to_numpy(np.float64), (late[LABEL] == 1).to_numpy(bool)
    chance_L = late[PROBABILITY].to_numpy(np.float64) if PROBABILITY in late else np.ones(len(late))
    found = not_ruled_out(score_L, label_L, chance_L, target, confidence)
    return found if np.isfinite(found) else -np.inf


def _reasons(
    table: pd.DataFrame,
    scored: pd.DataFrame,
    champion: RegisteredVersion,
    target: float,
    confidence: float,
    disputed: Collection[str],
) -> dict[str, _Mask]:
    """Why a post is worth more -> for which posts it holds, (N,)."""
    others = scored[scored[MODEL_VERSION] != champion.version]
    differ = {
        post_id
        for post_id, decision, own in zip(
            others[POST_ID], others[DECISION], others[POST_ID].map(table.set_index(POST_ID)[DECISION]), strict=True
        )
        if pd.notna(decision) and pd.notna(own) and bool(decision) != bool(own)
    }
    reasons = {
        "versions differ": table[POST_ID].isin(differ).to_numpy(bool),
        "annotators differ": table[POST_ID].isin(set(disputed)).to_numpy(bool),
    }
    profile = registry.profile_of(champion)
    if profile is not None and len(profile):
        reasons["newer than the training"] = (table[CREATED_AT] > profile[CREATED_AT].max()).to_numpy(bool)
    judged = (table[LABEL].notna() & table[DECISION].eq(True)).to_numpy(bool)
    positive = (table[LABEL] == 1).to_numpy(bool)
    weights_N = 1 / table[PROBABILITY].to_numpy(np.float64)
    for name, member in slices_of(table).items():
        ours = judged & member
        if share_of(positive[ours], weights_N[ours], 2 * confidence - 1).high < target:
            reasons[f"weak: {name}"] = member
    return {reason: holds for reason, holds in reasons.items() if holds.any()}
