"""How often a threshold keeps its promised precision, and what recall that costs: `docs/promise.md`.

    .venv/bin/python -m benchmarks.promise            # minutes; writes benchmarks/promise.json and the page's tables

Scores of positives are normal around `d`, those of negatives around 0, both of variance 1: so the precision and recall
of each threshold are known. A draw is a val split; each rule fits its threshold to it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_ndtr, ndtr
from scipy.stats import binom

from benchmarks.record import put, table, write
from model import metrics
from steps.evaluate import promise
from steps.paths import REPOSITORY

RECORD, PAGE = REPOSITORY / "benchmarks" / "promise.json", REPOSITORY / "docs" / "promise.md"
CONFIDENCE = 0.95
#: Share of positives -> how far apart their scores are: recall at 80 % precision is about 0.8 for the first.
WORLDS = {0.28: 2.3, 0.1: 2.8, 0.03: 3.2, 0.01: 3.6}
SIZES, TARGETS = (300, 1000, 1500, 3000), (0.6, 0.8, 0.9, 0.95)
#: Where rules are compared: the size and the worlds that the page speaks of.
COMPARED_SIZE, COMPARED = 1500, (0.28, 0.1)

_Scores = NDArray[np.float64]
_Labels = NDArray[np.bool_]
Rule = Callable[[_Scores, _Labels, float], float]


def truth(share: float, d: float, threshold: float) -> tuple[float, float]:
    """Precision and recall of `evidence >= threshold` over all posts."""
    positive, negative = share * ndtr(d - threshold), (1 - share) * ndtr(-threshold)
    return (positive / (positive + negative) if positive else math.nan), positive / share


def oracle(share: float, d: float, target: float) -> float:
    """The highest recall at the target: precision rises with the threshold."""
    thresholds = np.linspace(-8, 12, 200_001)
    log_odds = np.log(share / (1 - share)) + log_ndtr(d - thresholds) - log_ndtr(-thresholds)
    return truth(share, d, float(thresholds[np.argmax(expit(log_odds) >= target)]))[1]


def served(scores_N: _Scores, labels_N: _Labels, target: float) -> float:
    return promise.promised_threshold(scores_N, labels_N, target, CONFIDENCE)


def best_on_val(scores_N: _Scores, labels_N: _Labels, target: float) -> float:
    """The rule of highest recall whose precision on val reaches the target."""
    return metrics.recall_at_precision(scores_N, labels_N, target).threshold


def bound_on_a_grid(scores_N: _Scores, labels_N: _Labels, target: float) -> float:
    """20 thresholds at equal steps of flagged posts, the error divided between them."""
    curve = metrics.threshold_curve(scores_N, labels_N)
    places = np.linspace(0, len(curve.flagged) - 1, 21)[1:].astype(int)
    p_values = binom.sf(curve.true_positives[places] - 1, curve.flagged[places], target)
    kept = places[p_values <= (1 - CONFIDENCE) / len(places)]
    return float(curve.thresholds[kept[-1]]) if len(kept) else math.inf


def one_chain(start: int) -> Rule:
    """Fixed-sequence testing alone: the first threshold that is not rejected ends it."""

    @contextmanager
    def starting() -> Iterator[None]:
        before, promise._STARTS = promise._STARTS, (start,)  # type: ignore[assignment]
        try:
            yield
        finally:
            promise._STARTS = before

    def rule(scores_N: _Scores, labels_N: _Labels, target: float) -> float:
        with starting():
            return served(scores_N, labels_N, target)

    return rule


RULES: dict[str, Rule] = {
    "**two chains** (served)": served,
    "one chain, from the fewest posts": one_chain(1),
    "one chain, from 8 times as many": one_chain(8),
    "exact bound on a grid of 20": bound_on_a_grid,
    "best on val (until now)": best_on_val,
}


def measure(rule: Rule, share: float, target: float, size: int, draws: int) -> dict[str, float]:
    """kept: share of draws whose threshold keeps the promise; one that flags nothing does. cost: of recall, against
    the oracle's threshold, on average. nothing: share of draws in which nothing is promised.
    """
    d, rng = WORLDS[share], np.random.default_rng(0)
    kept, recalls, nothing = 0, 0.0, 0
    for _ in range(draws):
        labels_N = rng.random(size) < share
        if not labels_N.any():
            kept, nothing = kept + 1, nothing + 1
            continue
        evidence_N = rng.normal(size=size) + d * labels_N
        scores_N = expit(d * evidence_N - d**2 / 2 + math.log(share / (1 - share)))
        threshold = rule(scores_N, labels_N, target)
        if threshold > 1:
            kept, nothing = kept + 1, nothing + 1
            continue
        flagged = evidence_N[scores_N >= threshold].min()
        precision, recall = truth(share, d, float(flagged))
        kept += precision >= target
        recalls += recall
    return {"kept": kept / draws, "cost": oracle(share, d, target) - recalls / draws, "nothing": nothing / draws}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    rows: list[dict[str, Any]] = []
    for share, size, target in product(WORLDS, SIZES, TARGETS):
        rows.append({"rule": "served", "share": share, "size": size, "target": target}
                    | measure(served, share, target, size, draws))  # fmt: skip
    for (name, rule), share, target in product(RULES.items(), COMPARED, TARGETS):
        rows.append({"rule": name, "share": share, "size": COMPARED_SIZE, "target": target}
                    | measure(rule, share, target, COMPARED_SIZE, draws))  # fmt: skip
    write(RECORD, {"draws": draws, "confidence": CONFIDENCE, "rows": rows})
    put(tables(rows), PAGE)


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    def cell(row: dict[str, Any]) -> str:
        return "-" if row["nothing"] > 0.99 else f"{row['kept']:.1%}, {100 * row['cost']:.1f}"

    found = {(row["rule"], row["share"], row["size"], row["target"]): cell(row) for row in rows}
    heads = [f"{target:.0%}" for target in TARGETS]
    sizes = [
        [f"{share:.0%}, {size:,}", *(found["served", share, size, target] for target in TARGETS)]
        for share, size in product(WORLDS, SIZES)
    ]
    rules = [
        [name, *(found[name, share, COMPARED_SIZE, target] for share, target in product(COMPARED, TARGETS[:3]))]
        for name in RULES
    ]
    compared = [f"{share:.0%}, {target:.0%}" for share, target in product(COMPARED, TARGETS[:3])]
    return {
        "served": table(["positives, posts", *heads], sizes) + "\n",
        "rules": table(["rule", *compared], rules) + "\n",
    }


if __name__ == "__main__":
    main()
