"""The gate between a new model version and the alias `champion`: a pure function of two models and the settings.

Both models scored the same test posts. Dimensions: N test posts with a final label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model import metrics
from model.bootstrap import paired_gain
from model.errors import ConfigError
from model.schema import CREATED_AT, IMAGES, LANGUAGE, TEXT, TITLE
from steps.evaluate.report import EvalReport
from steps.settings import PromoteSettings

#: Of the interval of a gain: an equal model beats its lower bound in 2.5 of 100 test splits.
LEVEL = 0.95
_SEED = 0
#: Draws of labels from the scores, for what the calibration error of a perfectly calibrated model would be.
_CALIBRATION_DRAWS = 200

_Scores = NDArray[np.float64]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Posts:
    """labels_N: True = positive. slices: name -> which posts belong to it, (N,) each. weights_N: for how many posts
    each stands; None: one.
    """

    labels_N: _Mask
    slices: Mapping[str, _Mask]
    weights_N: _Scores | None = None


@dataclass(frozen=True)
class Judged:
    """A model on the test posts: scores_N calibrated, in their order; the report of its own evaluation."""

    scores_N: _Scores
    report: EvalReport

    def silent_at(self, point: str) -> bool:
        """No threshold could be promised, so nothing is flagged."""
        found = self.report.operating_points.get(point)
        return found is not None and math.isinf(found.threshold)


@dataclass(frozen=True)
class Unscored:
    """A champion that cannot answer these posts, and why."""

    reason: str


Outcome = Literal["passed", "failed", "open"]
Verdict = Literal["promoted", "kept", "needs a person", "already champion"]


class Check(BaseModel):
    """One line of the gate. `open`: the data do not tell, a person must."""

    model_config = ConfigDict(frozen=True)

    name: str
    #: A value of the candidate, or its gain over the champion with the bootstrap interval.
    value: float | None
    low: float | None = None
    high: float | None = None
    limit: float
    outcome: Outcome


class Decision(BaseModel):
    """What the gate says, and why."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    reason: str
    checks: tuple[Check, ...] = ()

    @property
    def promote(self) -> bool:
        return self.verdict == "promoted"


def decide(
    candidate: Judged,
    champion: Judged | Unscored | None,
    posts: Posts,
    settings: PromoteSettings,
    champion_age: timedelta = timedelta(0),
    *,
    alarmed: bool = False,
    point: str | None = None,
) -> Decision:
    """Whether the candidate becomes champion: the table in docs/steps/promote.md, from its top to its end.

    Args:
        champion: None where there is none yet: then the floors decide alone.
        champion_age: since it became champion.
        alarmed: its live precision is below its promise, or it flags nothing: it counts as stale, however young.
        point: the operating point that is served: whether a version that can promise nothing there, and so flags
            nothing, replaces one that flags is a person's decision. None: it is not known.

    Raises:
        ConfigError: the settings name a metric that the report does not have.
    """
    checks = _floors(candidate, posts, settings)

    def ends(verdict: Verdict, reason: str) -> Decision:
        return Decision(verdict=verdict, reason=reason, checks=tuple(checks))

    for check in checks:
        if check.outcome == "failed":
            return ends("kept", _floor_reason(check))
    metric = settings.metric
    if settings.guessing < 1:
        checks.append(guessing := _guessing(candidate, posts, settings))
        if guessing.outcome == "failed":
            return ends("kept", f"{metric} {guessing.value:.4f} may be guessing, which reaches {guessing.limit:.4f}")
    reached = f"{metric} {checks[0].value:.4f} reaches the floor {settings.floor:g}"
    if champion is None:
        return ends("promoted", f"{reached}; there was no champion")
    if isinstance(champion, Unscored):
        return ends("needs a person", f"{reached}; {champion.reason}")

    stale = alarmed or champion_age > timedelta(days=settings.stale_days)
    gain = _gain(metric, candidate, champion, posts, settings, limit=-settings.stale_tolerance if stale else 0.0)
    checks.append(gain)
    said = f"{metric} {_signed(gain)} against the champion on {len(posts.labels_N):,} test posts"
    if alarmed:
        said += ", which people's late labels speak against"
    elif stale:
        said += f", champion for {champion_age.days} days"
    if gain.value == 0:
        return ends("kept", f"a tie: {said}")
    if gain.outcome != "passed":
        return ends("kept", f"{said}: its lower bound is not above {gain.limit:g}")
    slices = _slices(candidate, champion, posts, settings)
    checks += slices
    verdicts: dict[Outcome, Verdict] = {"failed": "kept", "open": "needs a person"}
    for outcome, verdict in verdicts.items():
        fallen = [check for check in slices if check.outcome == outcome]
        if fallen:
            named = "; ".join(f"{check.name} {_signed(check)}" for check in fallen)
            return ends(verdict, f"{said}, but slices fell by more than {settings.max_slice_drop:g}: {named}")
    if point is not None and candidate.silent_at(point) and not champion.silent_at(point):
        return ends(
            "needs a person", f"{said}, but it would flag nothing at {point}: {candidate.report.unpromised(point)}"
        )
    return ends("promoted", said)


def slices_of(posts: pd.DataFrame) -> dict[str, _Mask]:
    """The slices of a table of posts (see `steps.ingest.posts`), in its order."""
    slices: dict[str, _Mask] = {
        "one image": (posts[IMAGES].map(len) == 1).to_numpy(bool),
        "without text": (posts[TITLE].fillna("").str.strip() + posts[TEXT].fillna("").str.strip() == "").to_numpy(bool),
    }
    months = posts[CREATED_AT].dt.strftime("%Y-%m")
    for column, values in (("month", months), ("language", posts.get(LANGUAGE, pd.Series(index=posts.index)))):
        for value in sorted(values.dropna().unique()):
            slices[f"{column} {value}"] = (values == value).fillna(False).to_numpy(bool)
    return slices


def gain_of(
    metric: str, candidate: Judged, champion: Judged, labels_N: _Mask, *, n: int, weights_N: _Scores | None = None
) -> tuple[float, float, float]:
    """(value, low, high) of `metric(candidate) - metric(champion)`, see `model.bootstrap.paired_gain`; f1 and the
    served recalls of each at the threshold that its own val chose.
    """
    (fn, a_N), (_, b_N) = _measured(metric, candidate), _measured(metric, champion)
    return paired_gain(fn, a_N, b_N, labels_N, n=n, seed=_SEED, level=LEVEL, weights=weights_N)


def _measured(metric: str, model: Judged) -> tuple[Callable[..., float], _Scores]:
    """The metric, and the scores that it takes: of f1 and the served recalls less the model's own threshold."""
    fn, point = metrics.comparable(metric), metrics.served_point(metric)
    if fn is None:
        raise ConfigError(f"promote.metric {metric!r}: two models cannot be compared on it")
    if metric == metrics.F1:
        return fn, model.scores_N - model.report.f1_threshold
    if point is None:
        return fn, model.scores_N
    if point not in model.report.operating_points:
        known = ", ".join(model.report.operating_points)
        raise ConfigError(f"promote.metric {metric!r}: a version has no threshold {point} (it has {known})")
    return fn, model.scores_N - model.report.operating_points[point].threshold


def _floors(candidate: Judged, posts: Posts, settings: PromoteSettings) -> list[Check]:
    """The compared metric's first."""
    found = candidate.report.metrics
    checks = []
    for name, floor in {settings.metric: settings.floor, **settings.floors}.items():
        if name not in found:
            raise ConfigError(f"promote: {name!r} is not in the report; choose one of {sorted(found)}")
        value = found[name].value
        passed = value is not None and value >= floor
        checks.append(Check(name=name, value=value, limit=floor, outcome="passed" if passed else "failed"))
    limit = settings.max_calibration_error
    if limit is None:
        return checks
    error = metrics.expected_calibration_error(candidate.scores_N, posts.labels_N, weights=posts.weights_N)
    if error > limit:  # chance is asked only then: it takes two hundred draws
        limit = max(limit, _calibration_noise(candidate.scores_N, posts.weights_N))
    outcome: Outcome = "passed" if error <= limit else "failed"
    return [*checks, Check(name=metrics.CALIBRATION_ERROR, value=error, limit=limit, outcome=outcome)]


def _calibration_noise(scores_N: _Scores, weights_N: _Scores | None) -> float:
    """The calibration error that 5 of 100 perfectly calibrated models with these scores would exceed: few posts
    have one even where nothing is wrong.
    """
    rng = np.random.default_rng(_SEED)
    order = np.argsort(-scores_N, kind="stable")
    order_N, weight_N = scores_N[order], None if weights_N is None else weights_N[order]
    draws = (rng.random(len(order_N)) < order_N for _ in range(_CALIBRATION_DRAWS))
    errors = [metrics.expected_calibration_error(order_N, labels, weights=weight_N) for labels in draws]
    return float(np.quantile(errors, LEVEL))


def _guessing(candidate: Judged, posts: Posts, settings: PromoteSettings) -> Check:
    """The metric against what the share `guessing` of models that know nothing exceeds: the same scores, dealt out by
    chance. Each post keeps what it stands for, which in a queue goes with its label.
    """
    fn, scores_N = _measured(settings.metric, candidate)
    order_N, rng, weights_N = -np.sort(-scores_N), np.random.default_rng(_SEED), posts.weights_N
    dealt = (rng.permutation(len(order_N)) for _ in range(settings.bootstrap))
    draws = [fn(order_N, posts.labels_N[k], weights=None if weights_N is None else weights_N[k]) for k in dealt]
    value = fn(scores_N, posts.labels_N, weights=weights_N)
    limit = float(np.quantile(draws, 1 - settings.guessing))
    name = f"{settings.metric} against guessing"
    return Check(name=name, value=value, limit=limit, outcome="passed" if value > limit else "failed")


def _floor_reason(check: Check) -> str:
    if check.value is None:
        return f"{check.name} is undefined on this test split"
    side = "above the ceiling" if check.name == metrics.CALIBRATION_ERROR else "below the floor"
    return f"{check.name} {check.value:.4f} is {side} {check.limit:.4g}"


def _gain(
    metric: str, candidate: Judged, champion: Judged, posts: Posts, settings: PromoteSettings, *, limit: float
) -> Check:
    value, low, high = gain_of(
        metric, candidate, champion, posts.labels_N, n=settings.bootstrap, weights_N=posts.weights_N
    )
    passed = value != 0 and low > limit  # NaN is above nothing
    return _check(f"gain in {metric}", (value, low, high), limit, "passed" if passed else "failed")


def _slices(candidate: Judged, champion: Judged, posts: Posts, settings: PromoteSettings) -> list[Check]:
    checks = []
    for name, member_N in posts.slices.items():
        labels = posts.labels_N[member_N]
        if labels.sum() < settings.min_slice_positives or labels.all():
            continue
        a, b = (Judged(scores_N=model.scores_N[member_N], report=model.report) for model in (candidate, champion))
        weights_N = None if posts.weights_N is None else posts.weights_N[member_N]
        value, low, high = gain_of(settings.metric, a, b, labels, n=settings.bootstrap, weights_N=weights_N)
        fell = value < -settings.max_slice_drop
        outcome: Outcome = "passed" if not fell else "failed" if high < 0 else "open"
        checks.append(_check(name, (value, low, high), -settings.max_slice_drop, outcome))
    return checks


def _check(name: str, gain: tuple[float, float, float], limit: float, outcome: Outcome) -> Check:
    value, low, high = (None if math.isnan(found) else found for found in gain)
    return Check(name=name, value=value, low=low, high=high, limit=limit, outcome=outcome)


def _signed(check: Check) -> str:
    if check.value is None or check.low is None or check.high is None:
        return "undefined"
    return f"{check.value:+.4f} [{check.low:+.4f}, {check.high:+.4f}]"
