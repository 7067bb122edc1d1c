"""The evaluation report as one HTML page: no script, no font, no file beside it, so that it reads anywhere."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup
from PIL import Image

from model import metrics
from model.columns import SCORE, answer_column, probability_column
from model.errors import ImageError
from model.images import INGESTED, decode, read_source
from model.metrics import OperatingPoint
from model.schema import IMAGE_SHA256, IMAGES, POST_ID, ROOT, TEST, TEXT, TITLE, VAL
from model.settings import answers_questions
from model.task import Question, Task
from steps.evaluate import charts
from steps.evaluate.charts import QuestionRow
from steps.evaluate.report import EvalReport, Metric, labelled, score_arrays
from steps.pages import data_uri, interval, share, shortened, template
from steps.settings import EvaluateSettings
from steps.survey import weights_of
from steps.tables import rows_of

#: Longer side of a thumbnail in pixels; how many a post shows, and the page in all (it stays below 2 MB).
_THUMBNAIL, _THUMBNAILS_A_POST, _THUMBNAILS_IN_ALL = 96, 8, 160
_MAX_TITLE, _MAX_TEXT = 160, 500


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


def render(
    report: EvalReport,
    val: pd.DataFrame,
    test: pd.DataFrame,
    posts: pd.DataFrame,
    task: Task,
    settings: EvaluateSettings,
    note: str = "",
) -> str:
    """The page for a person who decides whether this model is good enough, or why it is not.

    Args:
        val, test: the predictions tables that the report was built from.
        posts: the posts table; gives the examples their title, text and images. An image that cannot
            be read is shown as a placeholder with the reason.
        note: what is to be known of the backbone.

    Raises:
        DataError: the predictions lack a column, a score or a positive post (as in `build_report`).
    """
    val, test = labelled(val, VAL, task, report.variant), labelled(test, TEST, task, report.variant)
    val_scores, val_labels = score_arrays(val)
    scores, labels = score_arrays(test)
    weights = weights_of(test)
    fitted = {
        key: metrics.apply_threshold(val_scores, val_labels, point.threshold, point.min_precision, weights_of(val))
        for key, point in report.operating_points.items()
    }
    questions = _question_rows(report, test, task)
    rule, threshold = _decision(report, settings)
    page = template("evaluation.html.j2", interval=_interval, threshold=_threshold)
    return page.render(
        report=report,
        note=note,
        final=task.final,
        headline=_headline(report, settings),
        metric_rows=_metric_rows(report),
        fitted=fitted,
        questions=questions,
        rule=rule,
        threshold=threshold,
        groups=_groups(test, posts, task, report, threshold, settings.examples),
        curve=charts.figure(lambda axes: charts.draw_curve(axes, report, scores, labels, weights)),
        histogram=charts.figure(lambda axes: charts.draw_histogram(axes, report, scores, labels, task, weights)),
        reliability=charts.figure(lambda axes: charts.draw_reliability(axes, scores, labels, weights)),
        bars=charts.figure(lambda axes: charts.draw_bars(axes, questions), height=1.1 + 0.5 * len(questions))
        if questions
        else None,
    )


def _headline(report: EvalReport, settings: EvaluateSettings) -> list[tuple[str, Metric, str]]:
    middle = metrics.recall_name(metrics.point_name(settings.precisions[len(settings.precisions) // 2]))
    numbers = (metrics.AVERAGE_PRECISION, metrics.ROC_AUC, metrics.F1)
    return [
        (metrics.label_of(middle), report.metrics[middle], "percent"),
        *((metrics.label_of(name), report.metrics[name], "number") for name in numbers),
    ]


def _metric_rows(report: EvalReport) -> list[tuple[str, Metric, str]]:
    rows = [
        (f"Recall at {share(point.min_precision, 0)} precision", report.metrics[metrics.recall_name(key)], "percent")
        for key, point in report.operating_points.items()
    ]
    rows += [
        (name, report.metrics[key], "number")
        for name, key in (
            ("F1 at the threshold from val", metrics.F1),
            ("Average precision", metrics.AVERAGE_PRECISION),
            ("ROC AUC", metrics.ROC_AUC),
            ("Calibration error", metrics.CALIBRATION_ERROR),
        )
    ]
    return [*rows, ("Positive posts", report.metrics[metrics.POSITIVE_RATE], "percent")]


def _question_rows(report: EvalReport, test: pd.DataFrame, task: Task) -> list[QuestionRow]:
    if not answers_questions(report.variant):
        return []
    rows, weights = [], weights_of(test)
    for question in task.questions:
        one = pd.Series(1.0 if weights is None else weights, test.index)
        shares = one.groupby(test[question.id]).sum() / one[test[question.id].notna()].sum()  # over the labelled posts
        rows.append(
            QuestionRow(
                ask=question.ask,
                accuracy=report.metrics[metrics.accuracy_name(question.id)],
                majority=float(shares.max()) if len(shares) else None,
                missing_share=report.missing_share[question.id],
                annotated_missing_share=report.annotated_missing_share.get(question.id),
            )
        )
    return rows


def _decision(report: EvalReport, settings: EvaluateSettings) -> tuple[str, float]:
    """The rule by which the examples are called right or wrong, in words, and its threshold."""
    middle = settings.precisions[len(settings.precisions) // 2]
    threshold = report.operating_points[metrics.point_name(middle)].threshold
    if math.isfinite(threshold):
        return f"the threshold fitted on val for {middle} % precision", threshold
    return f"the threshold of the best F1 on val (none promises {middle} % precision)", report.f1_threshold


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
        title=shortened(post[TITLE], _MAX_TITLE),
        text=shortened(post[TEXT], _MAX_TEXT),
        thumbnails=[_thumbnail(post[ROOT], name, sha256) for name, sha256 in images[:room]],
        hidden_images=max(0, len(images) - room),
        answers=[_answer(row, question) for question in asked],
    )


def _answer(row: pd.Series, question: Question) -> _Answer:
    gold = row[question.id]
    return _Answer(
        ask=question.ask,
        predicted=row[answer_column(question.id)],
        probability=float(row[probability_column(question.id)]),
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
    return _Thumbnail(source=data_uri("image/jpeg", buffer.getvalue()))


def _interval(metric: Metric, kind: str = "number") -> Markup:
    shown = interval(metric.low, metric.high, kind)
    return Markup(shown) if metric.low is None else Markup('<span class="nowrap">{}</span>').format(shown)


def _threshold(point: OperatingPoint) -> str:
    return f"{point.threshold:.4f}" if math.isfinite(point.threshold) else "none is promised"
