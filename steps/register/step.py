"""Step 7: the checkpoint becomes a model version in MLflow's registry."""

from __future__ import annotations

from typing import Annotated

import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger

from materializers.directory import CheckpointDirectory
from model.task import Task
from steps.caching import depends_on
from steps.evaluate.report import EvalReport
from steps.register.history import challenge
from steps.register.registry import RegisteredVersion, example_of
from steps.register.registry import register as register_checkpoint
from steps.settings import IngestSettings, RegisterSettings

logger = get_logger(__name__)


@step(experiment_tracker=True, cache_policy=depends_on(__name__))
def register(
    checkpoint: CheckpointDirectory,
    report: EvalReport,
    predictions: pd.DataFrame,
    posts: pd.DataFrame,
    task: Task,
    data_fingerprint: str,
    settings: RegisterSettings,
    ingest: IngestSettings,
    profile: pd.DataFrame | None = None,
) -> Annotated[RegisteredVersion, "version"]:
    """The version, alias `challenger`; a checkpoint that is registered already keeps its version.

    `ingest`: what it let into training is what the version scores.
    `profile`: of the training posts, which later retrainings compare fresh posts with.
    """
    version, is_new = register_checkpoint(
        checkpoint.path,
        report,
        predictions,
        task,
        example_of(posts),
        name=settings.model_name(task),
        tags={
            "agentps.variant": report.variant,
            "agentps.annotator": report.annotator,
            "agentps.data": data_fingerprint,
        },
        profile=profile,
        limits=ingest.limits,
        post_limits=ingest.post_limits,
        posts=posts,
    )
    challenge(version)
    log_metadata({"name": version.name, "version": version.version, "new": is_new})
    logger.info("%s %s version %s", "Registered" if is_new else "Found", version.name, version.version)
    return version
