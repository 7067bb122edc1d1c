from __future__ import annotations

from datetime import timedelta
from math import inf
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from model.errors import ConfigError
from model.metrics import apply_threshold, average_precision, brier_skill, expected_calibration_error
from steps.evaluate.report import EvalReport, Metric
from steps.promote.gate import Decision, Judged, Posts, Unscored, decide, gain_of, slices_of
from steps.settings import PromoteSettings, load_settings
from tests.support.reports import made_up

N = 2000
DAY = timedelta(days=1)


def report(f1_threshold: float = 0.5, **values: float | None) -> EvalReport:
    return made_up(metrics={name: Metric(value=value) for name, value in values.items()}, f1_threshold=f1_threshold)


def policy(**changes: Any) -> PromoteSettings:
    return PromoteSettings.model_validate(load_settings({}).promote.model_dump() | {"bootstrap": 200} | changes)


def posts(seed: int = 0, **slices: np.ndarray) -> Posts:
    return Posts(labels_N=np.random.default_rng(seed).random(N) < 0.3, slices=slices)


def model(test: Posts, skill: float, seed: int = 1, only: np.ndarray | None = None, **values: Any) -> Judged:
    """Calibrated scores of two normal classes `skill` apart; where `only` is given, of skill 0 outside of it."""
    rng = np.random.default_rng(seed)
    distance = np.full(N, skill) if only is None else np.where(only, skill, 0.0)
    evidence = rng.normal(distance * test.labels_N, 1.0)
    logit = distance * evidence - distance**2 / 2 + np.log(0.3 / 0.7)
    scores = 1 / (1 + np.exp(-logit))
    return Judged(
        scores_N=scores, report=report(**{"average_precision": average_precision(scores, test.labels_N)} | values)
    )


# Guessing


def test_a_model_that_knows_nothing_is_promoted_in_at_most_5_of_100_draws() -> None:
    """59 % of the posts are positive, so that guessing would reach a floor of 0.5."""
    promoted = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        test = Posts(labels_N=rng.random(400) < 0.59, slices={})
        scores = rng.random(400)
        blind = Judged(scores_N=scores, report=report(average_precision=average_precision(scores, test.labels_N)))
        decision = decide(blind, None, test, policy(floor=0.0, max_calibration_error=None))
        promoted += decision.promote
        assert decision.promote or "may be guessing, which reaches 0." in decision.reason
        assert decide(blind, None, test, policy(floor=0.0, max_calibration_error=None, guessing=1)).promote
    assert promoted <= 5


def test_a_model_that_knows_a_little_beats_guessing() -> None:
    test = posts()
    decision = decide(model(test, 0.3), None, test, policy(floor=0.0))
    assert decision.promote
    assert [check.name for check in decision.checks][-1] == "average_precision against guessing"


# Floors


@pytest.mark.parametrize(
    ("value", "verdict", "reason"),
    [
        (0.61234, "promoted", "average_precision 0.6123 reaches the floor 0.5; there was no champion"),
        (0.5, "promoted", "average_precision 0.5000 reaches the floor 0.5; there was no champion"),
        (0.4, "kept", "average_precision 0.4000 is below the floor 0.5"),
        (None, "kept", "average_precision is undefined on this test split"),
    ],
)
def test_the_first_version_must_reach_the_floor(value: float | None, verdict: str, reason: str) -> None:
    test = posts()
    decision = decide(model(test, 1.5, average_precision=value), None, test, policy())
    assert (decision.verdict, decision.reason) == (verdict, reason)
    assert decision.promote is (verdict == "promoted")


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.7, "promoted"), (0.69, "kept"), (None, "kept")], ids=["at", "below", "undefined"]
)
def test_every_further_floor_must_be_reached(accuracy: float | None, verdict: str) -> None:
    test = posts()
    candidate = model(test, 1.5, accuracy_ugc=accuracy, recall_at_p80=0.5)
    decision = decide(
        candidate, None, test, policy(floors={"recall_at_p80": 0.4, "accuracy_ugc": 0.7}, max_calibration_error=1)
    )
    assert decision.verdict == verdict
    assert [check.name for check in decision.checks][:4] == [
        "average_precision", "recall_at_p80", "accuracy_ugc", "calibration_error"
    ]  # fmt: skip


def test_scores_that_are_no_probabilities_are_kept_by_the_ceiling_of_the_calibration_error() -> None:
    test = posts()
    good = model(test, 1.5)
    bad = Judged(scores_N=good.scores_N**0.3, report=good.report)
    error = expected_calibration_error(bad.scores_N, test.labels_N)
    decision = decide(bad, None, test, policy(max_calibration_error=0.1))
    assert decision.verdict == "kept"
    assert decision.reason == f"calibration_error {error:.4f} is above the ceiling 0.1"
    assert decide(bad, None, test, policy(max_calibration_error=0.5)).promote
    assert decide(bad, None, test, policy(max_calibration_error=None)).promote


def test_few_posts_are_not_held_to_a_calibration_error_that_chance_exceeds() -> None:
    passed = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scores = rng.random(60)
        test = Posts(labels_N=rng.random(60) < scores, slices={})  # perfectly calibrated
        assert expected_calibration_error(scores, test.labels_N) > 0.05
        candidate = Judged(scores_N=scores, report=report(average_precision=0.9))
        passed += decide(candidate, None, test, policy(max_calibration_error=0.05)).promote
    assert passed >= 34  # 38 expected, three standard deviations are 4


def test_a_metric_that_no_report_has_is_an_error_that_lists_those_there_are() -> None:
    test = posts()
    with pytest.raises(ConfigError, match=r"promote: 'accuracy_x' is not in the report; choose one of \['average_prec"):
        decide(model(test, 1.5), None, test, policy(floors={"accuracy_x": 0.5}))


# Against the champion


def against(
    candidate: Judged, champion: Judged, test: Posts, age: timedelta = DAY, *, alarmed: bool = False, **changes: Any
) -> Decision:
    return decide(candidate, champion, test, policy(**changes), age, alarmed=alarmed)


def test_a_clearly_better_version_is_promoted_with_its_gain_and_interval() -> None:
    test = posts()
    candidate, champion = model(test, 2.0), model(test, 1.5, seed=2)
    gain = average_precision_score(test.labels_N, candidate.scores_N) - average_precision_score(
        test.labels_N, champion.scores_N
    )
    decision = against(candidate, champion, test)
    assert decision.verdict == "promoted"
    check = decision.checks[-1]
    assert check.value == pytest.approx(gain)
    assert 0 < check.low < gain < check.high
    assert decision.reason == (
        f"average_precision {gain:+.4f} [{check.low:+.4f}, {check.high:+.4f}] against the champion on 2,000 test posts"
    )
    assert against(champion, candidate, test).verdict == "kept"


def test_a_better_value_within_the_noise_keeps_the_champion() -> None:
    test = posts()
    champion = model(test, 1.5)
    better = next(
        candidate
        for candidate in (model(test, 1.52, seed=seed) for seed in range(2, 50))
        if 0 < gain_of("average_precision", candidate, champion, test.labels_N, n=0)[0] < 0.01
    )
    decision = against(better, champion, test)
    assert decision.verdict == "kept"
    assert decision.reason.endswith("its lower bound is not above 0")


@pytest.mark.parametrize("age", [DAY, 1000 * DAY], ids=["fresh", "stale"])
def test_a_tie_always_keeps_the_champion(age: timedelta) -> None:
    test = posts()
    champion = model(test, 1.5)
    same_ranking = Judged(scores_N=champion.scores_N**2, report=champion.report)
    for candidate in (champion, same_ranking):
        decision = against(candidate, champion, test, age, max_calibration_error=1)
        assert decision.verdict == "kept"
        assert decision.reason.startswith("a tie: average_precision +0.0000 [+0.0000, +0.0000]")


def test_a_stale_champion_gives_way_within_the_tolerance() -> None:
    test = posts()
    champion = model(test, 1.5)
    nearly = Judged(
        scores_N=np.clip(champion.scores_N + np.random.default_rng(3).normal(0, 1e-3, N), 0, 1), report=champion.report
    )
    value, low, _ = gain_of("average_precision", nearly, champion, test.labels_N, n=200)
    assert value != 0
    assert -0.01 < low < 0
    assert against(nearly, champion, test, 90 * DAY).verdict == "kept", "90 days are not more than 90"
    decision = against(nearly, champion, test, 91 * DAY)
    assert decision.verdict == "promoted"
    assert "champion for 91 days" in decision.reason
    assert against(nearly, champion, test, 91 * DAY, stale_tolerance=-low / 2).verdict == "kept"
    broken = against(nearly, champion, test, alarmed=True)
    assert broken.verdict == "promoted"
    assert "which people's late labels speak against" in broken.reason
    assert against(champion, champion, test, alarmed=True, max_calibration_error=1).verdict == "kept", "a tie"


def test_f1_is_measured_at_each_models_own_threshold() -> None:
    test = posts()
    scores = model(test, 1.5).scores_N
    lower = Judged(scores_N=scores / 2, report=report(f1_threshold=0.25, f1=0.6))
    assert gain_of("f1", lower, Judged(scores, report(f1_threshold=0.5)), test.labels_N, n=10) == (0, 0, 0)


def serving(test: Posts, skill: float, threshold: float) -> Judged:
    found = model(test, skill)
    point = apply_threshold(found.scores_N, test.labels_N, threshold, 0.8)
    return Judged(found.scores_N, found.report.model_copy(update={"operating_points": {"p80": point}}))


def test_a_served_recall_is_measured_at_the_threshold_that_each_serves() -> None:
    test = posts()
    higher, lower = serving(test, 1.5, 0.6), serving(test, 1.5, 0.4)
    gain, *_ = gain_of("served_recall_p80", lower, higher, test.labels_N, n=10)
    recalls = [model.report.operating_points["p80"].recall for model in (lower, higher)]
    assert gain == pytest.approx(recalls[0] - recalls[1])
    assert gain > 0
    with pytest.raises(ConfigError, match="no threshold p60"):
        gain_of("served_recall_p60", lower, higher, test.labels_N, n=10)


def test_a_recalibrated_version_of_the_same_ranking_can_pass_on_the_brier_skill() -> None:
    test = posts()
    good = model(test, 1.5)
    skill = brier_skill(good.scores_N, test.labels_N)
    drifted = Judged(scores_N=good.scores_N**0.5, report=good.report)
    candidate = Judged(scores_N=good.scores_N, report=report(brier_skill=skill))
    assert against(candidate, drifted, test, metric="brier_skill", floor=0).verdict == "promoted"


def test_a_champion_that_cannot_answer_these_posts_is_left_to_a_person() -> None:
    test = posts()
    decision = decide(model(test, 1.5), Unscored("the champion answers another task"), test, policy())
    assert decision.verdict == "needs a person"
    assert decision.reason.endswith("; the champion answers another task")
    assert decide(model(test, 0.1), Unscored("so"), test, policy()).verdict == "kept", "the floors come first"


# Slices


def test_a_slice_that_clearly_fell_keeps_the_champion_although_the_whole_gained() -> None:
    half = np.arange(N) % 4 == 0
    test = posts(**{"one image": half})
    decision = against(model(test, 3.0, only=~half), model(test, 1.0, seed=2), test)
    assert decision.checks[-2].outcome == "passed", "the whole gained"
    assert decision.verdict == "kept"
    assert "but slices fell by more than 0.05: one image -0." in decision.reason
    assert against(model(test, 3.0, only=~half), model(test, 1.0, seed=2), test, max_slice_drop=0.9).promote


def test_a_slice_that_may_have_fallen_by_chance_is_left_to_a_person() -> None:
    small = np.zeros(N, bool)
    test = posts(small=small)
    small[np.flatnonzero(test.labels_N)[:10]] = True
    small[np.flatnonzero(~test.labels_N)[:20]] = True
    champion = model(test, 1.0)
    for seed in range(2, 40):
        candidate = model(test, 2.0, seed=seed)
        value, _, high = gain_of(
            "average_precision",
            Judged(candidate.scores_N[small], candidate.report),
            Judged(champion.scores_N[small], champion.report),
            test.labels_N[small],
            n=200,
        )
        if value < -0.05 and high > 0:
            break
    decision = against(candidate, champion, test, min_slice_positives=10)
    assert decision.verdict == "needs a person"
    assert decision.checks[-1].outcome == "open"
    assert against(candidate, champion, test, min_slice_positives=11).promote, "too few positives to speak of"


def test_the_slices_of_a_table_of_posts() -> None:
    table = pd.DataFrame(
        {
            "title": ["a", "", " ", "b"],
            "text": ["", "", "", "#b"],
            "images": [["x"], ["x", "y"], ["z"], ["x", "x"]],
            "created_at": pd.to_datetime(
                ["2026-01-31T23:59Z", None, "2026-02-01T00:00Z", "2026-02-02T00:00Z"], utc=True
            ),
            "language": pd.Series(["en", None, "zh", "en"], dtype="str"),
        }
    )
    assert {name: members.tolist() for name, members in slices_of(table).items()} == {
        "one image": [True, False, True, False],
        "without text": [False, True, True, False],
        "month 2026-01": [True, False, False, False],
        "month 2026-02": [False, False, True, True],
        "language en": [True, False, False, True],
        "language zh": [False, False, True, False],
    }
    assert "language en" not in slices_of(table.drop(columns="language"))


@pytest.mark.parametrize(
    ("candidate", "champion", "verdict"),
    [(inf, 0.6, "needs a person"), (inf, inf, "promoted"), (0.6, inf, "promoted"), (0.6, 0.6, "promoted")],
)
def test_whether_a_version_that_would_flag_nothing_replaces_one_that_flags_is_a_persons_decision(
    candidate: float, champion: float, verdict: str
) -> None:
    test = posts()
    better, held = serving(test, 3.0, candidate), serving(test, 0.5, champion)
    decision = decide(better, held, test, policy(max_calibration_error=None), point="p80")
    assert decision.verdict == verdict
    if verdict == "needs a person":
        assert decision.reason.endswith("but it would flag nothing at p80: no threshold is precise enough on val")
    assert decide(better, held, test, policy(max_calibration_error=None)).promote, "not asked where none is served"


# Posts that were drawn for people


def drawn(seed: int, skill: float) -> tuple[Judged, Posts]:
    """Test posts of a queue of another model: the flagged half of them, mostly positive, was drawn ten times as often.
    9 % of the posts are positive, of those that were drawn 40 %.
    """
    rng = np.random.default_rng(seed)
    flagged = rng.random(600) < 0.5
    labels = rng.random(600) < np.where(flagged, 0.75, 0.05)
    evidence = rng.normal(skill * labels)
    scores = 1 / (1 + np.exp(-evidence))
    weights = np.where(flagged, 1.0, 20.0)
    value = average_precision(scores, labels, weights)
    return Judged(scores_N=scores, report=report(average_precision=value)), Posts(labels, {}, weights)


def test_on_posts_of_a_queue_guessing_is_judged_by_the_posts_that_they_stand_for() -> None:
    """One in twenty who knows nothing passes, and who knows something does not fail for the queue's many positives."""
    settings = policy(floor=0.0, max_calibration_error=None)
    passed = [decide(*judged(drawn(seed, 0.0)), settings).promote for seed in range(100)]
    assert np.mean(passed) <= 0.11, "5 %, as far as 100 draws tell"
    known = [decide(*judged(drawn(seed, 1.5)), settings) for seed in range(10)]
    assert all(decision.promote for decision in known), [decision.reason for decision in known]


def judged(made: tuple[Judged, Posts]) -> tuple[Judged, None, Posts]:
    return made[0], None, made[1]
