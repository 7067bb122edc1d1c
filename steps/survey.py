"""A precision, a recall and a share of all posts, from labels of posts that were drawn with known probabilities.

    figures = estimate(labels, flagged, probability, drawn=audit)
    figures.precision.value, figures.precision.low, figures.precision.high

Posts are put into cells: flagged or passed, times posts that were drawn about equally likely. Within a cell each
labelled post weighs 1 / probability, scaled to the cell's posts (Horvitz and Thompson 1952; Hájek's ratio), so labels
that are missing by chance do no harm. Each cell's share of positives has exact binomial bounds, with the effective
number of labels where weights differ (Korn and Graubard 1998). All three figures rise or fall with each share, so the
bounds are joined by melding (Fay, Proschan and Brittain 2015, Biometrics 71): as exact as those of a cell, also where
not one positive post was drawn. docs/survey.md compares this with other intervals.

The bounds are of the stream of posts that these are a draw from: with every post labelled they are not of width 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from model.errors import DataError
from model.post import Expects, Row
from model.schema import PROBABILITY

#: Posts of one cell: the largest probability is at most so many times the smallest.
_WITHIN = 2.0
#: Points of each cell's distribution. A bound is their quantile: right to 0.001 or so.
_POINTS = 4_000
#: No post is drawn with less: it would stand for more posts than there are, and its square for more than numbers hold.
_LEAST = 1e-12
#: A number of posts that differs from 0 by rounding only.
_NOTHING = 1e-9

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """value: None where the labels do not tell it. low, high: both bounds together hold with the level's confidence.
    labelled: the posts that it rests on.
    """

    value: float | None
    low: float
    high: float
    labelled: int

    def __str__(self) -> str:
        said = "undefined" if self.value is None else f"{self.value:.1%}"
        return f"{said} [{self.low:.1%}, {self.high:.1%}], {self.labelled:,} labels"


class Figures(NamedTuple):
    """precision: positives of the flagged. recall: flagged of the positives. share: positives of all posts."""

    precision: Estimate
    recall: Estimate
    share: Estimate


@dataclass(frozen=True)
class _Cell:
    """rows: posts that are given. posts: those that they stand for. share: of positives, None without a label.
    labels: their effective number. reached: False where no post could be drawn.
    """

    flagged: bool
    rows: int
    posts: float
    share: float | None
    labels: float
    labelled: int
    reached: bool

    def draws(self, rng: np.random.Generator, *, upper: bool) -> _Floats:
        """Points of the distribution whose quantiles are the exact bounds of the share."""
        from scipy.special import betaincinv

        if self.share is None:
            return np.full(_POINTS, float(upper))
        hits = self.share * self.labels
        a, b = (hits + 1, self.labels - hits) if upper else (hits, self.labels - hits + 1)
        if a <= _NOTHING or b <= _NOTHING:
            return np.full(_POINTS, float(upper))
        points: _Floats = betaincinv(a, b, (rng.permutation(_POINTS) + 0.5) / _POINTS)
        return points


class Asked(Row):
    """Of a row with a label: with what probability people were asked of its post; null: nobody drew it."""

    inclusion_probability: Annotated[
        float | None, Field(ge=_LEAST, le=1), Expects("a probability above 0 and at most 1, or null")
    ] = None


def chance(post_id: str, own: float | None, later: Mapping[str, int], chances: Mapping[str, float]) -> float | None:
    """With what probability people were asked of the label that counts of a post; None: nobody drew it.

    Beside drawn posts such a one stands for itself, as with probability 1: it had its label before the draw, which is
    made of the others.

    Args:
        own: the probability of the manifest's label.
        later: labels that replace the manifest's. chances: of those that were drawn, the probability.
    """
    return chances.get(post_id) if post_id in later else own


def weights_of(table: pd.DataFrame) -> _Floats | None:
    """(N,): for how many posts each stands, where its `inclusion_probability` says so; None: each for one.

    What is measured or fitted on labels takes its weights from here. Not weighed are: the loss of a training, which
    learns what a post's label is, whichever posts it sees; and what says how the posts are that were given (rules of
    `validate`, numbers of posts, agreement with people's answers).
    """
    return 1 / table[PROBABILITY].to_numpy(np.float64) if PROBABILITY in table else None


def share_of(hits: ArrayLike, weights: ArrayLike | None = None, level: float = 0.95) -> Estimate:
    """The share of the posts for which `hits` holds, each as often as it stands for posts.

    Its bounds are the exact ones of Clopper and Pearson, with the effective number of posts where weights differ.

    Args:
        hits: (N,) bool. weights: (N,), of `weights_of`; None: one each.
        level: of both bounds together.
    """
    from scipy.special import betaincinv

    hit_N = np.asarray(hits, dtype=np.float64)
    if not len(hit_N):
        return Estimate(None, 0.0, 1.0, 0)
    weight_N = np.ones(len(hit_N)) if weights is None else np.asarray(weights, dtype=np.float64)
    share, n = float(np.average(hit_N, weights=weight_N)), float(weight_N.sum() ** 2 / (weight_N**2).sum())
    k = share * n
    low = 0.0 if k < _NOTHING else float(betaincinv(k, n - k + 1, (1 - level) / 2))
    high = 1.0 if n - k < _NOTHING else float(betaincinv(k + 1, n - k, (1 + level) / 2))
    return Estimate(share, low, high, len(hit_N))


def estimate(
    labels: ArrayLike,
    flagged: ArrayLike,
    probability: ArrayLike,
    drawn: ArrayLike | None = None,
    level: float = 0.95,
) -> Figures:
    """Precision, recall and share of positives, with bounds.

    Args:
        labels: (N,), 1 or True: people say positive, 0: they do not, NaN: not labelled (yet).
        flagged: (N,), the decision. Of a figure without decisions: all False, and `share`.
        probability: (N,), with which each post was drawn for people (`audit_probability` of the store); 1 for a post
            that people look at in any case. 0: it could not be drawn; then recall and share are not known.
        drawn: (N,), which posts were drawn (`audit`, or `action` review); labels of others, that somebody chose, are
            not used. The posts are all that there are. None: only drawn posts are given, each stands for
            1 / probability; kinds of posts of which none was drawn are then not seen.
        level: of both bounds together. One bound alone holds with (1 + level) / 2: for an upper bound with 95 %, 0.9.

    Raises:
        DataError: a drawn post has a probability that is not above 0, at most 1; or a label is not 0, 1 or NaN.
    """
    label_N, flagged_N = np.asarray(labels, dtype=np.float64), np.asarray(flagged, dtype=np.bool_)
    probability_N = np.asarray(probability, dtype=np.float64)
    drawn_N = np.ones(len(label_N), dtype=np.bool_) if drawn is None else np.asarray(drawn, dtype=np.bool_)
    _check(label_N, flagged_N, probability_N, drawn_N)
    if not 0 <= level < 1:
        raise ValueError(f"level {level}: a share below 1 is expected")
    label_N = np.where(drawn_N, label_N, np.nan)
    cells = [
        _cell(label_N[chosen], bool(side), probability_N[chosen], whole=drawn is not None)
        for side in (True, False)
        for chosen in _alike(flagged_N == side, probability_N)
    ]
    rng = np.random.default_rng(0)
    posts = [rng.gamma(cell.rows, cell.posts / cell.rows, _POINTS) for cell in cells]  # another week has another mix
    least, most = (
        [n * cell.draws(rng, upper=upper) for n, cell in zip(posts, cells, strict=True)] for upper in (False, True)
    )
    everyone = range(len(cells))
    ours = [place for place in everyone if cells[place].flagged]
    others = [place for place in everyone if not cells[place].flagged]

    def sum_of(points: list[_Floats], places: Iterable[int]) -> _Floats:
        return sum((points[place] for place in places), np.zeros(_POINTS))

    def bounds(*parts: tuple[_Floats, _Floats]) -> tuple[float, float]:
        quantiles = ((1 - level) / 2, (1 + level) / 2)
        ratios = (
            np.divide(a, b, out=np.full(_POINTS, q > 0.5, float), where=b > 0)
            for (a, b), q in zip(parts, quantiles, strict=True)
        )
        low, high = (float(np.quantile(ratio, q)) for ratio, q in zip(ratios, quantiles, strict=True))
        return low, high

    def per_post(places: Sequence[int]) -> tuple[float, float]:
        n = sum_of(posts, places)
        return bounds((sum_of(least, places), n), (sum_of(most, places), n))

    hit_least, hit_most = sum_of(least, ours), sum_of(most, ours)
    recall = bounds((hit_least, hit_least + sum_of(most, others)), (hit_most, hit_most + sum_of(least, others)))
    flags = [cells[place] for place in ours]
    return Figures(
        precision=_estimate(_positives(flags), _posts(flags), per_post(ours), flags),
        recall=_estimate(_positives(flags), _positives(cells), recall, cells),
        share=_estimate(_positives(cells), _posts(cells), per_post(everyone), cells),
    )


def _check(label_N: _Floats, flagged_N: _Mask, probability_N: _Floats, drawn_N: _Mask) -> None:
    if label_N.ndim != 1 or not label_N.shape == flagged_N.shape == probability_N.shape == drawn_N.shape:
        shapes = (label_N.shape, flagged_N.shape, probability_N.shape, drawn_N.shape)
        raise ValueError(f"labels, flagged, probability, drawn: of one length are expected, found {shapes}")
    least_N = np.where(drawn_N, np.nextafter(0, 1), 0.0)
    if (bad := ~((probability_N >= least_N) & (probability_N <= 1))).any():
        row = int(np.argmax(bad))
        raise DataError(
            f"row {row}: the probability with which the post was drawn is {probability_N[row]}; above 0 and at most 1 "
            "is expected: leave the post out, or give the probability of its draw"
        )
    known_N = ~np.isnan(label_N)
    if (bad := known_N & ~np.isin(label_N, (0, 1))).any():
        row = int(np.argmax(bad))
        raise DataError(f"row {row}: label {label_N[row]:g}; 0, 1 or none is expected: correct or remove it")


def _alike(side_N: _Mask, probability_N: _Floats) -> list[_Mask]:
    """The posts of a side by how likely they were drawn: those that never were, then from 1 downwards."""
    step_N = np.full(len(probability_N), -1)
    positive_N = probability_N > 0
    step_N[positive_N] = np.floor(-np.log(probability_N[positive_N]) / np.log(_WITHIN) + 1e-9).astype(int)
    return [side_N & (step_N == step) for step in np.unique(step_N[side_N])]


def _cell(label_N: _Floats, flagged: bool, probability_N: _Floats, *, whole: bool) -> _Cell:
    reached = bool((probability_N > 0).any())
    known_N = ~np.isnan(label_N)
    weight_N = 1 / probability_N[known_N]
    posts = float(len(label_N)) if whole else float((1 / probability_N).sum())
    if not known_N.any():
        return _Cell(flagged, len(label_N), posts, None, 0.0, 0, reached)
    share = float(np.average(label_N[known_N], weights=weight_N))
    effective = float(weight_N.sum() ** 2 / (weight_N**2).sum())
    return _Cell(flagged, len(label_N), posts, share, effective, int(known_N.sum()), reached)


def _posts(cells: list[_Cell]) -> float:
    return sum(cell.posts for cell in cells)


def _positives(cells: list[_Cell]) -> float | None:
    """None: not known. A cell that could be drawn from and has no label counts as the others of its side."""
    known = [cell for cell in cells if cell.share is not None]
    if any(not cell.reached for cell in cells):
        return None
    total = 0.0
    for side in {cell.flagged for cell in cells}:
        labelled = [cell for cell in known if cell.flagged is side]
        if not labelled:
            return None
        share = sum((cell.share or 0.0) * cell.posts for cell in labelled) / _posts(labelled)
        total += share * _posts([cell for cell in cells if cell.flagged is side])
    return total


def _estimate(part: float | None, whole: float | None, bounds: tuple[float, float], cells: list[_Cell]) -> Estimate:
    value = None if part is None or not whole else part / whole
    return Estimate(value, *bounds, labelled=sum(cell.labelled for cell in cells))
