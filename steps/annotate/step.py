"""Step 2: an annotator answers the intermediate questions (paper 2.2 and 3.1.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import mlflow
import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger

from model.task import Task
from steps.annotate.client import AnnotationResult, annotate_posts
from steps.annotate.human import human_labels
from steps.annotate.ledger import Ledger
from steps.annotate.prices import FREE, load_prices
from steps.annotate.simulated import SimulatedAnnotator
from steps.annotate.tally import Progress
from steps.caching import depends_on
from steps.ingest.sample import render_sample
from steps.settings import AnnotateSettings, SampleSettings, home, ledger_url

logger = get_logger(__name__)


def _every_tenth(progress: Progress) -> None:
    done, of = progress.done, progress.total
    if done == of or done * 10 // of != (done - 1) * 10 // of:
        logger.info("Annotated %s of %s (%s)", done, of, progress)


def _ask(posts: pd.DataFrame, task: Task, settings: AnnotateSettings, sample: SampleSettings) -> AnnotationResult:
    source = f"{settings.annotator}:{settings.model}"
    ask: Callable[..., AnnotationResult] = annotate_posts
    with Ledger(ledger_url(settings.ledger)) as ledger:
        common: dict[str, Any] = {"source": source, "on_progress": _every_tenth}
        if settings.annotator == "openai":
            price = load_prices().get(settings.model)
            return ask(posts, task, settings, ledger, base_url=None, api_key=None, price=price, **common)
        common["price"] = FREE
        truth = pd.read_parquet(render_sample(sample, home()).with_name("truth.parquet"))
        with SimulatedAnnotator(truth, task) as server:
            return ask(posts, task, settings, ledger, base_url=server.base_url, api_key=server.api_key, **common)


@step(
    experiment_tracker=True,
    cache_policy=depends_on("steps/annotate", "model/task.py", "model/schema.py"),
)
def annotate(
    posts: pd.DataFrame, task: Task, settings: AnnotateSettings, sample: SampleSettings
) -> Annotated[pd.DataFrame, "labels"]:
    """Process labels for the posts of `settings.splits`; every paid answer is in the ledger."""
    if settings.annotator == "human":
        labels = human_labels(posts, task, settings.splits)
        logger.info("Took people's own process labels of %s posts", len(labels))
        return labels
    result = _ask(posts, task, settings, sample)
    figures = {
        "asked": result.asked,
        "reused": result.reused,
        "missing": result.missing,
        "requests": result.requests,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "seconds": result.seconds,
    }
    log_metadata({**figures})
    mlflow.log_metrics({f"annotate_{name}": value for name, value in figures.items()})
    logger.info(
        "%s annotator %s: asked %s posts, reused %s answers, %s without an answer",
        settings.annotator.capitalize(),
        settings.model,
        result.asked,
        result.reused,
        result.missing,
    )
    return result.labels
