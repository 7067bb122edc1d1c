"""Step 2: an annotator answers the intermediate questions (paper 2.2 and 3.1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import mlflow
import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger
from zenml.types import HTMLString

from model.task import Task
from steps.annotate.human import human_labels
from steps.annotate.ledger import Ledger
from steps.annotate.prices import FREE, load_prices
from steps.annotate.settings import AnnotateSettings
from steps.annotate.simulated import SimulatedAnnotator
from steps.annotate.tally import Progress
from steps.caching import depends_on
from steps.ingest import ahead
from steps.ingest.sample import render_sample
from steps.paths import home, ledger_url
from steps.publish import publish
from steps.settings import SampleSettings

if TYPE_CHECKING:
    from steps.annotate.agreement import QuestionAgreement
    from steps.annotate.client import AnnotationResult

logger = get_logger(__name__)


def _every_tenth(progress: Progress) -> None:
    done, of = progress.done, progress.total
    if done == of or done * 10 // of != (done - 1) * 10 // of:
        logger.info("Annotated %s of %s (%s)", done, of, progress)


def _ask(posts: pd.DataFrame, task: Task, settings: AnnotateSettings, sample: SampleSettings) -> AnnotationResult:
    from steps.annotate.client import annotate_posts

    with Ledger(ledger_url(settings.ledger)) as ledger:
        ask = partial(annotate_posts, posts, task, settings, ledger, on_progress=_every_tenth)
        if settings.annotator == "openai":
            return ask(price=load_prices().get(settings.model))
        ahead.wait()  # the step that draws the sample may be cached
        truth = pd.read_parquet(render_sample(sample, home()).with_name("truth.parquet"))
        with SimulatedAnnotator(truth, task, posts) as server:
            return ask(base_url=server.base_url, api_key=server.api_key, price=FREE)


@step(experiment_tracker=True, cache_policy=depends_on(__name__))
def annotate(
    posts: pd.DataFrame, task: Task, settings: AnnotateSettings, sample: SampleSettings
) -> tuple[Annotated[pd.DataFrame, "labels"], Annotated[HTMLString, "annotation"]]:
    """Process labels for the posts of `settings.splits`; every paid answer is in the ledger.

    The page tells what was asked, what it cost, what is missing, and how the labels agree with people's.

    Raises:
        AnnotationError: as `annotate_posts`; or a question agrees too little, and `on_low_agreement` is `fail`. The
            page is kept all the same, in MLflow and on disk.
    """
    if settings.annotator == "human":
        labels = human_labels(posts, task, settings.splits)
        logger.info("Took people's own process labels of %s posts", len(labels))
        return labels, HTMLString(f"<p>{len(labels)} posts with people's own process labels; nobody was asked.</p>")
    from steps.annotate.agreement import agreement, gate
    from steps.annotate.page import render_report

    result = _ask(posts, task, settings, sample)
    questions = agreement(posts, result.labels, task)
    # the page is made before a gate that fails: it is what explains the failure
    gate_action = "warn" if settings.on_low_agreement == "fail" else settings.on_low_agreement
    labels, below = gate(result.labels, questions, settings.min_agreement, gate_action)
    page = publish(render_report(result, questions, below, settings, f"Task {task.name}"), "annotation")
    figures = {name: value for name, value in _figures(result, questions).items() if value is not None}
    log_metadata({**figures})
    mlflow.log_metrics({f"annotate_{name}": value for name, value in figures.items()})
    spent = "" if result.cost is None else f", ${result.cost:.2f} of ${result.plan.dollars or 0:.2f} planned"
    logger.info(
        "%s annotator %s: asked %s, reused %s answers, %s without an answer%s",
        settings.annotator.capitalize(),
        settings.model,
        result.asked,
        result.reused,
        result.missing,
        spent,
    )
    for verdict in below:
        logger.warning("%s", verdict)
    if below and settings.on_low_agreement == "fail":
        gate(result.labels, questions, settings.min_agreement, "fail")
    return labels, page


def _figures(result: AnnotationResult, questions: Sequence[QuestionAgreement]) -> dict[str, float | None]:
    figures: dict[str, float | None] = {
        "asked": result.asked,
        "reused": result.reused,
        "missing": result.missing,
        "requests": result.requests,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "seconds": result.seconds,
        "cost": result.cost,
        "planned_cost": result.plan.dollars,
    }
    for question in questions:
        figures[f"accuracy_{question.question}"] = question.accuracy
        figures[f"kappa_{question.question}"] = question.kappa
        figures[f"missing_{question.question}"] = question.missing_rate
    return figures
