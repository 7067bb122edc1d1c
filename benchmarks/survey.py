"""How often the bounds of figures from drawn posts hold: docs/survey.md.

.venv/bin/python -m benchmarks.survey            # minutes; writes benchmarks/survey.json and the page's table
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import t

from benchmarks.record import put, table, write
from steps.paths import REPOSITORY
from steps.survey import estimate

RECORD, PAGE = REPOSITORY / "benchmarks" / "survey.json", REPOSITORY / "docs" / "survey.md"
#: Posts, share of positives, precision, recall, probability of flagged and of passed posts.
WORLDS = (
    (3_000, 0.28, 0.8, 0.7, 1.0, 1.0),
    (3_000, 0.28, 0.8, 0.7, 0.2, 0.05),
    (3_000, 0.28, 0.97, 0.9, 0.05, 0.02),
    (20_000, 0.03, 0.8, 0.6, 0.2, 0.005),
    (20_000, 0.01, 0.9, 0.5, 0.2, 0.005),
)

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]
#: (positive, flagged, weight) of the labelled posts -> bounds of precision and of recall
Way = Callable[[_Mask, _Mask, _Floats], tuple[tuple[float, float], tuple[float, float]]]


def _parts(positive: _Mask, flagged: _Mask) -> tuple[tuple[_Mask, _Mask], tuple[_Mask, _Mask]]:
    hit = positive & flagged
    return (hit, flagged), (hit, positive)


def _variance(top: _Mask, under: _Mask, flagged: _Mask, weight: _Floats) -> tuple[float, float, float]:
    """(ratio, its linearised variance, degrees of freedom), strata: flagged and passed."""
    total = float((weight * under).sum())
    if total == 0:
        return 0.5, 0.0, 1.0
    ratio = float((weight * top).sum()) / total
    residual, variance, freedom = weight * (top - ratio * under) / total, 0.0, 0.0
    for side in (flagged, ~flagged):
        n = int(side.sum())
        if n > 1:
            variance += n / (n - 1) * float(((residual[side] - residual[side].mean()) ** 2).sum())
            freedom += n - 1
    return ratio, variance, max(freedom, 1.0)


def linearised(positive: _Mask, flagged: _Mask, weight: _Floats) -> Any:
    found = []
    for top, under in _parts(positive, flagged):
        ratio, variance, freedom = _variance(top, under, flagged, weight)
        half = float(t.ppf(0.975, freedom)) * variance**0.5
        found.append((ratio - half, ratio + half))
    return tuple(found)


def korn_graubard(positive: _Mask, flagged: _Mask, weight: _Floats) -> Any:
    """Clopper and Pearson's interval with the effective number of labels of all cells together."""
    found = []
    for top, under in _parts(positive, flagged):
        ratio, variance, _ = _variance(top, under, flagged, weight)
        n = min(ratio * (1 - ratio) / variance, float(under.sum())) if variance > 0 else float(under.sum())
        low = float(betaincinv(n * ratio, n - n * ratio + 1, 0.025)) if n * ratio > 0 else 0.0
        high = float(betaincinv(n * ratio + 1, n - n * ratio, 0.975)) if n * (1 - ratio) > 0 else 1.0
        found.append((low, high))
    return tuple(found)


def bootstrap(positive: _Mask, flagged: _Mask, weight: _Floats) -> Any:
    """Percentiles of 500 resamples, each side for itself."""
    rng, sides = np.random.default_rng(0), [np.flatnonzero(side) for side in (flagged, ~flagged)]
    parts = _parts(positive, flagged)
    ratios: list[list[float]] = [[], []]
    for _ in range(500):
        rows = np.concatenate([rng.choice(side, len(side)) for side in sides if len(side)])
        for kept, (top, under) in zip(ratios, parts, strict=True):
            total = float(weight[rows] @ under[rows])
            kept.append(float(weight[rows] @ top[rows]) / total if total else 0.5)
    return tuple((float(np.quantile(r, 0.025)), float(np.quantile(r, 0.975))) for r in ratios)


def melded(positive: _Mask, flagged: _Mask, weight: _Floats) -> Any:
    figures = estimate(positive, flagged, 1 / weight)
    return tuple((one.low, one.high) for one in (figures.precision, figures.recall))


WAYS: dict[str, Way] = {
    "**melded** (used)": melded,
    "linearised, t": linearised,
    "Korn and Graubard, all cells": korn_graubard,
    "bootstrap": bootstrap,
}


def measure(world: tuple[float, ...], draws: int) -> list[dict[str, Any]]:
    n, share, precision, recall, of_flagged, of_passed = world
    wrongly = share * recall * (1 - precision) / precision / (1 - share)
    rng = np.random.default_rng(0)
    held, width = ({way: np.zeros(2) for way in WAYS} for _ in range(2))
    for _ in range(draws):
        positive = rng.random(int(n)) < share
        flagged = rng.random(int(n)) < np.where(positive, recall, wrongly)
        probability = np.where(flagged, of_flagged, of_passed)
        drawn = rng.random(int(n)) < probability
        for way, bounds in WAYS.items():
            found = bounds(positive[drawn], flagged[drawn], 1 / probability[drawn])
            held[way] += [
                low - 1e-9 <= truth <= high + 1e-9
                for (low, high), truth in zip(found, (precision, recall), strict=True)
            ]
            width[way] += [min(high, 1) - max(low, 0) for low, high in found]
    return [
        {"world": world, "way": way, "held": (held[way] / draws).tolist(), "width": (width[way] / draws).tolist()}
        for way in WAYS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    rows = [row for world in WORLDS for row in measure(world, draws)]
    write(RECORD, {"draws": draws, "rows": rows})
    put({"survey": tables(rows)}, PAGE)


def tables(rows: list[dict[str, Any]]) -> str:
    def cell(row: dict[str, Any]) -> str:
        return ", ".join(
            f"{held:.1%} ({100 * width:.0f})" for held, width in zip(row["held"], row["width"], strict=True)
        )

    lines = []
    for world in WORLDS:
        n, share, precision, recall, of_flagged, of_passed = world
        name = f"{n:,}, {share:.0%}, {precision:.0%}, {recall:.0%}, {of_flagged:g} and {of_passed:g}"
        found = {row["way"]: cell(row) for row in rows if tuple(row["world"]) == world}
        lines.append([name, *(found[way] for way in WAYS)])
    return table(["precision, recall: held (points apart)", *WAYS], lines) + "\n"


if __name__ == "__main__":
    main()
