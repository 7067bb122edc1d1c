"""The simulated day, against hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import capacity


def test_what_waits_is_what_came_and_was_not_done() -> None:
    coming = np.array([100.0, 100.0, 100.0, 0.0])
    # 50 of 100 are done in each step of 10 s: 50, 100, 150, 100 wait; the second part gets 50, and does them all
    longest, (late,) = capacity.simulate(coming, [5.0, 8.0], outage=(0, 0.0))
    assert longest == [30.0, 0.0]
    assert late == 0.0
    longest, (late,) = capacity.simulate(coming, [2.0, 8.0], outage=(0, 0.0))
    assert longest == [120.0, 0.0], "80, 160, 240, 220 wait, and 2 a second are done"
    assert late == pytest.approx(2 / 3), "the second and the third hundred: 80 s and 120 s"


def test_a_day_has_all_its_posts_and_twice_as_many_in_the_burst() -> None:
    coming = capacity.arrivals(1e8, np.random.default_rng(0))
    hour = 360
    burst, before = coming[20 * hour : 20 * hour + hour // 2], coming[19 * hour : 20 * hour]
    assert coming.sum() == pytest.approx(1e8 + burst.sum() / 2, rel=1e-3)
    assert burst.mean() / before.mean() == pytest.approx(2, rel=0.02)


def test_the_paper_s_training_takes_the_hours_of_its_measured_rate() -> None:
    jobs = capacity.jobs(capacity.load_task("ucc"))
    found = jobs["training, llava-ov-0.5b, one H200"]
    assert found["hours"] == pytest.approx(5 * 150_000 / 19.66 / 3600, rel=1e-3)
    assert found["dollars"] == pytest.approx([3.45 * found["hours"], 10.44 * found["hours"]])
