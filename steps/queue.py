"""Whom to ask next: which posts people label, so that the labels tell most about the served threshold.

    chosen = draw(inclusion(worth_N, budget, random_share), seed)

What a promised precision needs are labels of posts above the thresholds that may be served: those below say nothing of
it. So the worth of a post is one number above the `reach` of the served threshold and a small one below it, and rises
where two versions or annotator and version disagree, where posts are newer than the version, and in slices whose
precision fell short. Each post is drawn with a known probability above 0, which is written down: figures of all posts
stay unbiased (`steps.survey`), and thresholds can be fitted (`steps.evaluate.promise`, its `probability`).

Dimensions: N posts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError

#: Of a queue, beside the posts' own columns and `inclusion_probability`: why a post was worth it.
REASONS = "reasons"
#: The worth of a post that could not be flagged by any threshold in question, of one that could be it is 1.
_BELOW = 0.05
#: So many times more each reason makes a post worth.
_TIMES = 1.5
#: A threshold in question flags at most so many times as many posts as the served one.
_REACH = 1.5

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]


def reach(score_N: _Floats, threshold: float, share: float) -> float:
    """The lowest score that a threshold in question may have.

    Args:
        threshold: that is served; inf: nothing is flagged.
        share: of the posts that would be flagged where nothing is: about that of the positive ones.
    """
    flagged = float((score_N >= threshold).mean()) or share
    return float(np.quantile(score_N, max(0.0, 1 - _REACH * flagged)))


def not_ruled_out(score_L: _Floats, label_L: _Mask, probability_L: _Floats, target: float, confidence: float) -> float:
    """The lowest threshold whose precision the labels (L of them) do not show to be below the target; inf: all are.

    After a change of the posts that is far above the one that was served: labels below it cannot make a promise.

    Args:
        probability_L: with which each post was drawn for people.
        confidence: of the exact upper bound of a precision, one-sided.
    """
    from scipy.special import betaincinv

    order = np.argsort(-score_L, kind="stable")
    weight_L = 1 / probability_L[order]
    whole_L, square_L = np.cumsum(weight_L), np.cumsum(weight_L**2)
    labels_L = whole_L**2 / square_L  # their effective number (Korn and Graubard 1998)
    hits_L = np.cumsum(weight_L * label_L[order]) / whole_L * labels_L
    misses_L = labels_L - hits_L
    high_L = np.where(misses_L > 1e-9, betaincinv(hits_L + 1, np.maximum(misses_L, 1e-9), confidence), 1.0)
    open_L = np.flatnonzero(high_L >= target)
    return float(score_L[order][open_L[-1]]) if len(open_L) else np.inf


def worth(score_N: _Floats, lowest: float, reasons: Mapping[str, _Mask]) -> tuple[_Floats, list[str]]:
    """(worth above 0, the reasons in words), N each.

    Args:
        lowest: of `reach`.
        reasons: what makes a post worth more, in words -> for which posts it holds.
    """
    above_N = score_N >= lowest
    worth_N = np.where(above_N, 1.0, _BELOW)
    said = [["may be flagged"] if above else [] for above in above_N]
    for reason, holds_N in reasons.items():
        worth_N = np.where(holds_N, worth_N * _TIMES, worth_N)
        for place in np.flatnonzero(holds_N):
            said[place].append(reason)
    return worth_N, ["; ".join(words) or "random" for words in said]


def inclusion(worth_N: _Floats, budget: int, random_share: float) -> _Floats:
    """With what probability each post is drawn: `random_share` of the budget is even over posts, the rest in proportion
    to their worth. At most 1, above 0, and the budget in sum.

    Raises:
        ConfigError: the budget is not between 1 and the number of posts, or the share not above 0 and at most 1.
    """
    n = len(worth_N)
    if not 1 <= budget <= n:
        raise ConfigError(f"budget {budget}: between 1 and {n:,}, the posts that can be asked of, is expected")
    if not 0 < random_share <= 1:
        raise ConfigError(f"random share {random_share}: above 0 and at most 1 is expected, or figures are biased")
    wanted_N = random_share / n + (1 - random_share) * worth_N / worth_N.sum()
    sure_N = np.zeros(n, dtype=np.bool_)
    while True:
        left_N = np.where(sure_N, 0.0, wanted_N)
        total = left_N.sum()
        found_N = np.where(sure_N, 1.0, left_N * (budget - sure_N.sum()) / total if total else 1.0)
        if not (over_N := ~sure_N & (found_N >= 1)).any():
            return found_N
        sure_N |= over_N


def draw(probability_N: _Floats, seed: int) -> _Mask:
    """Which posts are drawn: systematic sampling in a random order, so each with its probability, and of all as many as
    the probabilities sum to.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(probability_N))
    # one step passes a post with its probability; sums of 0.1 ten times are not quite 1
    passed = np.floor(np.cumsum(probability_N[order]).round(9) + rng.random())
    drawn_N = np.zeros(len(probability_N), dtype=np.bool_)
    drawn_N[order] = np.diff(passed, prepend=0.0) > 0
    return drawn_N
