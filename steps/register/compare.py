"""Two versions side by side: their reports, and whether they differ on the test posts that both answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model.columns import SCORE
from model.errors import DataError
from model.metrics import comparable
from model.schema import LABEL, POST_ID, PROBABILITY, SPLIT, TEST
from steps.evaluate.report import EvalReport, Metric
from steps.promote.gate import Judged, gain_of
from steps.survey import weights_of


@dataclass(frozen=True)
class Version:
    """name: as it is shown. predictions: of val and test (see `steps.evaluate.report`)."""

    name: str
    report: EvalReport
    predictions: pd.DataFrame


def compare(a: Version, b: Version, *, n: int) -> str:
    """A table for a terminal: each metric of both reports, and `a - b` with its 95 % interval on the common posts.

    Args:
        n: resamples for the intervals.

    Raises:
        DataError: no labelled test post is common to both.
    """
    left, right = (_test(version) for version in (a, b))
    both = left.merge(right, on=POST_ID, suffixes=("_a", "_b"))
    common = both[both[f"{LABEL}_a"] == both[f"{LABEL}_b"]]
    if common.empty:
        raise DataError(
            f"{a.name} was tested on {len(left)} posts, {b.name} on {len(right)}: none is common to both, so their "
            "difference cannot be judged: run the pipeline once more, and the gate scores both on the same posts"
        )
    labels, weights = (common[f"{LABEL}_a"] == 1).to_numpy(bool), _weights(common)
    judged = [
        Judged(scores_N=common[f"{SCORE}_{side}"].to_numpy(np.float64), report=version.report)
        for side, version in (("a", a), ("b", b))
    ]
    rows = [
        f"{'':<20}  {a.name:>22}  {b.name:>22}  difference on {len(common):,} common test posts",
        f"{'test posts':<20}  {len(left):>22,}  {len(right):>22,}",
    ]
    for name in dict.fromkeys((*a.report.metrics, *b.report.metrics)):
        row = f"{name:<20}  {_shown(a.report.metrics.get(name)):>22}  {_shown(b.report.metrics.get(name)):>22}"
        if comparable(name) is not None:
            value, low, high = gain_of(name, judged[0], judged[1], labels, n=n, weights_N=weights)
            row += f"  {value:+.4f} [{low:+.4f}, {high:+.4f}]" + (" *" if low > 0 or high < 0 else "")
        rows.append(row)
    return "\n".join([*rows, "* the interval of 95 % does not hold 0"])


def _test(version: Version) -> pd.DataFrame:
    rows = version.predictions
    drawn = [PROBABILITY] if PROBABILITY in rows else []
    return rows.loc[(rows[SPLIT] == TEST) & rows[LABEL].notna(), [POST_ID, LABEL, SCORE, *drawn]]


def _weights(common: pd.DataFrame) -> NDArray[np.float64] | None:
    """For how many posts each stands: of a post that one test drew and the other had anyway, what the draw says."""
    chances = [common[name] for name in common if str(name).startswith(PROBABILITY)]
    return weights_of(pd.DataFrame({PROBABILITY: pd.concat(chances, axis=1).min(axis=1)})) if chances else None


def _shown(metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return "-"
    interval = "" if metric.low is None else f" [{metric.low:.3f}, {metric.high:.3f}]"
    return f"{metric.value:.4f}{interval}"
