"""The charts of the evaluation page, as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model import metrics
from model.task import Task
from steps.evaluate.report import EvalReport, Metric
from steps.pages import data_uri, share, shortened

_MAX_CURVE_POINTS = 800

_INK, _FAINT, _POSITIVE, _NEGATIVE, _ACCENT = "#1f2933", "#9aa5b1", "#b4552d", "#3a6ea5", "#2f6f5e"
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, sharp, in the reader's own font
    "svg.hashsalt": "agentps",  # the same report gives the same bytes
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class QuestionRow:
    ask: str
    accuracy: Metric
    #: Accuracy of always giving the most frequent gold class; None without gold labels.
    majority: float | None
    missing_share: float
    annotated_missing_share: float | None


def figure(draw: Callable[[Axes], None], height: float = 3.5) -> str:
    """A chart as the data URI of an SVG: an image keeps its ids and styles away from the page's."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        draw(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return data_uri("image/svg+xml", buffer.getvalue())


def draw_curve(
    axes: Axes, report: EvalReport, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> None:
    """weights: for how many posts each stands; None: one. So in the others."""
    curve = metrics.threshold_curve(scores, labels, weights)
    kept = np.unique(np.linspace(0, len(curve.thresholds) - 1, _MAX_CURVE_POINTS).astype(int))
    axes.plot(curve.recall[kept], curve.precision[kept], color=_NEGATIVE, linewidth=1.6)
    points = report.operating_points
    attained = [(report.metrics[metrics.recall_name(key)].value or 0.0, p.min_precision) for key, p in points.items()]
    served = [(p.recall, p.precision) for p in points.values() if p.precision is not None]
    for _, target in attained:
        axes.axhline(target, color=_FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.plot(*_columns(attained), "o", color=_ACCENT, markersize=5, label="recall at the target precision")
    axes.plot(
        *_columns(served), "x", color=_POSITIVE, markersize=7, markeredgewidth=1.8, label="with the threshold from val"
    )
    rate = report.guessing
    axes.axhline(rate, color=_FAINT, linewidth=1)
    axes.annotate(
        "flag everything", (0.01, rate), xytext=(0, 3), textcoords="offset points", fontsize=8, color="#616e7c"
    )
    axes.set(xlabel="recall on test", ylabel="precision on test", xlim=(0, 1.01), ylim=(0, 1.02))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.02))


def draw_histogram(
    axes: Axes,
    report: EvalReport,
    scores: np.ndarray,
    labels: np.ndarray,
    task: Task,
    weights: np.ndarray | None = None,
) -> None:
    bins = np.linspace(0, 1, 31).tolist()
    for members, colour, name in (
        (~labels, _NEGATIVE, task.final.classes[0]),
        (labels, _POSITIVE, task.final.classes[1]),
    ):
        own = None if weights is None else weights[members]
        axes.hist(scores[members], bins=bins, weights=own, color=colour, alpha=0.55, label=f"{_plain(name)} by people")
    finite = {key: p.threshold for key, p in report.operating_points.items() if math.isfinite(p.threshold)}
    shades = np.linspace(0.75, 0.0, len(report.operating_points))
    for shade, (key, point) in zip(shades, report.operating_points.items(), strict=True):
        if key in finite:
            axes.axvline(
                point.threshold,
                color=str(shade),
                linewidth=1.3,
                label=f"{share(point.min_precision, 0)}: {point.threshold:.2f}",
            )
    axes.set(xlabel="score on test", ylabel="posts", xlim=(0, 1))
    axes.margins(y=0.1)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.2, handlelength=1.4)


def draw_reliability(axes: Axes, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> None:
    mean_score, positive_share = metrics.reliability(scores, labels, weights=weights)
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
    axes.plot(
        mean_score, positive_share, "o-", color=_NEGATIVE, linewidth=1.2, markersize=4, label="15 bins of equal size"
    )
    axes.set(xlabel="mean score", ylabel="share of positives", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="upper left")


def draw_bars(axes: Axes, questions: list[QuestionRow]) -> None:
    places = np.arange(len(questions))
    values = np.array([math.nan if q.accuracy.value is None else q.accuracy.value for q in questions])
    axes.barh(places, values, height=0.55, color=_NEGATIVE, alpha=0.75, label="accuracy, 95 % interval")
    for place, question in zip(places, questions, strict=True):
        if question.accuracy.low is not None and question.accuracy.high is not None:
            axes.plot([question.accuracy.low, question.accuracy.high], [place, place], color=_INK, linewidth=1.4)
    known = [(q.majority, place) for q, place in zip(questions, places, strict=True) if q.majority is not None]
    axes.plot(*_columns(known), "|", color=_POSITIVE, markersize=17, markeredgewidth=2.2, label="most frequent class")
    axes.set_yticks(places, [_plain(shortened(q.ask, 28)) for q in questions])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlim=(0, 1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, reverse=True)


def _columns(pairs: Iterable[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """The xs and the ys of points; two empty lists where there are none."""
    listed = list(pairs)
    return [x for x, _ in listed], [y for _, y in listed]


def _plain(text: str) -> str:
    """Text as matplotlib draws it: `$` would start a formula."""
    return text.replace("$", r"\$")
