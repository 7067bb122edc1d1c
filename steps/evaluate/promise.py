"""The threshold that keeps a promised precision, with a confidence that holds for any number of posts.

The threshold of highest recall whose precision on val is at least the target breaks its promise in about half of the
draws of val: it is the best of many by chance, too. Here each threshold of a fixed sequence is a hypothesis, "its
precision is below the target", with an exact binomial p-value, and only those that are rejected can be served. So with
probability `confidence` over draws of val the precision of the served threshold is at least the target (Learn then
Test: Angelopoulos, Bates, Candès, Jordan and Lei 2021, arXiv 2110.01052).

The sequence goes from few flagged posts to all. It is tested by the fallback procedure (Wiens 2003, Pharmaceutical
Statistics 2): the allowed error is divided between starting points, a rejection hands its error on to the next
threshold, and what was not rejected ends a chain, not the sequence. docs/promise.md compares it with others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.metrics import checked

#: Growth of the flagged posts from one threshold of the sequence to the next: as fine as helps (docs/promise.md).
_STEP = 1.03
#: Where chains start, in multiples of the fewest posts that could show the precision, all of them being positive.
_STARTS = (2, 8)
#: More labelled posts than this, nobody is asked for.
_ASKED = 100_000
#: Most flagged posts that `posts_needed` looks for.
_MOST = 10_000_000


class _Curve(NamedTuple):
    """One entry per threshold of the sequence: flagged are the posts with a score above `above`, at most `rank`."""

    rank: NDArray[np.int64]
    above: NDArray[np.float64]
    flagged: NDArray[np.int64]
    positive: NDArray[np.int64]


def promised_threshold(
    scores: ArrayLike,
    labels: ArrayLike,
    min_precision: float,
    confidence: float,
    weights: ArrayLike | None = None,
    probability: ArrayLike | None = None,
) -> float:
    """The threshold of highest recall among those whose precision is promised; inf where none can be.

    Args:
        scores: (N,), probabilities, of the posts of val: a draw from the posts that will be served.
        labels: (N,), True = positive.
        min_precision: the promise, a share between 0 and 1.
        confidence: the least probability that it is kept, between 0 and 1.
        weights: (N,), how much likelier each post is among those that will be served than among these. As many posts
            as their weights allow are drawn from these, so that they are a draw from those; the others are not used.
        probability: (N,), above 0, with which each post was drawn for people, whatever its label is (`steps.queue`). Of
            the posts above a threshold as many as make their draws alike are used: all, where their probability is one.

    Raises:
        ValueError: no posts, a NaN score, a label other than 0 and 1, a share that is none, or a negative weight.
    """
    score_N, label_N, weight_N = checked(scores, labels, weights)
    if not (0 < min_precision < 1 and 0 < confidence < 1):
        raise ValueError(f"precision {min_precision}, confidence {confidence}: shares between 0 and 1 are expected")
    chance_N = np.ones(len(score_N)) if probability is None else np.asarray(probability, dtype=np.float64)
    if chance_N.shape != score_N.shape or not ((chance_N > 0) & (chance_N <= 1)).all():
        raise ValueError("probability: one per post, above 0 and at most 1, is expected")
    if weights is not None:
        if not (weight_N >= 0).all() or not weight_N.any():
            raise ValueError("weights: none below 0, and one above it, are expected")
        drawn_N = np.random.default_rng(0).random(len(weight_N)) * weight_N.max() < weight_N
        score_N, label_N, chance_N = score_N[drawn_N], label_N[drawn_N], chance_N[drawn_N]
    curve = _curve(score_N, label_N, chance_N, min_precision, confidence)
    rejected = np.flatnonzero(_rejected(curve, min_precision, 1 - confidence))
    if not len(rejected):
        return math.inf
    # served is `score >= threshold`, tested were the scores above: the next larger number
    return max(0.0, float(np.nextafter(curve.above[rejected[-1]], math.inf)))


def posts_needed(scores: ArrayLike, min_precision: float, confidence: float) -> int | None:
    """About how many labelled posts of val the promise takes, if the scores are the probabilities that they say; None
    where no number that people could label helps: no part of the posts is precise enough.

    Labels would tell more of these posts, and less of others: the best threshold looks better on them than it is.
    """
    from scipy.stats import binom

    descending = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    precision_N = np.cumsum(descending) / np.arange(1, len(descending) + 1)
    sizes = np.unique(np.geomspace(1, _MOST, 700).astype(np.int64))
    found = []
    for flagged in np.unique(np.linspace(1, len(descending), 100).astype(int)):
        if precision_N[flagged - 1] > min_precision:
            hits = np.floor(sizes * precision_N[flagged - 1])
            enough = binom.sf(hits - 1, sizes, min_precision) <= (1 - confidence) / len(_STARTS)
            if enough.any():
                found.append(math.ceil(sizes[np.argmax(enough)] * len(descending) / flagged))
    found = [posts for posts in found if posts <= _ASKED]
    # more than there are, which do not do
    return max(min(found), len(descending) + 1) if found else None


def _fewest(min_precision: float, confidence: float) -> int:
    """Posts, all positive, that show the precision with the confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(min_precision))


def _curve(
    score_N: NDArray[np.float64],
    label_N: NDArray[np.bool_],
    chance_N: NDArray[np.float64],
    min_precision: float,
    confidence: float,
) -> _Curve:
    """A threshold lies just above the score of the next post, which is not flagged. Given that score, the flagged
    posts are a draw from all posts above it, ties or not; so their labels follow a binomial distribution. Of posts of
    different chances those count that the smallest chance above the threshold would have drawn, too.
    """
    n, rank = len(score_N), float(_STARTS[0] * _fewest(min_precision, confidence))
    ranks = []
    while rank < n:
        ranks.append(int(rank))
        rank = max(rank + 1, rank * _STEP)
    order = np.argsort(-score_N, kind="stable")
    descending = np.append(score_N[order], -math.inf)
    above = descending[[*ranks, n]]
    flagged = np.searchsorted(-descending[:-1], -above, side="left").astype(np.int64)
    positive = np.append(0, np.cumsum(label_N[order]))[flagged]
    if (chance_N != chance_N[:1]).any():
        chance_N, label_N, place_N = chance_N[order], label_N[order], np.random.default_rng(0).random(n)
        for number, count in enumerate(flagged):
            taken = place_N[:count] * chance_N[:count] < chance_N[:count].min(initial=1.0)
            flagged[number], positive[number] = taken.sum(), (taken & label_N[:count]).sum()
    return _Curve(np.array([*ranks, n]), above, flagged, positive)


def _rejected(curve: _Curve, min_precision: float, error: float) -> NDArray[np.bool_]:
    """For which thresholds of the sequence a precision below the target is ruled out."""
    from scipy.stats import binom

    p_values = binom.sf(curve.positive - 1, curve.flagged, min_precision)
    own = np.zeros(len(p_values))
    for multiple in _STARTS:
        start = int(np.searchsorted(curve.rank, multiple * _fewest(min_precision, 1 - error)))
        own[min(start, len(own) - 1)] += error / len(_STARTS)
    rejected, handed_on = np.zeros(len(p_values), dtype=bool), 0.0
    for number, p_value in enumerate(p_values):
        level = own[number] + handed_on
        rejected[number] = level > 0 and p_value <= level
        handed_on = level if rejected[number] else 0.0
    return rejected
