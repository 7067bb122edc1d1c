"""The evaluation report as one HTML page: no script, no font, no file beside it, so that it reads anywhere."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from model import metrics
from model.errors import ImageError
from model.images import INGESTED, decode, read_source
from model.metrics import OperatingPoint
from model.schema import IMAGE_SHA256, IMAGES, POST_ID, ROOT, TEST, TEXT, TITLE, VAL
from model.settings import answers_questions
from model.task import Question, Task
from steps.evaluate.report import (
    ANSWER,
    CLASS,
    SCORE,
    EvalReport,
    Metric,
    labelled,
    score_arrays,
)
from steps.pages import environment, number, share
from steps.settings import EvaluateSettings
from steps.tables import rows_of

#: Longer side of a thumbnail in pixels; how many a post shows, and the page in all (it stays below 2 MB).
_THUMBNAIL, _THUMBNAILS_A_POST, _THUMBNAILS_IN_ALL = 96, 8, 160
_MAX_TITLE, _MAX_TEXT = 160, 500
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
class _Answer:
    ask: str
    predicted: str
    probability: float
    #: None: people gave no label.
    gold: str | None

    @property
    def disagrees(self) -> bool:
        return self.gold is not None and self.gold != self.predicted


@dataclass(frozen=True)
class _Thumbnail:
    #: A data URI, or None with the reason why the image cannot be shown.
    source: str | None
    reason: str = ""


@dataclass(frozen=True)
class _Example:
    post_id: str
    score: float
    title: str
    text: str
    thumbnails: list[_Thumbnail]
    hidden_images: int
    answers: list[_Answer]


@dataclass(frozen=True)
class _Group:
    name: str
    meaning: str
    #: All test posts of the group; `examples` are a few of them.
    count: int
    examples: list[_Example]


@dataclass(frozen=True)
class _QuestionRow:
    ask: str
    accuracy: Metric
    #: Accuracy of always giving the most frequent gold class; None without gold labels.
    majority: float | None
    missing_share: float
    annotated_missing_share: float | None


def render(
    report: EvalReport,
    val: pd.DataFrame,
    test: pd.DataFrame,
    posts: pd.DataFrame,
    task: Task,
    settings: EvaluateSettings,
) -> str:
    """The page for a person who decides whether this model is good enough, or why it is not.

    Args:
        val, test: the predictions tables that the report was built from.
        posts: the posts table; gives the examples their title, text and images. An image that cannot
            be read is shown as a placeholder with the reason.

    Raises:
        DataError: the predictions lack a column, a score or a positive post (as in `build_report`).
    """
    val, test = labelled(val, VAL, task, report.variant), labelled(test, TEST, task, report.variant)
    val_scores, val_labels = score_arrays(val)
    scores, labels = score_arrays(test)
    fitted = {
        key: metrics.apply_threshold(val_scores, val_labels, point.threshold, point.min_precision)
        for key, point in report.operating_points.items()
    }
    questions = _question_rows(report, test, task)
    rule, threshold = _decision(report, settings)
    return _TEMPLATE.render(
        report=report,
        final=task.final,
        headline=_headline(report, settings),
        metric_rows=_metric_rows(report),
        fitted=fitted,
        questions=questions,
        rule=rule,
        threshold=threshold,
        groups=_groups(test, posts, task, report, threshold, settings.examples),
        curve=_figure(lambda axes: _draw_curve(axes, report, scores, labels)),
        histogram=_figure(lambda axes: _draw_histogram(axes, report, scores, labels, task)),
        reliability=_figure(lambda axes: _draw_reliability(axes, scores, labels)),
        bars=_figure(lambda axes: _draw_bars(axes, questions), height=1.1 + 0.5 * len(questions))
        if questions
        else None,
    )


def _headline(report: EvalReport, settings: EvaluateSettings) -> list[tuple[str, Metric, str]]:
    middle = settings.precisions[len(settings.precisions) // 2]
    return [
        (f"recall at {middle} % precision", report.metrics[f"recall_at_p{middle}"], "percent"),
        ("average precision", report.metrics["average_precision"], "number"),
        ("ROC AUC", report.metrics["roc_auc"], "number"),
        ("F1", report.metrics["f1"], "number"),
    ]


def _metric_rows(report: EvalReport) -> list[tuple[str, Metric, str]]:
    rows = [
        (f"Recall at {share(point.min_precision, 0)} precision", report.metrics[f"recall_at_{key}"], "percent")
        for key, point in report.operating_points.items()
    ]
    rows += [
        (name, report.metrics[key], "number")
        for name, key in (
            ("F1 at the threshold from val", "f1"),
            ("Average precision", "average_precision"),
            ("ROC AUC", "roc_auc"),
            ("Calibration error", "calibration_error"),
        )
    ]
    return [*rows, ("Positive posts", report.metrics["positive_rate"], "percent")]


def _question_rows(report: EvalReport, test: pd.DataFrame, task: Task) -> list[_QuestionRow]:
    if not answers_questions(report.variant):
        return []
    rows = []
    for question in task.questions:
        shares = test[question.id].value_counts(normalize=True)  # over the labelled posts
        rows.append(
            _QuestionRow(
                ask=question.ask,
                accuracy=report.metrics[f"accuracy_{question.id}"],
                majority=float(shares.max()) if len(shares) else None,
                missing_share=report.missing_share[question.id],
                annotated_missing_share=report.annotated_missing_share.get(question.id),
            )
        )
    return rows


def _decision(report: EvalReport, settings: EvaluateSettings) -> tuple[str, float]:
    """The rule by which the examples are called right or wrong, in words, and its threshold."""
    middle = settings.precisions[len(settings.precisions) // 2]
    threshold = report.operating_points[f"p{middle}"].threshold
    if math.isfinite(threshold):
        return f"the threshold fitted on val for {middle} % precision", threshold
    return f"the threshold of the best F1 on val (none reaches {middle} % precision there)", report.f1_threshold


# Examples


def _groups(
    test: pd.DataFrame, posts: pd.DataFrame, task: Task, report: EvalReport, threshold: float, wanted: int
) -> list[_Group]:
    """The four kinds of post, each shown by those that the model is surest of."""
    scores, positive = score_arrays(test)
    flagged = scores >= threshold
    negative_name, positive_name = task.final.classes
    kinds = [
        ("Caught", f"flagged, and {positive_name} by people", flagged & positive, False),
        ("Wrongly flagged", f"flagged, but {negative_name} by people", flagged & ~positive, False),
        ("Missed", f"not flagged, but {positive_name} by people", ~flagged & positive, True),
        ("Rightly passed", f"not flagged, and {negative_name} by people", ~flagged & ~positive, True),
    ]
    chosen = [
        test[members].sort_values([SCORE, POST_ID], ascending=[lowest_first, True]).head(wanted)
        for _, _, members, lowest_first in kinds
    ]
    shown = sum(len(rows) for rows in chosen)
    room = min(_THUMBNAILS_A_POST, max(1, _THUMBNAILS_IN_ALL // max(shown, 1)))
    return [
        _Group(
            name=name,
            meaning=meaning,
            count=int(members.sum()),
            examples=[
                _example(row, post, task, report, room)
                for (_, row), (_, post) in zip(
                    rows.iterrows(), rows_of(posts, rows[POST_ID].tolist(), "posts").iterrows(), strict=True
                )
            ],
        )
        for (name, meaning, members, _), rows in zip(kinds, chosen, strict=True)
    ]


def _example(row: pd.Series, post: pd.Series, task: Task, report: EvalReport, room: int) -> _Example:
    images = list(zip(post[IMAGES], post[IMAGE_SHA256], strict=True))
    asked = task.questions if answers_questions(report.variant) else ()
    return _Example(
        post_id=str(row[POST_ID]),
        score=float(row[SCORE]),
        title=_shortened(post[TITLE], _MAX_TITLE),
        text=_shortened(post[TEXT], _MAX_TEXT),
        thumbnails=[_thumbnail(post[ROOT], name, sha256) for name, sha256 in images[:room]],
        hidden_images=max(0, len(images) - room),
        answers=[_answer(row, question) for question in asked],
    )


def _answer(row: pd.Series, question: Question) -> _Answer:
    predicted, probability = int(row[CLASS + question.id]), float(row[ANSWER + question.id])
    if len(question.classes) == 2 and predicted != question.positive_index:
        probability = 1 - probability  # the table holds the positive class's
    gold = row[question.id]
    return _Answer(
        ask=question.ask,
        predicted=question.classes[predicted],
        probability=probability,
        gold=None if pd.isna(gold) else question.classes[int(gold)],
    )


def _thumbnail(root: str, name: str, sha256: str) -> _Thumbnail:
    try:
        image = decode(read_source(name, INGESTED, root=root, sha256=sha256), INGESTED, least_side=_THUMBNAIL)
    except ImageError as error:
        return _Thumbnail(source=None, reason=str(error))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return _Thumbnail(source=_data_uri("image/jpeg", buffer.getvalue()))


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


# Charts


def _figure(draw: Callable[[Axes], None], height: float = 3.5) -> str:
    """A chart as the data URI of an SVG: an image keeps its ids and styles away from the page's."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        draw(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return _data_uri("image/svg+xml", buffer.getvalue())


def _draw_curve(axes: Axes, report: EvalReport, scores: np.ndarray, labels: np.ndarray) -> None:
    curve = metrics.threshold_curve(scores, labels)
    kept = np.unique(np.linspace(0, len(curve.thresholds) - 1, _MAX_CURVE_POINTS).astype(int))
    axes.plot(curve.recall[kept], curve.precision[kept], color=_NEGATIVE, linewidth=1.6)
    points = report.operating_points
    attained = [(report.metrics[f"recall_at_{key}"].value or 0.0, p.min_precision) for key, p in points.items()]
    served = [(p.recall, p.precision) for p in points.values() if p.precision is not None]
    for _, target in attained:
        axes.axhline(target, color=_FAINT, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.plot(*_columns(attained), "o", color=_ACCENT, markersize=5, label="recall at the target precision")
    axes.plot(
        *_columns(served), "x", color=_POSITIVE, markersize=7, markeredgewidth=1.8, label="with the threshold from val"
    )
    rate = report.n_positive / report.n_posts
    axes.axhline(rate, color=_FAINT, linewidth=1)
    axes.annotate(
        "flag everything", (0.01, rate), xytext=(0, 3), textcoords="offset points", fontsize=8, color="#616e7c"
    )
    axes.set(xlabel="recall on test", ylabel="precision on test", xlim=(0, 1.01), ylim=(0, 1.02))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 0.02))


def _draw_histogram(axes: Axes, report: EvalReport, scores: np.ndarray, labels: np.ndarray, task: Task) -> None:
    bins = np.linspace(0, 1, 31).tolist()
    for members, colour, name in (
        (~labels, _NEGATIVE, task.final.classes[0]),
        (labels, _POSITIVE, task.final.classes[1]),
    ):
        axes.hist(scores[members], bins=bins, color=colour, alpha=0.55, label=f"{_plain(name)} by people")
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


def _draw_reliability(axes: Axes, scores: np.ndarray, labels: np.ndarray) -> None:
    mean_score, positive_share = metrics.reliability(scores, labels)
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
    axes.plot(
        mean_score, positive_share, "o-", color=_NEGATIVE, linewidth=1.2, markersize=4, label="15 bins of equal size"
    )
    axes.set(xlabel="mean score", ylabel="share of positives", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="upper left")


def _draw_bars(axes: Axes, questions: list[_QuestionRow]) -> None:
    places = np.arange(len(questions))
    values = np.array([math.nan if q.accuracy.value is None else q.accuracy.value for q in questions])
    axes.barh(places, values, height=0.55, color=_NEGATIVE, alpha=0.75, label="accuracy, 95 % interval")
    for place, question in zip(places, questions, strict=True):
        if question.accuracy.low is not None and question.accuracy.high is not None:
            axes.plot([question.accuracy.low, question.accuracy.high], [place, place], color=_INK, linewidth=1.4)
    known = [(q.majority, place) for q, place in zip(questions, places, strict=True) if q.majority is not None]
    axes.plot(*_columns(known), "|", color=_POSITIVE, markersize=17, markeredgewidth=2.2, label="most frequent class")
    axes.set_yticks(places, [_plain(_shortened(q.ask, 28)) for q in questions])
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


# The page


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _interval(metric: Metric, kind: str = "number") -> Markup:
    if metric.low is None or metric.high is None:
        return Markup("–")
    low, high = number(metric.low, kind).removesuffix("\N{NO-BREAK SPACE}%"), number(metric.high, kind)
    return Markup('<span class="nowrap">{} to {}</span>').format(low, high)


def _threshold(point: OperatingPoint) -> str:
    return f"{point.threshold:.4f}" if math.isfinite(point.threshold) else "none reaches it"


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.task }} · {{ report.variant }} · evaluation</title>
<style>
{{ style }}
.posts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: .8rem; }
.post { border: 1px solid var(--line); border-radius: 6px; padding: .7rem .8rem; min-width: 0;
  overflow-wrap: anywhere; break-inside: avoid; }
.post header { display: flex; justify-content: space-between; gap: .6rem; font-size: .82rem; color: var(--soft); }
.post header b { color: var(--ink); white-space: nowrap; }
.post h4 { font-size: .95rem; margin: .4rem 0 .1rem; }
.post p { font-size: .88rem; margin: 0 0 .4rem; white-space: pre-line; }
.images { display: flex; flex-wrap: wrap; gap: 4px; margin: .4rem 0; align-items: center; }
.images img { height: 60px; width: auto; max-width: 120px; object-fit: cover; border-radius: 3px; display: block; }
.images i { height: 60px; width: 60px; padding: 4px; border: 1px dashed #9aa5b1; border-radius: 3px; color: var(--soft);
  font: 10px/1.2 system-ui, sans-serif; overflow: hidden; }
.post table { font-size: .82rem; }
.post th, .post td { padding: .2rem .4rem; }
.post td:last-child, .post th:last-child { padding-right: 0; }
.post tr.differs td { background: var(--bad-ground); }
</style>
</head>
<body>
<main>
<h1>{{ final.ask }}</h1>
<p class="soft">Task {{ report.task }}, variant {{ report.variant }}, measured on {{ "{:,}".format(report.n_posts) }}
test posts that people labelled, {{ "{:,}".format(report.n_positive) }} of them {{ final.positive }}
({{ (report.n_positive / report.n_posts) | share }}).</p>

<div class="tiles">
{% for name, metric, kind in headline %}
<div class="tile"><span>{{ name }}</span><b>{{ metric.value | number(kind) }}</b>
<span>{% if metric.low is not none %}95 %: {{ metric | interval(kind) }}{% else %}&nbsp;{% endif %}</span></div>
{% endfor %}
</div>

<section>
<h2>Model and data</h2>
<dl class="facts">
<dt>Backbone</dt><dd>{{ report.backbone }}</dd>
<dt>Variant, seed</dt><dd>{{ report.variant }}, {{ report.seed }}</dd>
<dt>Annotator</dt><dd>{{ report.annotator }}</dd>
<dt>Task fingerprint</dt><dd>{{ report.task_fingerprint }}</dd>
<dt>Test</dt><dd>{{ "{:,}".format(report.n_posts) }} posts
({{ "{:,}".format(report.n_unlabelled) }} without a final label left out)</dd>
<dt>Val</dt><dd>{{ "{:,}".format(report.n_val) }} posts
({{ "{:,}".format(report.n_val_unlabelled) }} without a final label left out);
thresholds and calibration come from here</dd>
<dt>Calibration</dt><dd>score = sigmoid({{ "%.3f" | format(report.calibration.scale) }} × logit
{{ "+" if report.calibration.bias >= 0 else "−" }} {{ "%.3f" | format(report.calibration.bias | abs) }})</dd>
</dl>
</section>

<section>
<h2>Results on test</h2>
<div class="scroll"><table>
<thead><tr><th>Metric</th><th>Value</th><th>95 % interval</th></tr></thead>
<tbody>
{% for name, metric, kind in metric_rows %}
<tr><td>{{ name }}</td><td>{{ metric.value | number(kind) }}</td><td>{{ metric | interval(kind) }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">Recall at a precision is the highest recall of any threshold that is this precise on test itself:
it compares models. What a threshold fitted beforehand delivers stands in the next table. Intervals are
percentiles over resampled test posts; a dash means that a value is undefined.</p>
</section>

<section>
<h2>Thresholds for use</h2>
<div class="scroll"><table>
<thead><tr><th rowspan="2">Target</th><th rowspan="2">Threshold</th><th colspan="2" class="over wide">On val</th>
<th colspan="2" class="over">On test</th></tr>
<tr><th class="wide">precision</th><th class="wide">recall</th><th>precision</th><th>recall</th></tr></thead>
<tbody>
{% for key, point in report.operating_points.items() %}
{% set short = point.precision is not none and point.precision < point.min_precision %}
<tr><td>{{ point.min_precision | share(0) }}</td><td class="nowrap">{{ point | threshold }}</td>
<td class="wide">{{ fitted[key].precision | share }}</td><td class="wide">{{ fitted[key].recall | share }}</td>
<td{% if short %} class="bad"{% endif %}>{{ point.precision | share }}{% if short %} (below){% endif %}</td>
<td>{{ point.recall | share }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">A post is flagged when its score is at least the threshold. Each threshold was fitted on val and only
measured on test, where its precision may fall below the target.</p>
</section>

<section>
<h2>How the scores behave</h2>
<div class="charts">
<figure><img src="{{ curve }}" alt="Precision against recall on test">
<figcaption>Precision and recall of every threshold on test; dashed: the target precisions.</figcaption></figure>
<figure><img src="{{ histogram }}" alt="Histogram of the scores by final label">
<figcaption>Scores by people's final label; lines: the thresholds for each target precision.</figcaption></figure>
<figure><img src="{{ reliability }}" alt="Reliability diagram">
<figcaption>Where a score can be read as a probability, the line follows the diagonal.</figcaption></figure>
{% if bars %}
<figure><img src="{{ bars }}" alt="Accuracy of each intermediate question">
<figcaption>Accuracy of each intermediate question against people's labels on test.</figcaption></figure>
{% endif %}
</div>
</section>

{% if questions %}
<section>
<h2>Intermediate questions</h2>
<div class="scroll"><table>
<thead><tr><th>Question</th><th>Accuracy</th><th>Most frequent</th><th>No label (test)</th>
<th>No answer (train)</th></tr></thead>
<tbody>
{% for row in questions %}
<tr><td>{{ row.ask }}</td>
<td>{{ row.accuracy.value | share }}<br><span class="note">{{ row.accuracy | interval("percent") }}</span></td>
<td>{{ row.majority | share }}</td><td>{{ row.missing_share | share }}</td>
<td>{{ row.annotated_missing_share | share }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">Accuracy against people's labels on test, with its 95 % interval. "Most frequent" is the accuracy
of always giving the most frequent of these labels. The last two columns are shares of posts: of test without people's
label, of the training posts without the annotator's answer.</p>
</section>
{% endif %}

<section>
<h2>Posts that it got right and wrong</h2>
<p class="note">By {{ rule }}: {{ "%.4f" | format(threshold) }}. In each group those that the model is surest of.</p>
{% for group in groups %}
<h3>{{ group.name }} <span class="soft">· {{ "{:,}".format(group.count) }} posts</span></h3>
<p class="note">{{ group.meaning[0] | upper }}{{ group.meaning[1:] }}.</p>
{% if group.examples %}
<div class="posts">
{% for post in group.examples %}
<article class="post">
<header><span>{{ post.post_id }}</span><b>score {{ "%.3f" | format(post.score) }}</b></header>
<div class="images">
{% for image in post.thumbnails %}
{% if image.source %}<img src="{{ image.source }}" alt="image {{ loop.index }}">
{% else %}<i>no image: {{ image.reason }}</i>
{% endif %}
{% endfor %}
{% if post.hidden_images %}<span class="note">and {{ post.hidden_images }} more</span>{% endif %}
</div>
{% if post.title %}<h4>{{ post.title }}</h4>{% endif %}
{% if post.text %}<p>{{ post.text }}</p>{% endif %}
{% if post.answers %}
<table>
<thead><tr><th>Question</th><th>Model</th><th>People</th></tr></thead>
<tbody>
{% for answer in post.answers %}
<tr{% if answer.disagrees %} class="differs"{% endif %}><td>{{ answer.ask }}</td>
<td>{{ answer.predicted }} <span class="soft nowrap">{{ answer.probability | share(0) }}</span></td>
<td>{% if answer.gold is none %}<span class="soft">no label</span>{% elif answer.disagrees %}<span
class="bad">≠ {{ answer.gold }}</span>{% else %}{{ answer.gold }}{% endif %}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
</article>
{% endfor %}
</div>
{% elif group.count %}
<p class="soft">Not shown: <code>evaluate.examples</code> is 0.</p>
{% else %}
<p class="soft">None.</p>
{% endif %}
{% endfor %}
</section>
</main>
</body>
</html>
"""

_TEMPLATE = environment({"share": share, "number": number, "interval": _interval, "threshold": _threshold}).from_string(
    _PAGE
)
