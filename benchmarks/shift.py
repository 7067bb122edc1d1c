"""Which late labels thresholds are fitted to again after a change, and how often the live alarm rings: docs/promise.md.

    .venv/bin/python -m benchmarks.shift             # minutes; writes benchmarks/shift.json and the page's tables

Scores are those of `benchmarks.promise` at 28 % positive. From some day on part of the negatives score as positives do,
as where own albums begin to carry watermarks. Each way takes the labels of 14 days, the newest last, and fits the
threshold; the truth is that of the posts after the change. Last, how many labels since the change it takes, of random
posts and of those that `agentps queue` asks for.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from benchmarks.promise import WORLDS
from benchmarks.record import put, table, write
from model.columns import DECISION, SCORED_AT
from model.schema import LABEL
from steps.evaluate.promise import promised_threshold
from steps.paths import REPOSITORY
from steps.queue import draw, inclusion, not_ruled_out, reach, worth
from steps.retrain.live import Drawn, Live, Share
from steps.retrain.newest import fall, since_the_fall
from steps.survey import estimate

RECORD, PAGE = REPOSITORY / "benchmarks" / "shift.json", REPOSITORY / "docs" / "promise.md"
CONFIDENCE, TARGET, DAYS, PER_DAY = 0.95, 0.8, 14, 131
BASE = 0.28
FAR = WORLDS[BASE]
#: Of the negatives, those that score almost as positives do after the change: a small and a large one.
MOVED = (0.12, 0.4)
#: Days with posts of the new mix.
SINCE = (3, 5, 7, 12)
#: Labels since the change, of so many scored posts.
LABELS, SCORED = (300, 600, 1200, 2400), 10_000
#: Labels since the fall that the queue is made from: those of three days.
KNOWN = 3 * PER_DAY


def truth(threshold: float, moved: float) -> tuple[float, float]:
    """Precision and recall over all posts."""
    positive = BASE * ndtr(FAR - threshold)
    negative = (1 - BASE) * (moved * ndtr(FAR - 1 - threshold) + (1 - moved) * ndtr(-threshold))
    return positive / (positive + negative), positive / BASE


def best(moved: float) -> float:
    """The threshold of somebody who knows the truth."""
    grid = np.linspace(-3, 8, 20_001)
    kept = [truth(t, moved)[0] >= TARGET for t in grid]
    return float(grid[int(np.argmax(kept))])


def drawn(rng: np.random.Generator, since: int, share: float) -> pd.DataFrame:
    """Labelled posts of the days; flagged at the threshold that was right before."""
    day = np.repeat(np.arange(DAYS), PER_DAY)
    positive = rng.random(len(day)) < BASE
    moved = ~positive & (day >= DAYS - since) & (rng.random(len(day)) < share)
    evidence = rng.normal(size=len(day)) + FAR * positive + (FAR - 1) * moved
    at = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(day, unit="D")
    decision = evidence >= best(0.0)
    return pd.DataFrame({"evidence": evidence, LABEL: positive.astype(float), DECISION: decision, SCORED_AT: at})


def _fit(rows: pd.DataFrame, weights: Any = None) -> float:
    return promised_threshold(rows["evidence"], rows[LABEL] == 1, TARGET, CONFIDENCE, weights)


def _age(rows: pd.DataFrame) -> Any:
    return (rows[SCORED_AT].max() - rows[SCORED_AT]).dt.days


def _fall_or_all(rows: pd.DataFrame) -> pd.DataFrame:
    since = fall(rows)
    return rows if since is None else rows[rows[SCORED_AT] >= since]


ARMS = ("random posts", "queue, before labels show the fall", "queue, after")
WAYS: dict[str, Callable[[pd.DataFrame], float]] = {
    "**since the fall, or the newest half** (used)": lambda rows: _fit(since_the_fall(rows)),
    "since the fall, or all": lambda rows: _fit(_fall_or_all(rows)),
    "all 14 days": _fit,
    "the newest 7 days": lambda rows: _fit(rows[_age(rows) < 7]),
    "the newest 3 days": lambda rows: _fit(rows[_age(rows) < 3]),
    "weights that halve every 3 days": lambda rows: _fit(rows, 0.5 ** (_age(rows) / 3)),
}


def refits(draws: int) -> list[dict[str, Any]]:
    """kept: share of draws in which the promise is kept after the change; recall: on average; nothing: share of draws
    in which nothing is promised, which counts as kept and as recall 0.
    """
    rows = []
    for moved, since in product(MOVED, SINCE):
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        rng = np.random.default_rng(since)
        for _ in range(draws):
            posts = drawn(rng, since, moved)
            for way, fit in WAYS.items():
                found[way].append(fit(posts))
        for way, thresholds in found.items():
            told = [truth(t, moved) if math.isfinite(t) else (1.0, 0.0) for t in thresholds]
            rows.append(
                {
                    "way": way,
                    "moved": moved,
                    "since": since,
                    "kept": float(np.mean([precision >= TARGET for precision, _ in told])),
                    "precision": float(np.mean([precision for precision, recall in told if recall])),
                    "recall": float(np.mean([recall for _, recall in told])),
                    "nothing": float(np.mean([math.isinf(t) for t in thresholds])),
                }
            )
    return rows


def labels_needed(draws: int) -> list[dict[str, Any]]:
    """As `refits`, on labels of posts after the change only, by their number and by who chose the posts."""
    rows = []
    for moved, budget, arm in product(MOVED, LABELS, ARMS):
        told = []
        for seed in range(draws):
            rng = np.random.default_rng(seed)
            positive = rng.random(SCORED) < BASE
            near = ~positive & (rng.random(SCORED) < moved)
            evidence = rng.normal(size=SCORED) + FAR * positive + (FAR - 1) * near
            probability = np.full(SCORED, budget / SCORED)
            if arm != ARMS[0]:
                lowest = reach(evidence, best(0.0), BASE)
                if arm == ARMS[2]:
                    known = draw(np.full(SCORED, KNOWN / SCORED), seed + draws)
                    found = evidence[known], positive[known], np.ones(known.sum())
                    lowest = max(lowest, not_ruled_out(*found, TARGET, CONFIDENCE))
                probability = inclusion(worth(evidence, lowest, {})[0], budget, 0.2)
            taken = draw(probability, seed)
            chance = probability[taken]
            threshold = promised_threshold(evidence[taken], positive[taken], TARGET, CONFIDENCE, probability=chance)
            told.append(truth(threshold, moved) if math.isfinite(threshold) else (1.0, 0.0))
        rows.append(
            {
                "arm": arm,
                "moved": moved,
                "labels": budget,
                "kept": float(np.mean([precision >= TARGET for precision, _ in told])),
                "recall": float(np.mean([recall for _, recall in told])),
                "nothing": float(np.mean([recall == 0 for _, recall in told])),
            }
        )
    return rows


def alarms(draws: int) -> list[dict[str, Any]]:
    """Share of weeks with an alarm, by the true precision of the flagged posts."""
    rows: list[dict[str, Any]] = []
    for precision in (0.8, 0.78, 0.75, 0.7, 0.6):
        rng = np.random.default_rng(0)
        rung = {"every post labelled": 0, "drawn: 20 % of flagged, 2 % of passed": 0}
        for _ in range(draws):
            flagged = rng.random(2000) < 0.25
            positive = rng.random(2000) < np.where(flagged, precision, 0.1)
            share = Share(int((flagged & positive).sum()), int(flagged.sum()))
            probability = np.where(flagged, 0.2, 0.02)
            asked = rng.random(2000) < probability
            figure = estimate(positive, flagged, probability, asked, level=2 * CONFIDENCE - 1).precision
            figures: list[Share | Drawn] = [share, Drawn.of(figure)]
            for way, one in zip(rung, figures, strict=True):
                rung[way] += Live("1", 2000, 2000, one, one, TARGET, CONFIDENCE).alarm
        rows += [{"way": way, "precision": precision, "rung": n / draws} for way, n in rung.items()]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=400)
    draws = parser.parse_args().draws
    worlds = [
        {"moved": moved, "recall": truth(best(moved), moved)[1], "precision": truth(best(0.0), moved)[0]}
        for moved in MOVED
    ]
    record = {
        "draws": draws,
        "worlds": worlds,
        "refits": refits(draws),
        "alarms": alarms(draws),
        "needed": labels_needed(draws),
    }
    write(RECORD, record)
    put(tables(record), PAGE)


def tables(record: dict[str, Any]) -> dict[str, str]:
    cell = {
        (row["way"], row["moved"], row["since"]): f"{row['kept']:.0%}, {row['recall']:.0%}, {row['nothing']:.0%}"
        for row in record["refits"]
    }
    rang = {(row["way"], row["precision"]): f"{row['rung']:.1%}" for row in record["alarms"]}
    precisions = sorted({precision for _, precision in rang}, reverse=True)
    small, large = (
        table(
            ["labels", *(f"{since} of 14 days new" for since in SINCE)],
            [[way, *(cell[way, moved, since] for since in SINCE)] for way in WAYS],
        )
        + "\n"
        for moved in MOVED
    )
    asked = {
        (row["arm"], row["moved"], row["labels"]): f"{row['kept']:.0%}, {row['recall']:.0%}, {row['nothing']:.0%}"
        for row in record["needed"]
    }
    needed = [
        [what, f"{n:,}", *(asked[arm, moved, n] for arm in ARMS)]
        for moved, what in zip(MOVED, ("small", "large"), strict=True)
        for n in LABELS
    ]
    return {
        "small": small,
        "large": large,
        "needed": table(["change", "labels", *ARMS], needed) + "\n",
        "alarms": table(
            ["true precision", *(f"{precision:.0%}" for precision in precisions)],
            [[way, *(rang[way, p] for p in precisions)] for way in dict.fromkeys(way for way, _ in rang)],
        )
        + "\n",
    }


if __name__ == "__main__":
    main()
