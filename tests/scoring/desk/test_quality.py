"""Agreement and accuracy by hand arithmetic; live figures against a stream whose truth is known."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert

from scoring.desk import quality
from scoring.desk.quality import Drawn, accuracy, alpha, kappa
from scoring.desk.work import drawn
from steps.retrain.reviewed import LABELS
from tests.support.desk import desk_in, put, record

#: 20 of both, 15 of neither, 5 and 10 of one: Wikipedia's first example of Cohen's kappa.
PAIRS = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15


def drawn_of(posts: list[tuple[bool, float, float]]) -> Drawn:
    flagged, probability, label = (np.array(column) for column in zip(*posts, strict=True))
    names = np.array([str(n) for n in range(len(posts))], dtype=object)
    return Drawn(names, names, flagged, probability, label)


def test_kappa_by_hand() -> None:
    # observed 35 / 50; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    assert kappa(PAIRS) == pytest.approx((0.7 - 0.5) / 0.5)


def test_alpha_by_hand() -> None:
    # 100 values, 55 of them 1 and 45 of them 0: 30 of 100 values stand in unequal pairs, 2 * 55 * 45 / 99 by chance
    assert alpha(PAIRS) == pytest.approx(1 - 30 / (2 * 55 * 45 / 99))
    # Krippendorff 2011, example A: 10 units, 0 1 0 0 0 0 0 0 1 0 against 1 1 1 0 0 1 0 0 0 0
    one, two = "0100000010", "1110010000"
    assert alpha([(int(a), int(b)) for a, b in zip(one, two, strict=True)]) == pytest.approx(0.095, abs=5e-4)


def test_agreement_of_one_class_or_of_no_post_is_not_defined() -> None:
    assert (kappa([(1, 1)] * 4), alpha([(1, 1)] * 4), kappa([]), alpha([])) == (None, None, None, None)


def test_accuracy_has_wilsons_interval() -> None:
    # 8 of 10: (p + z²/2n ± z sqrt(p q / n + z²/4n²)) / (1 + z²/n), z = 1.959964
    found = accuracy("ann", 8, 10)
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_live_figures_weigh_what_was_drawn_rarely(tmp_path: Path) -> None:
    """Of the flagged all are drawn, of the passed a quarter: 8 of 10 right, 1 of 5 missed, which stands for 4 of 20."""
    posts = [(True, 1.0, float(n < 8)) for n in range(10)] + [(False, 0.25, float(n < 1)) for n in range(5)]
    found = quality.figures("all", drawn_of(posts))
    assert found.figures.precision.value == pytest.approx(0.8)
    assert found.figures.recall.value == pytest.approx(8 / (8 + 4))
    assert found.figures.share.value == pytest.approx(12 / 30)


def test_drawn_posts_come_with_the_labels_that_people_gave(tmp_path: Path) -> None:
    with desk_in(tmp_path, policy={"audit": {"flag": 1.0, "pass": 0.5}}) as desk:
        put(desk, *(record(f"p{n}", n / 100, version="1" if n < 50 else "2") for n in range(100)))
        row = {"model_name": "m", "state": "done", "first_by": "ann", "answers": {}, "at": datetime.now(UTC)}
        rows = [row | {"post_id": f"p{n}", "label": n % 2, "input_sha256": "0" * 64} for n in range(0, 100, 3)]
        desk.store.do(lambda connection: connection.execute(insert(LABELS), rows), writes=True)
        found = quality.drawn_posts(desk, desk.records.read(), 28)
        assert {f"p{n}" for n in range(50, 100)} <= set(found.post_id)
        assert found.probability.tolist() == np.where(found.flagged, 1.0, 0.5).tolist()
        assert found.label[found.post_id == "p99"].tolist() == [1.0]
        assert np.isnan(found.label[found.post_id == "p98"]).all()
        assert [row.what for row in quality.live(desk, desk.records.read(), 28)] == ["version 2", "version 1"]


def test_the_intervals_of_the_desk_cover_the_truth(tmp_path: Path) -> None:
    """100 streams of 3,000 posts: all that reviewers see is the random share, drawn as the policy draws it."""
    rng = np.random.default_rng(0)
    truth_precision, truth_recall = 0.8, 0.8 * 0.1 / (0.8 * 0.1 + 0.03 * 0.9)
    covered = np.zeros(2, dtype=int)
    for stream in range(100):
        flagged = rng.random(3_000) < 0.1
        label = rng.random(3_000) < np.where(flagged, 0.8, 0.03)
        posts = [
            (bool(flagged[n]), share, float(label[n]))
            for n in range(3_000)
            if drawn("audit", f"{stream}-{n}", share := 0.3 if flagged[n] else 0.1)
        ]
        found = quality.figures("all", drawn_of(posts)).figures
        pairs = ((found.precision, truth_precision), (found.recall, truth_recall))
        covered += [estimate.low <= truth <= estimate.high for estimate, truth in pairs]
    assert covered.min() >= 93, covered
