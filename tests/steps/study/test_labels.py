from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from model.schema import POST_ID
from steps.study.labels import corrupted, draws, gold_subset
from tests.support.tiny import TASK

IDS = [f"post-{k}" for k in range(4000)]


def people() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    classes = {q.id: rng.integers(0, len(q.classes), len(IDS)) for q in TASK.questions}
    table = pd.DataFrame({POST_ID: IDS, **classes}).astype(dict.fromkeys(TASK.question_ids, "Int8"))
    table.loc[:99, "bright"] = pd.NA
    return table


def test_draws_are_uniform_and_follow_from_post_and_seed_alone() -> None:
    drawn = draws(IDS, "a")
    assert stats.kstest(drawn, "uniform").pvalue > 0.01
    assert np.array_equal(draws(IDS[::-1], "a")[::-1], drawn)
    assert abs(np.corrcoef(drawn, draws(IDS, "b"))[0, 1]) < 0.05


def test_symmetric_labels_are_right_at_their_rate_and_wrong_ones_are_every_other_class_alike() -> None:
    given, noisy = people(), corrupted(people(), TASK, "symmetric-70")
    for id_ in TASK.question_ids:
        right = (given[id_] == noisy[id_]).dropna()
        assert right.mean() == pytest.approx(0.7, abs=0.03)
    shift = (noisy["kind"] - given["kind"]) % 3
    assert (shift == 1).mean() == pytest.approx(0.15, abs=0.02)
    assert (shift == 2).mean() == pytest.approx(0.15, abs=0.02)


def test_one_sided_errors_turn_other_classes_into_the_first_and_never_the_first_into_another() -> None:
    given, noisy = people(), corrupted(people(), TASK, "one-sided-80")
    for id_ in TASK.question_ids:
        first = given[id_] == 0
        assert (noisy.loc[first.fillna(False), id_] == 0).all()
        others = given[id_].notna() & ~first.fillna(False)
        assert (noisy.loc[others, id_] == given.loc[others, id_]).mean() == pytest.approx(0.8, abs=0.03)


def test_missing_labels_are_missing_at_their_rate_and_the_others_right() -> None:
    given, noisy = people(), corrupted(people(), TASK, "missing-60")
    assert noisy["calm"].notna().mean() == pytest.approx(0.6, abs=0.03)
    there = noisy["calm"].notna()
    assert noisy.loc[there, "calm"].equals(given.loc[there, "calm"])


@pytest.mark.parametrize("kind", ["symmetric", "one-sided", "missing"])
def test_what_is_wrong_at_a_high_accuracy_is_wrong_at_a_lower_one(kind: str) -> None:
    given = people()["calm"]
    wrong = [~corrupted(people(), TASK, f"{kind}-{a}")["calm"].eq(given).fillna(False) for a in (90, 60)]
    assert wrong[0].sum() > 0
    assert (wrong[1] | ~wrong[0]).all()


def test_no_label_is_made_where_people_gave_none() -> None:
    for kind in ("symmetric-60", "one-sided-60", "missing-60"):
        assert corrupted(people(), TASK, kind).loc[:99, "bright"].isna().all()


def test_an_unknown_kind_of_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="labels 'annotator-2'"):
        corrupted(people(), TASK, "annotator-2")


def test_a_larger_gold_subset_holds_the_smaller() -> None:
    small, large = gold_subset(IDS, 0.1), gold_subset(IDS, 0.3)
    assert small.mean() == pytest.approx(0.1, abs=0.02)
    assert (large | ~small).all()
    assert gold_subset(IDS, 1.0).all()
