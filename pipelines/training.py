"""The training pipeline: `zenml pipeline run agentps_training [-c FILE]`.

Its steps are imported when a run begins: what is wrong with a config is told before that, and the embedded sample is
drawn meanwhile.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from zenml.client import Client

from model.task import Task, load_task
from pipelines.entry import CheckedPipeline
from steps.fine_tune.ahead import check
from steps.ingest import ahead
from steps.ingest.pictures import frames_mark
from steps.ingest.posts import manifest_fingerprint
from steps.ingest.rows import absolute
from steps.ingest.sample import render_sample, sample_fingerprint
from steps.paths import home
from steps.register.names import check_names
from steps.settings import SAMPLE, TrainingSettings, load_settings


def prepare(
    settings: TrainingSettings, policy: Task, root: str | None = None, fingerprint: str = ""
) -> tuple[str, Any, Any, Any]:
    """The part of the path that every training shares, from the manifest to shards and labels.

    Args:
        root, fingerprint: of a manifest that retraining wrote: the folder that its images are named from, and its own.

    Returns:
        The data's fingerprint, and the artifacts `posts`, `labels` and `shards`.

    Raises:
        AgentPSError: as `steps.fine_tune.ahead.check`.
    """
    check(settings, policy, here=Client().active_stack.orchestrator.flavor == "local")
    if settings.posts == SAMPLE:
        ahead.begin(partial(render_sample, settings.sample, home()))
        source, fingerprint = SAMPLE, sample_fingerprint(settings.sample)
        read = f"{fingerprint} {frames_mark()}"
    else:
        source = absolute(settings.posts)
        read = fingerprint = fingerprint or manifest_fingerprint(source)
    from steps.annotate.step import annotate
    from steps.ingest.step import ingest
    from steps.preprocess.step import preprocess
    from steps.validate.step import validate

    table, _rejects = ingest(source, read, policy, settings.sample, settings.ingest, root)
    labels, _page = annotate(table, policy, settings.annotate, settings.sample)
    validate(table, labels, policy, settings.validate_, settings.ingest)
    shards = preprocess(table, policy, settings.backbone, settings.preprocess, settings.ingest, after=["validate"])
    return fingerprint, table, labels, shards


def improved(
    settings: TrainingSettings,
    policy: Task,
    shards: Any,
    labels: Any,
    fingerprint: str,
    name: str | None = None,
    start: str | None = None,
) -> tuple[Any, Any]:
    """The labels that are trained on, by `fine_tune.labels`, and the questions' weights; None: the task's."""
    if settings.fine_tune.labels == "plain":
        return labels, None
    from steps.fine_tune.step import improve_labels

    made: tuple[Any, Any] = improve_labels(
        shards, labels, policy, settings.backbone, fingerprint, settings.fine_tune, name, start
    )
    return made


def _training(options: dict[str, Any] | None = None) -> None:
    """`options`: laid over `configs/default.yaml`, key by key."""
    settings = load_settings(options or {})
    policy = load_task(settings.task)
    check_names(settings.register_.model_name(policy), settings.promote.target)
    fingerprint, table, labels, shards = prepare(settings, policy)
    from steps.evaluate.step import evaluate
    from steps.fine_tune.step import fine_tune
    from steps.promote.step import promote
    from steps.register.step import register

    taught, weights = improved(settings, policy, shards, labels, fingerprint)
    checkpoint = fine_tune(shards, taught, policy, settings.backbone, fingerprint, settings.fine_tune, weights=weights)
    report, page, predictions = evaluate(
        checkpoint, shards, table, labels, policy, settings.backbone.name, settings.annotate.source, settings.evaluate
    )
    version = register(checkpoint, report, predictions, table, policy, fingerprint, settings.register_, settings.ingest)
    precision = settings.retrain.live_precision
    promote(version, report, page, predictions, shards, table, policy, settings.promote, precision, settings.notify)


agentps_training = CheckedPipeline(name="agentps_training", entrypoint=_training, kind=TrainingSettings)
