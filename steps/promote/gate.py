"""The gate between a new model version and the alias `champion`: a pure function of reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.errors import ConfigError
from steps.evaluate.report import EvalReport
from steps.settings import PromoteSettings


@dataclass(frozen=True)
class Decision:
    """What the gate says, and why."""

    verdict: Literal["promoted", "kept", "already champion"]
    reason: str

    @property
    def promote(self) -> bool:
        return self.verdict == "promoted"


def _value(report: EvalReport, metric: str) -> float | None:
    if metric not in report.metrics:
        raise ConfigError(f"promote.metric: {metric!r} is not in the report; choose one of {sorted(report.metrics)}")
    return report.metrics[metric].value


def decide(candidate: EvalReport, champion: EvalReport | None, settings: PromoteSettings) -> Decision:
    """Whether the candidate becomes champion.

    It must reach the floor, and beat a champion by more than `min_gain`: a tie keeps the champion.
    An undefined metric never passes.

    Raises:
        ConfigError: the reports have no such metric.
    """
    metric, value = settings.metric, _value(candidate, settings.metric)
    if value is None:
        return Decision("kept", f"{metric} is undefined on this test split")
    if value < settings.floor:
        return Decision("kept", f"{metric} {value:.4f} is below the floor {settings.floor:g}")
    if champion is None:
        return Decision("promoted", f"{metric} {value:.4f} reaches the floor {settings.floor:g}; there was no champion")
    held = _value(champion, metric)
    if held is None:
        return Decision("promoted", f"{metric} {value:.4f}; the champion's is undefined")
    if value > held + settings.min_gain:
        return Decision("promoted", f"{metric} {value:.4f} against the champion's {held:.4f}")
    return Decision(
        "kept", f"{metric} {value:.4f} does not beat the champion's {held:.4f} by more than {settings.min_gain:g}"
    )
