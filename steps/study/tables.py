"""From the cells' records to the study's tables: means over seeds, gains with intervals, retention.

An interval is over the test posts: in each resample all compared models are scored on the same posts,
and the mean over the seeds is compared. What another choice of training posts would change is in the
spread over the seeds, not in the interval.

Dimensions: R resamples · N labelled test posts
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from model import metrics
from model.bootstrap import resample_counts
from steps.study.cells import Cell
from steps.study.records import Record

#: The metrics of the ranking that intervals are made for, by their name in a record.
AP, R80 = metrics.AVERAGE_PRECISION, metrics.recall_name("p80")
_RANKING: dict[str, Callable[..., float]] = {
    AP: metrics.average_precision,
    R80: partial(metrics.recall, min_precision=0.8),
}


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """All seeds of one setting."""

    cell: Cell
    records: tuple[Record, ...]

    def values(self, metric: str) -> list[float]:
        """One per seed."""
        return [record.metrics[metric] for record in self.records]

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.values(metric))

    def spread(self, metric: str) -> float | None:
        """Standard deviation over the seeds; None with one seed."""
        return statistics.stdev(self.values(metric)) if len(self.records) > 1 else None


def rows(cells: Sequence[Cell], record_of: Callable[[Cell], Record | None]) -> list[Row]:
    """The settings of a table in its order; a setting counts once all of its seeds are there."""
    grouped: dict[Cell, list[Record | None]] = {}
    for cell in cells:
        grouped.setdefault(cell.beside(0), []).append(record_of(cell))
    return [
        Row(cell, tuple(record for record in found if record is not None))
        for cell, found in grouped.items()
        if all(record is not None for record in found)
    ]


class Comparison:
    """Gains and retentions on the same resamples of the same test posts."""

    def __init__(self, labels: NDArray[np.bool_], resamples: int) -> None:
        self._labels = labels
        self._counts = list(resample_counts(len(labels), resamples, seed=0))
        self._cache: dict[tuple[str, str], NDArray[np.float64]] = {}

    def _resampled(self, record: Record, metric: str) -> NDArray[np.float64]:
        """(R,)"""
        if (record.key, metric) not in self._cache:
            order = np.argsort(-record.ranks, kind="stable")  # sorted once, not in every resample
            ranks, labels = record.ranks[order], self._labels[order]
            values = [_RANKING[metric](ranks, labels, weights=counts[order]) for counts in self._counts]
            self._cache[record.key, metric] = np.array(values)
        return self._cache[record.key, metric]

    def _mean(self, row: Row, metric: str) -> NDArray[np.float64]:
        return np.mean([self._resampled(record, metric) for record in row.records], axis=0)

    def cascade(self, first: Row, second: Row, share: float) -> dict[str, float]:
        """AP and R@P80, means over the seeds, when `second` reads only the `share` of the test posts that `first` ranks
        highest; below them the others stay in `first`'s order.
        """
        found: dict[str, list[float]] = {metric: [] for metric in _RANKING}
        read = round(share * len(self._labels))
        for one, other in zip(first.records, second.records, strict=True):
            order = np.argsort(-one.ranks, kind="stable")
            ranks = one.ranks.copy()
            ranks[order[:read]] = 2 + other.ranks[order[:read]]  # ranks are at most 1
            for metric, measure in _RANKING.items():
                found[metric].append(measure(ranks, self._labels))
        return {metric: statistics.fmean(values) for metric, values in found.items()}

    def gain(self, row: Row, over: Row, metric: str) -> Estimate:
        """The mean over the seeds of `row` less that of `over`."""
        resampled = self._mean(row, metric) - self._mean(over, metric)
        low, high = np.quantile(resampled, (0.025, 0.975))
        return Estimate(row.mean(metric) - over.mean(metric), float(low), float(high))

    def retention(self, row: Row, whole: Row, none: Row, metric: str) -> Estimate | None:
        """The share of the gain of `whole` over `none` that `row` keeps.

        None, "not defined", where the gain of `whole` is not surely above zero: a share of nothing.
        """
        gain = self.gain(whole, none, metric)
        if gain.low <= 0:
            return None
        base = self._mean(none, metric)
        resampled = (self._mean(row, metric) - base) / (self._mean(whole, metric) - base)
        low, high = np.quantile(resampled, (0.025, 0.975))
        return Estimate((row.mean(metric) - none.mean(metric)) / gain.value, float(low), float(high))
