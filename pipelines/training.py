"""The training pipeline: `zenml pipeline run agentps_training [-c FILE]`.

Its steps are imported when a run begins: what is wrong with a config is told before that, and the embedded sample is
drawn meanwhile.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from model.task import Task, load_task
from pipelines.entry import CheckedPipeline
from steps.ingest import ahead
from steps.ingest.posts import manifest_fingerprint
from steps.ingest.rows import absolute
from steps.ingest.sample import render_sample, sample_fingerprint
from steps.paths import home
from steps.settings import SAMPLE, TrainingSettings, load_settings

Section = dict[str, Any]


def prepare(
    settings: TrainingSettings, policy: Task, root: str | None = None, fingerprint: str = ""
) -> tuple[str, Any, Any, Any]:
    """The part of the path that every training shares, from the manifest to shards and labels.

    Args:
        root, fingerprint: of a manifest that retraining wrote: the folder that its images are named from, and its own.

    Returns:
        The data's fingerprint, and the artifacts `posts`, `labels` and `shards`.
    """
    if settings.posts == SAMPLE:
        ahead.begin(partial(render_sample, settings.sample, home()))
        source, fingerprint = SAMPLE, sample_fingerprint(settings.sample)
    else:
        source = absolute(settings.posts)
        fingerprint = fingerprint or manifest_fingerprint(source)
    from steps.annotate.step import annotate as annotate_step
    from steps.ingest.step import ingest as ingest_step
    from steps.preprocess.step import preprocess as preprocess_step
    from steps.validate.step import validate as validate_step

    table, _rejects = ingest_step(source, fingerprint, policy, settings.sample, settings.ingest, root)
    labels, _page = annotate_step(table, policy, settings.annotate, settings.sample)
    validate_step(table, labels, policy, settings.validate_, settings.ingest)
    shards = preprocess_step(table, policy, settings.backbone, settings.preprocess, settings.ingest, after=["validate"])
    return fingerprint, table, labels, shards


def _training(
    posts: str | None = None,
    task: str | None = None,
    annotator: str | None = None,
    variant: str | None = None,
    seed: int | None = None,
    sample: Section | None = None,
    ingest: Section | None = None,
    annotate: Section | None = None,
    validate: Section | None = None,
    backbone: Section | None = None,
    preprocess: Section | None = None,
    fine_tune: Section | None = None,
    evaluate: Section | None = None,
    register: Section | None = None,
    promote: Section | None = None,
    retrain: Section | None = None,
    notify: Section | None = None,
) -> None:
    """The parameters are the keys of `configs/default.yaml`; None: as it is there."""
    settings = load_settings(dict(locals()))
    policy = load_task(settings.task)
    fingerprint, table, labels, shards = prepare(settings, policy)
    from steps.evaluate.step import evaluate as evaluate_step
    from steps.fine_tune.step import fine_tune as fine_tune_step
    from steps.promote.step import promote as promote_step
    from steps.register.step import register as register_step

    checkpoint = fine_tune_step(shards, labels, policy, settings.backbone, fingerprint, settings.fine_tune)
    report, page, predictions = evaluate_step(
        checkpoint, shards, table, labels, policy, settings.backbone.name, settings.annotator_name, settings.evaluate
    )
    version = register_step(checkpoint, report, predictions, table, policy, fingerprint, settings.register_)
    promote_step(version, report, page, predictions, shards, table, policy, settings.promote)


agentps_training = CheckedPipeline(name="agentps_training", entrypoint=_training, check=load_settings)
