"""The model card of a version: what it decides, learned from, promises and is not for, as short Markdown.

MLflow shows it as the version's description. Its form follows Mitchell et al. 2019, "Model cards for model reporting"
(arXiv 1810.03993).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model import metrics
from model.checkpoint_info import CheckpointInfo
from model.columns import SCORE
from model.errors import cut, plain
from model.metrics import OperatingPoint
from model.schema import CREATED_AT, LABEL, LANGUAGE, POST_ID, SPLIT, TEST, TRAIN
from model.settings import answers_questions
from model.task import Task
from steps.evaluate.report import EvalReport, Metric
from steps.promote.gate import slices_of
from steps.survey import share_of, weights_of
from steps.tables import rows_of

#: Characters that MLflow's databases take for a description.
LONGEST = 5000
#: Questions and slices that are named one by one; characters of a wording.
_NAMED, _WORDS = 12, 90
#: Precision targets that are shown, the highest.
_TARGETS = 8
#: A slice with fewer positive, or fewer flagged, posts is not judged.
_LEAST = 20
_LEVEL = 0.95


def card(
    report: EvalReport, predictions: pd.DataFrame, task: Task, info: CheckpointInfo, posts: pd.DataFrame | None
) -> str:
    """Markdown, at most LONGEST characters.

    Args:
        predictions: of val and test (see `steps.evaluate.report`).
        info: of the checkpoint, as it was trained.
        posts: the table of ingest with the posts of train and test; None: nothing is said of them.
    """
    parts = {
        f"{task.name}, version {task.version} of the policy": _decision(task, report),
        "Trained on": _training(report, info, posts),
        "The promise": _promise(report),
        "Measured on test": _measured(report, task),
        "Slices that fall short": _slices(report, predictions, posts),
        "Not for": _not_for(report, posts),
        "Load and serve": _use(),
    }
    text = "\n".join(f"{'#' if n == 0 else '##'} {title}\n\n{body}\n" for n, (title, body) in enumerate(parts.items()))
    return text if len(text) <= LONGEST else text[: LONGEST - 2] + "…\n"


def _decision(task: Task, report: EvalReport) -> str:
    lines = [
        f"{_words(task.final.ask)} Answers: {task.final.classes[0]}, or **{task.final.positive}** (flagged).",
    ]
    if answers_questions(report.variant) and task.questions:
        asked = [f"{q.id} ({_words(q.ask)} {', '.join(q.classes[:4])})" for q in task.questions]
        lines.append(f"It also answers {len(asked)} intermediate questions: {_listed(asked)}.")
    return "\n\n".join(lines)


def _training(report: EvalReport, info: CheckpointInfo, posts: pd.DataFrame | None) -> str:
    lines = []
    if posts is not None:
        train = posts[posts[SPLIT] == TRAIN]
        known = train[LABEL].dropna()
        weights = weights_of(train.loc[known.index])
        of = ", {} of them" if weights is None else "; of all that they were drawn from, {} are"
        mean = _percent(share_of(known == 1, weights).value)
        share = f"{of.format(mean)} {info.task.final.positive}" if len(known) else ""
        lines.append(f"{len(train):,} posts{_span(train)}; people's decision for {len(known):,}{share}.")
    if "start" in info.provenance:
        lines.append(f"It went on from the weights of {info.provenance['start']}.")
    if answers_questions(report.variant) and info.task.questions:
        corrected = (
            ""
            if info.train.labels == "plain"
            else f"; people's answers to some training posts corrected them (`{info.train.labels}`)"
        )
        lines.append(f"Answers to the intermediate questions by {_annotator(report.annotator)}{corrected}.")
        if report.annotated_missing_share:
            id_, most = max(report.annotated_missing_share.items(), key=lambda item: item[1])
            lines.append(f"At most {100 * most:.1f} % of a question's answers are missing ({id_}).")
    elif info.task.questions:
        lines.append("The intermediate questions were not trained.")
    lines.append(f"Variant `{report.variant}`, seed {report.seed}, backbone `{report.backbone}`.")
    return "\n".join(lines)


def _annotator(annotator: str) -> str:
    kind, _, model = annotator.partition(":")
    if kind == "human":
        return "people"
    if kind == "simulated":
        return f"a **simulated** annotator with the error rates of {model or 'an LLM'}: no person and no LLM saw a post"
    return f"the LLM `{model or annotator}`"


def _promise(report: EvalReport) -> str:
    """One line per precision target."""
    if not report.operating_points:
        return "None: no threshold was fitted."
    how = (
        "no confidence: each threshold is the best on val"
        if report.confidence is None
        else f"{100 * report.confidence:g} % confidence"
    )
    lines = [
        f"Flagged at `score >= threshold`, a target is kept with {how} (fitted on {report.n_val:,} posts of val), as "
        "long as served posts are like those.",
        "",
        "| precision promised | threshold | recall on test | precision on test |",
        "|---|---|---|---|",
    ]
    for key, point in _shown(report).items():
        found = report.metrics.get(metrics.served_name(key))
        if math.isinf(point.threshold):
            lines.append(f"| {point.min_precision:.0%} | flags nothing: {report.unpromised(key)} | | |")
        else:
            recall = _interval(found) if found is not None else _percent(point.recall)
            lines.append(
                f"| {point.min_precision:.0%} | {point.threshold:.4f} | {recall} | {_percent(point.precision)} |"
            )
    return "\n".join(lines)


def _shown(report: EvalReport) -> dict[str, OperatingPoint]:
    return dict(list(report.operating_points.items())[-_TARGETS:])


def _measured(report: EvalReport, task: Task) -> str:
    lines = [
        f"{report.n_posts:,} posts, {report.n_positive:,} positive{'; ' if report.counted else ''}{report.counted}; "
        f"brackets are 95 % intervals. Guessing has an average precision of {_percent(report.guessing)}."
    ]
    named = [metrics.AVERAGE_PRECISION, metrics.ROC_AUC]
    named += [metrics.recall_name(key) for key in _shown(report)]
    lines += [
        f"- {metrics.label_of(name)}: {_interval(report.metrics[name])}" for name in named if name in report.metrics
    ]
    right = [
        f"{id_} {_percent(found.value)}"
        for id_ in task.question_ids
        if (found := report.metrics.get(metrics.accuracy_name(id_))) is not None and found.value is not None
    ]
    if right:
        lines.append(f"- right answers, where people gave one: {_listed(right)}")
    return "\n".join(lines)


def _slices(report: EvalReport, predictions: pd.DataFrame, posts: pd.DataFrame | None) -> str:
    served = [(key, point) for key, point in report.operating_points.items() if math.isfinite(point.threshold)]
    test = predictions[(predictions[SPLIT] == TEST) & predictions[LABEL].notna()].reset_index(drop=True)
    if posts is None or not served or SCORE not in test:
        return "Not examined: no threshold is served." if not served else "Not examined."
    point = max(served, key=lambda item: item[1].min_precision)[1]
    slices = slices_of(rows_of(posts, test[POST_ID].tolist(), "posts"))
    flagged, positive = test[SCORE].to_numpy() >= point.threshold, (test[LABEL] == 1).to_numpy(bool)
    weights = weights_of(test)
    judged, short = 0, []
    for name, member in slices.items():
        weight = np.ones(int(member.sum())) if weights is None else weights[member]
        enough, said = _short_of(point, flagged[member], positive[member], weight)
        judged += enough
        short += [f"- {plain(name)}: {line}" for line in said]
    head = (
        f"At {point.min_precision:.0%} precision, {judged} of {len(slices)} slices of test (album, text, month, "
        f"language) hold {_LEAST} positive or flagged posts. "
    )
    if not short:
        return head + "None is surely below the promise, or below the recall of all posts."
    return head + "Surely below the promise, or the recall of all posts:\n\n" + "\n".join(short[:_NAMED])


def _short_of(
    point: OperatingPoint, flagged: NDArray[np.bool_], positive: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[bool, Sequence[str]]:
    """Whether a slice has enough posts to be judged; and in what its exact interval lies wholly below."""
    found, hits = [], flagged & positive
    enough = False
    for name, of, bound in (("precision", flagged, point.min_precision), ("recall", positive, point.recall)):
        if (n := int(of.sum())) >= _LEAST:
            enough = True
            share = share_of(hits[of], weights[of], _LEVEL)
            if share.high < bound:
                between = f"[{_percent(share.low)}, {_percent(share.high)}]"
                found.append(f"{name} {_percent(share.value)} {between} of {n:,} posts, below {_percent(bound)}")
    return enough, found


def _not_for(report: EvalReport, posts: pd.DataFrame | None) -> str:
    lines = []
    if report.annotator.startswith("simulated"):
        lines.append("- **Real posts.** It learned rendered posts from simulated labels: it shows that the path works.")
    lines += [
        "- Another policy, or a decision on who posted: it answers for a post, by the policy above.",
        f"- Posts of other kinds{_kinds(posts)} than it was trained and measured on: the promise does not hold there. "
        "`agentps live` tells when it breaks.",
        "- Acting without a way to object: a part of what is flagged is flagged wrongly, up to what the promised "
        "precision leaves; and a part of what should be flagged is missed.",
    ]
    return "\n".join(lines)


def _use() -> str:
    return "\n".join(
        (
            "MODEL and VERSION: this version's name and number. Every file is held to its hash before any code runs.",
            "",
            "```bash",
            'mlflow models serve -m "$(agentps fetch VERSION)"',
            "```",
            "",
            "```python",
            "from steps.register import registry",
            "",
            'model = registry.load(registry.get("MODEL", "VERSION"))',
            "model.predict(posts)  # a DataFrame: images, title, text",
            "```",
        )
    )


def _span(posts: pd.DataFrame) -> str:
    if CREATED_AT not in posts or not (times := posts[CREATED_AT].dropna()).size:
        return ""
    return f" of {times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}"


def _kinds(posts: pd.DataFrame | None) -> str:
    if posts is None or LANGUAGE not in posts or not (names := sorted(posts[LANGUAGE].dropna().unique())):
        return ", languages and times"
    return f", times and languages (known: {_listed([plain(str(name)) for name in names])})"


def _words(text: str) -> str:
    return cut(plain(text), _WORDS)


def _listed(items: Sequence[str]) -> str:
    rest = len(items) - _NAMED
    return ", ".join([*items[:_NAMED], *([f"and {rest} more"] if rest > 0 else [])])


def _interval(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return _percent(metric.value)
    return f"{_percent(metric.value)} [{_percent(metric.low)}, {_percent(metric.high)}]"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
