"""The study: `zenml pipeline run pipelines.agentps_study [-c FILE]`."""

from __future__ import annotations

from typing import Any

from model.task import load_task
from pipelines.entry import CheckedPipeline
from pipelines.training import Section, prepare
from steps.settings import load_study_settings


def _study(
    posts: str | None = None,
    task: str | None = None,
    annotator: str | None = None,
    sample: Section | None = None,
    ingest: Section | None = None,
    annotate: Section | None = None,
    validate: Section | None = None,
    backbone: Section | None = None,
    preprocess: Section | None = None,
    fine_tune: Section | None = None,
    evaluate: Section | None = None,
    notify: Section | None = None,
    study: Section | None = None,
) -> None:
    """The parameters are the keys of `configs/default.yaml` and `configs/study.yaml`; None: as it is there."""
    given: dict[str, Any] = dict(locals())
    settings = load_study_settings(given)
    policy = load_task(settings.task)
    _fingerprint, table, labels, shards = prepare(settings, policy)
    from steps.study.step import study as study_step

    study_step(
        shards,
        table,
        labels,
        policy,
        settings.backbone,
        settings.fine_tune,
        settings.evaluate,
        settings.posts,
        settings.study,
    )


agentps_study = CheckedPipeline(name="agentps_study", entrypoint=_study, check=load_study_settings)
