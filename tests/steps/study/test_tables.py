from __future__ import annotations

import numpy as np
import pytest

from model import metrics
from model.bootstrap import resample_counts
from steps.study.cells import Cell
from steps.study.records import Record, encoded_ranks
from steps.study.tables import AP, R80, Comparison, Row, rows
from tests.support.study import record_of

N = 400
LABELS = np.random.default_rng(0).random(N) < 0.3


def scores(skill: float, seed: int) -> np.ndarray:
    return skill * LABELS + np.random.default_rng(seed).normal(size=N)


def record(values: np.ndarray, name: str = "vanilla", seed: int = 0) -> Record:
    ap = metrics.average_precision(values, LABELS)
    r80 = metrics.recall_at_precision(values, LABELS, 0.8).recall
    cell = Cell(variant="vanilla", seed=seed, train_posts=1, labels=name, questions=())
    return record_of(cell, f"{name}-{seed}", metrics={AP: ap, R80: r80}, test_ranks=encoded_ranks(values))


def row(skill: float, name: str, seeds: tuple[int, ...] = (1, 2)) -> Row:
    records = tuple(record(scores(skill, seed), name, seed) for seed in seeds)
    return Row(records[0].cell.beside(0), records)


def test_a_records_ranks_give_the_metrics_of_its_scores() -> None:
    values = np.round(scores(1.0, 3), 1)  # with ties
    ranks = record(values).ranks
    assert metrics.average_precision(ranks, LABELS) == pytest.approx(metrics.average_precision(values, LABELS))
    for precision in (0.4, 0.6, 0.8):
        assert (
            metrics.recall_at_precision(ranks, LABELS, precision).recall
            == metrics.recall_at_precision(values, LABELS, precision).recall
        )


def test_a_gain_is_the_difference_of_the_means_over_the_seeds_and_lies_in_its_interval() -> None:
    better, worse = row(3.0, "better"), row(1.5, "worse")
    gain = Comparison(LABELS, 200).gain(better, worse, AP)
    assert gain.value == pytest.approx(np.mean(better.values(AP)) - np.mean(worse.values(AP)))
    assert 0 < gain.low < gain.value < gain.high


def test_a_cascade_reranks_the_firsts_highest_posts_only() -> None:
    labels = np.array([True, False, True, False])
    some = record(scores(1.0, 1))
    of_first, of_second = (
        some.model_copy(update={"test_ranks": encoded_ranks(np.array(values))})
        for values in ([1.0, 4.0, 3.0, 2.0], [4.0, 1.0, 3.0, 2.0])
    )
    first, second = Row(some.cell, (of_first,)), Row(some.cell, (of_second,))
    comparison = Comparison(labels, 5)
    # the first's order is posts 1, 2, 3, 0; the second's 0, 2, 3, 1
    assert comparison.cascade(first, second, 0.0)[AP] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert comparison.cascade(first, second, 0.5)[AP] == pytest.approx((1 / 1 + 2 / 4) / 2)  # 2, 1, then 3, 0
    assert comparison.cascade(first, second, 0.5)[R80] == 0.5
    assert comparison.cascade(first, second, 1.0)[AP] == 1.0


def test_the_comparison_is_paired() -> None:
    """The same model against itself: whatever posts are drawn, there is no difference."""
    one, same = row(1.5, "one"), row(1.5, "same")
    gain = Comparison(LABELS, 50).gain(one, same, R80)
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_an_interval_is_the_quantiles_of_the_metric_on_resampled_posts() -> None:
    one, other = row(3.0, "one", (1,)), row(1.5, "other", (1,))
    drawn = [np.repeat(np.arange(N), counts) for counts in resample_counts(N, 60, seed=0)]
    differences = [
        metrics.average_precision(scores(3.0, 1)[posts], LABELS[posts])
        - metrics.average_precision(scores(1.5, 1)[posts], LABELS[posts])
        for posts in drawn
    ]
    gain = Comparison(LABELS, 60).gain(one, other, AP)
    assert (gain.low, gain.high) == pytest.approx(tuple(np.quantile(differences, (0.025, 0.975))))


def test_retention_is_one_for_the_whole_gain_and_zero_for_none_of_it() -> None:
    comparison = Comparison(LABELS, 50)
    whole, none = row(3.0, "whole"), row(1.0, "none")
    kept, lost = (comparison.retention(r, whole, none, AP) for r in (whole, none))
    assert kept is not None
    assert lost is not None
    assert (kept.value, kept.low, kept.high) == pytest.approx((1, 1, 1))
    assert (lost.value, lost.low, lost.high) == pytest.approx((0, 0, 0))
    half = comparison.retention(row(1.8, "part"), whole, none, AP)
    assert half is not None
    assert 0 < half.low < half.value < half.high < 1


def test_retention_is_not_defined_where_there_is_no_gain() -> None:
    assert Comparison(LABELS, 50).retention(row(2.0, "a"), row(1.0, "b"), row(1.0, "c"), AP) is None


def test_a_setting_is_shown_once_all_of_its_seeds_are_there() -> None:
    one, two = (record(scores(1.0, seed), "a", seed).cell for seed in (0, 1))
    lone = record(scores(1.0, 0), "b", 0).cell
    known = {cell: record(scores(1.0, 0), cell.labels, cell.seed) for cell in (one, lone)}
    assert [r.cell for r in rows([one, two, lone], known.get)] == [lone]
