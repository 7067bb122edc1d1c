"""How far a metric would move on other posts: intervals from resamples, of one model and of the gain between two.

Dimensions: N posts
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import checked


def resample_counts(size: int, n: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each of `size` posts is drawn, (size,), in each of `n` resamples with replacement.

    One seed gives every metric of the same posts the same resamples. One at a time: all at once, those of a hundred
    thousand posts take more memory than the posts.
    """
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield np.bincount(rng.integers(size, size=size), minlength=size)


def bootstrap_interval(
    fn: Callable[..., float],
    *arrays: NDArray[Any],
    n: int,
    seed: int,
    level: float = 0.95,
    weights: NDArray[np.float64] | None = None,
) -> tuple[float, float] | None:
    """Percentile interval of `fn(*arrays, weights=counts)` over `n` resamples of the posts.

    Args:
        fn: a metric of `model.metrics`, or a partial one; the arrays are never copied or resorted, each
            resample is the same posts weighted by how often they were drawn.
        arrays: (N, ...) each; scores in descending order spare each call its sort.
        weights: (N,), for how many posts each stands, however often it is drawn; None: one.

    Returns:
        (low, high) over the resamples in which the metric is defined: those where it is NaN, for
        want of positives, are skipped. None where none is left (or n is 0).
    """
    if n == 0 or len(arrays[0]) == 0:
        return None
    counts = (_weighed(drawn, weights) for drawn in resample_counts(len(arrays[0]), n, seed))
    values = np.array([fn(*arrays, weights=weight_N) for weight_N in counts])
    return _interval(values, level)


def _weighed(counts: NDArray[np.int64], weights: NDArray[np.float64] | None) -> NDArray[Any]:
    return counts if weights is None else counts * weights


def _interval(values: NDArray[np.float64], level: float) -> tuple[float, float] | None:
    defined = values[~np.isnan(values)]
    if len(defined) == 0:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_gain(
    metric: Callable[..., float],
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    *,
    n: int,
    seed: int,
    level: float = 0.95,
    weights: NDArray[np.float64] | None = None,
) -> tuple[float, float, float]:
    """How much better `a` is than `b`: `metric(a) - metric(b)` on the same posts, and its percentile interval.

    Both models are measured on the same `n` resamples of the posts, so that what makes a resample
    easy or hard for both cancels out.

    Args:
        metric: `metric(scores, labels, weights=counts)`, higher is better; as in `bootstrap_interval`.
        scores_a, scores_b, labels: (N,) each, in the same order of posts.
        weights: as in `bootstrap_interval`.

    Returns:
        (value, low, high). All NaN where the metric is undefined on the posts; the bounds are NaN
        where it is in every resample (those where it is NaN are skipped), or `n` is 0.

    Raises:
        ValueError: arrays of different lengths, no posts, or what `metric` raises.
    """
    a_N, label_N, weight_N = checked(scores_a, labels, weights)
    b_N, _, _ = checked(scores_b, labels, None)
    order_a, order_b = (np.argsort(-scores, kind="stable") for scores in (a_N, b_N))  # once, not in every resample
    a_N, label_a, b_N, label_b = a_N[order_a], label_N[order_a], b_N[order_b], label_N[order_b]
    whole = [None, None] if weights is None else [weight_N[order_a], weight_N[order_b]]
    value = metric(a_N, label_a, weights=whole[0]) - metric(b_N, label_b, weights=whole[1])
    if math.isnan(value) or n == 0:
        return value, math.nan, math.nan
    gains = np.array(
        [
            metric(a_N, label_a, weights=counts[order_a]) - metric(b_N, label_b, weights=counts[order_b])
            for counts in (_weighed(drawn, weights) for drawn in resample_counts(len(label_N), n, seed))
        ]
    )
    return value, *(_interval(gains, level) or (math.nan, math.nan))
