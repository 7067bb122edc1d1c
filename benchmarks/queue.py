"""Labels that `agentps queue` asks for against labels of random posts: docs/queue.md.

    .venv/bin/python -m benchmarks.queue             # a minute; writes benchmarks/queue.json and the page's tables

Of scored posts some are labelled, a threshold is fitted to them (`promised_threshold`, 80 % with 95 % confidence), and
its true recall and precision are read off all posts. Two kinds of posts: those of `benchmarks.promise`, and the val and
test posts of the sample as the default training scores them (`--predictions`, once `make train` has run).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from benchmarks.promise import WORLDS
from benchmarks.record import put, table, write
from model.columns import SCORE
from model.schema import LABEL
from steps.evaluate.promise import promised_threshold
from steps.paths import REPOSITORY
from steps.queue import draw, inclusion, reach, worth
from steps.survey import estimate

RECORD, PAGE = REPOSITORY / "benchmarks" / "queue.json", REPOSITORY / "docs" / "queue.md"
TARGET, CONFIDENCE, RANDOM_SHARE = 0.8, 0.95, 0.2
BUDGETS, SEEDS = (150, 300, 450, 600, 900, 1200), (0, 1, 2)
POOL, BASE = 20_000, 0.28
ARMS = ("random", "queue")

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]


def world(seed: int) -> tuple[_Floats, _Mask]:
    """Scores that are the probabilities that they say, and labels."""
    rng, d = np.random.default_rng(seed), WORLDS[BASE]
    positive_N = rng.random(POOL) < BASE
    evidence_N = rng.normal(size=POOL) + d * positive_N
    return expit(d * evidence_N - d**2 / 2 + math.log(BASE / (1 - BASE))), positive_N


def one(score_N: _Floats, positive_N: _Mask, budget: int, arm: str, seed: int) -> dict[str, float]:
    lowest = reach(score_N, math.inf, BASE)
    worth_N, _ = worth(score_N, lowest, {})
    probability_N = inclusion(worth_N, budget, 1.0 if arm == "random" else RANDOM_SHARE)
    drawn_N = draw(probability_N, seed)
    threshold = promised_threshold(
        score_N[drawn_N], positive_N[drawn_N], TARGET, CONFIDENCE, probability=probability_N[drawn_N]
    )
    flagged_N = score_N >= threshold
    precision = float(positive_N[flagged_N].mean()) if flagged_N.any() else 1.0
    share = estimate(np.where(drawn_N, positive_N, np.nan), score_N >= lowest, probability_N, drawn_N).share
    return {
        "recall": float(flagged_N[positive_N].mean()),
        "kept": float(precision >= TARGET),
        "covered": float(share.low <= positive_N.mean() <= share.high),
    }


def curve(kind: str, pools: list[tuple[_Floats, _Mask]], draws: int) -> list[dict[str, Any]]:
    rows = []
    for seed, (score_N, positive_N) in enumerate(pools):
        for budget in (budget for budget in BUDGETS if budget < len(score_N) // 2):
            for arm in ARMS:
                found = [one(score_N, positive_N, budget, arm, 1000 * seed + k) for k in range(draws)]
                means = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
                rows.append({"kind": kind, "seed": seed, "budget": budget, "arm": arm, **means})
    return rows


def sample_pools(predictions: Path) -> list[tuple[_Floats, _Mask]]:
    """One pool: there is one model; the draws differ."""
    found = pd.read_parquet(predictions)
    found = found[found[LABEL].notna()]
    return [(found[SCORE].to_numpy(np.float64), (found[LABEL] == 1).to_numpy(bool))] * len(SEEDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=30)
    parser.add_argument("--predictions", type=Path, help="predictions.parquet of a version of the default training")
    asked = parser.parse_args()
    rows = curve("simulated", [world(seed) for seed in SEEDS], asked.draws)
    if asked.predictions is not None:
        rows += curve("sample", sample_pools(asked.predictions), asked.draws)
    write(RECORD, {"draws": asked.draws, "rows": rows})
    put(tables(rows), PAGE)


def tables(rows: list[dict[str, Any]]) -> dict[str, str]:
    def cell(kind: str, budget: int, arm: str) -> str:
        found = [row for row in rows if (row["kind"], row["budget"], row["arm"]) == (kind, budget, arm)]
        recalls = [100 * row["recall"] for row in found]
        kept = float(np.mean([row["kept"] for row in found]))
        return f"{np.mean(recalls):.1f} ({min(recalls):.1f} to {max(recalls):.1f}), {kept:.0%}"

    made = {}
    for kind in ("simulated", "sample"):
        budgets = sorted({row["budget"] for row in rows if row["kind"] == kind})
        lines = [[f"{budget:,}", *(cell(kind, budget, arm) for arm in ARMS)] for budget in budgets]
        made[kind] = table(["labels", *ARMS], lines) + "\n"
    return made


if __name__ == "__main__":
    main()
