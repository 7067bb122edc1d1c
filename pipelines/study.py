"""The study: `zenml pipeline run pipelines.agentps_study [-c FILE]`."""

from __future__ import annotations

from typing import Any

from model.task import load_task
from pipelines.entry import CheckedPipeline
from pipelines.training import prepare
from steps.study.settings import StudyRunSettings, load_study_settings


def _study(options: dict[str, Any] | None = None) -> None:
    """`options`: laid over `configs/study.yaml`, laid over `configs/default.yaml`, key by key."""
    settings = load_study_settings(options or {})
    policy = load_task(settings.task)
    _fingerprint, table, labels, shards = prepare(settings, policy)
    from steps.study.step import study

    options_of = (settings.backbone, settings.fine_tune, settings.evaluate, settings.posts, settings.study)
    study(shards, table, labels, policy, *options_of)


agentps_study = CheckedPipeline(name="agentps_study", entrypoint=_study, kind=StudyRunSettings)
