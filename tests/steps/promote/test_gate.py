from __future__ import annotations

import pytest

from model.errors import ConfigError
from model.metrics import Calibration
from steps.evaluate.report import EvalReport, Metric
from steps.promote.gate import decide
from steps.settings import PromoteSettings


def report(**values: float | None) -> EvalReport:
    return EvalReport(
        task="small",
        task_fingerprint="0" * 16,
        variant="agentps",
        seed=0,
        backbone="tiny",
        annotator="human",
        n_posts=10,
        n_positive=4,
        n_unlabelled=0,
        n_val=10,
        n_val_unlabelled=0,
        metrics={name: Metric(value=value) for name, value in values.items()},
        operating_points={},
        f1_threshold=0.5,
        calibration=Calibration(),
        missing_share={},
        annotated_missing_share={},
    )


def settings(floor: float = 0.5, min_gain: float = 0.0) -> PromoteSettings:
    return PromoteSettings(metric="f1", floor=floor, min_gain=min_gain)


@pytest.mark.parametrize(
    ("candidate", "champion", "min_gain", "promoted"),
    [
        (0.5, None, 0.0, True),
        (0.499, None, 0.0, False),
        (None, None, 0.0, False),
        (0.71, 0.7, 0.0, True),
        (0.7, 0.7, 0.0, False),
        (0.69, 0.7, 0.0, False),
        (0.74, 0.7, 0.05, False),
        (0.76, 0.7, 0.05, True),
        (0.4, 0.3, 0.0, False),
        (None, 0.7, 0.0, False),
        (0.6, None, 0.5, True),
    ],
    ids=[
        "the floor is enough without a champion",
        "below the floor",
        "undefined",
        "better",
        "a tie keeps the champion",
        "worse",
        "better by less than the gain",
        "better by more than the gain",
        "better than the champion and below the floor",
        "undefined beside a champion",
        "the gain is asked beside a champion only",
    ],
)
def test_the_gate(candidate: float | None, champion: float | None, min_gain: float, promoted: bool) -> None:
    held = None if champion is None else report(f1=champion)
    decision = decide(report(f1=candidate), held, settings(min_gain=min_gain))
    assert decision.promote is promoted
    assert decision.verdict == ("promoted" if promoted else "kept")


def test_a_champion_whose_metric_is_undefined_is_beaten_by_any_defined_one() -> None:
    decision = decide(report(f1=0.6), report(f1=None), settings())
    assert decision.promote
    assert decision.reason == "f1 0.6000; the champion's is undefined"


@pytest.mark.parametrize(
    ("candidate", "champion", "reason"),
    [
        (0.61234, None, "f1 0.6123 reaches the floor 0.5; there was no champion"),
        (0.4, None, "f1 0.4000 is below the floor 0.5"),
        (None, None, "f1 is undefined on this test split"),
        (0.71, 0.7, "f1 0.7100 against the champion's 0.7000"),
        (0.7, 0.7, "f1 0.7000 does not beat the champion's 0.7000 by more than 0"),
    ],
)
def test_the_reason_tells_both_numbers(candidate: float | None, champion: float | None, reason: str) -> None:
    held = None if champion is None else report(f1=champion)
    assert decide(report(f1=candidate), held, settings()).reason == reason


def test_a_metric_that_no_report_has_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"promote\.metric: 'f1' is not in the report; choose one of \['roc_auc'\]"):
        decide(report(roc_auc=0.9), None, settings())
