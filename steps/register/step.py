"""Step 7: the checkpoint becomes a model version in MLflow's registry."""

from __future__ import annotations

from typing import Annotated

import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger

from materializers.directory import CheckpointDirectory
from model.schema import IMAGES, SPLIT, TEST, TEXT, TITLE
from model.task import Task
from steps.caching import depends_on
from steps.evaluate.report import EvalReport
from steps.register.registry import RegisteredVersion
from steps.register.registry import register as register_checkpoint
from steps.settings import RegisterSettings

logger = get_logger(__name__)


def _example(posts: pd.DataFrame) -> pd.DataFrame:
    """One post of the test split, its images as paths: what the pyfunc takes."""
    row = posts[posts[SPLIT] == TEST].iloc[[0]][[TITLE, TEXT, IMAGES]].reset_index(drop=True)
    row[IMAGES] = row[IMAGES].map(lambda images: list(map(str, images)))
    return row


@step(
    experiment_tracker=True,
    cache_policy=depends_on("steps/register", "model"),
)
def register(
    checkpoint: CheckpointDirectory,
    report: EvalReport,
    posts: pd.DataFrame,
    task: Task,
    data_fingerprint: str,
    settings: RegisterSettings,
) -> Annotated[RegisteredVersion, "version"]:
    """The version, alias `challenger`; a checkpoint that is registered already keeps its version."""
    version, is_new = register_checkpoint(
        checkpoint.path,
        report,
        task,
        _example(posts),
        name=settings.name or f"agentps-{task.name}",
        tags={
            "agentps.task": f"{task.name}:{task.version}:{task.fingerprint}",
            "agentps.variant": report.variant,
            "agentps.annotator": report.annotator,
            "agentps.data": data_fingerprint,
        },
    )
    log_metadata({"name": version.name, "version": version.version, "new": is_new})
    logger.info("%s %s version %s", "Registered" if is_new else "Found", version.name, version.version)
    return version
