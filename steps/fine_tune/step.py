"""Step 5: fine-tune the backbone on final and process labels (paper 2.1 and 3.1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import mlflow
import pandas as pd
from zenml import log_metadata, step
from zenml.artifact_stores import BaseArtifactStore, LocalArtifactStore
from zenml.client import Client
from zenml.logger import get_logger

from materializers.directory import CheckpointDirectory, DirectoryMaterializer, ShardDirectory
from model.schema import LABEL_SOURCE
from model.settings import OWN, TINY, BackboneSettings, TrainSettings
from model.task import Task
from steps.caching import depends_on
from steps.paths import home
from steps.register import registry

if TYPE_CHECKING:
    from steps.fine_tune.launch import TrainingJob
    from steps.fine_tune.stored import Store

logger = get_logger(__name__)


@step(
    experiment_tracker=True,
    output_materializers={"checkpoint": DirectoryMaterializer},
    # the registry is where `start` lies
    cache_policy=depends_on(__name__, without=["steps.register.registry"]),
)
def fine_tune(
    shards: ShardDirectory,
    labels: pd.DataFrame,
    task: Task,
    backbone: BackboneSettings,
    data_fingerprint: str,
    settings: TrainSettings,
    model_name: str | None = None,
    start: str | None = None,
    weights: dict[str, float] | None = None,
) -> Annotated[CheckpointDirectory, "checkpoint"]:
    """The weights of the best epoch on val. A killed training goes on from its last checkpoint.

    `start`: the version of the registered model `model_name` whose weights are trained further; None: fresh heads.
    `weights`: the questions' weights in the loss; None: the task's.
    """
    from steps.fine_tune.launch import run

    job = _job(shards, labels, task, backbone, data_fingerprint, settings, model_name, start)
    job = job.model_copy(update={"weights": weights})
    _tell_memory(job)
    mlflow.log_params({"task": task.name, "backbone": backbone.name, **settings.model_dump(mode="json")})
    directory, result = run(job, labels, home() / "work" / "fine_tune", _store(Client().active_stack.artifact_store))
    figures = {
        "best_val_average_precision": result.best_val_average_precision,
        "best_epoch": result.best_epoch,
        "resumed_from_step": float(result.resumed_from_step),
    }
    mlflow.log_metrics(figures)
    log_metadata({**figures})
    logger.info(
        "Fine-tuned %s: val average precision %.3f at epoch %g%s",
        settings.variant,
        result.best_val_average_precision,
        result.best_epoch,
        f" (resumed from step {result.resumed_from_step})" if result.resumed_from_step else "",
    )
    return CheckpointDirectory(directory)


@step(cache_policy=depends_on(__name__, without=["steps.register.registry"]))
def improve_labels(
    shards: ShardDirectory,
    labels: pd.DataFrame,
    task: Task,
    backbone: BackboneSettings,
    data_fingerprint: str,
    settings: TrainSettings,
    model_name: str | None = None,
    start: str | None = None,
) -> tuple[Annotated[pd.DataFrame, "improved_labels"], Annotated[dict[str, float], "question_weights"]]:
    """The annotator's labels, improved by `settings.labels` with people's; and the questions' weights in the loss.

    Part of a pipeline where `settings.labels` is not `plain`. Each training that a method takes has a folder of its
    own, from which it resumes. `start`: as of `fine_tune`.
    """
    from steps.fine_tune.improve import improved

    job = _job(shards, labels, task, backbone, data_fingerprint, settings, model_name, start)
    _tell_memory(job)
    made, weights, changed = improved(
        job, labels, home() / "work" / "fine_tune", _store(Client().active_stack.artifact_store)
    )
    log_metadata({"method": settings.labels, **{f"changed_{id_}": share for id_, share in changed.items()}})
    shares = ", ".join(f"{id_} {share:.1%}" for id_, share in changed.items())
    logger.info("Labels improved by %s; changed: %s", settings.labels, shares)
    return made, weights


def _store(artifacts: BaseArtifactStore) -> Store | None:
    """The artifact store, as processes on other machines reach it; None: it is a folder of this one."""
    from steps.fine_tune.stored import Store

    if isinstance(artifacts, LocalArtifactStore):
        return None
    # ZenML's keys, or its connector's, if it has some; else each machine has its own
    return Store(artifacts.path, getattr(getattr(artifacts, "filesystem", None), "storage_options", {}))


def _tell_memory(job: TrainingJob) -> None:
    """Warn of a training that this machine will probably not hold."""
    from model.data import Shards
    from steps.fine_tune.size import too_large, work

    if job.backbone.name in (TINY, OWN) or job.train.engine == "ray":  # it fits everywhere; the machines are others
        return
    sequence = Shards(job.shards).sequence
    try:
        found = work(job.resolved_backbone, sequence, job.train, job.task, sequence.frames)
    except RuntimeError as error:  # torch's, of a backbone that cannot run without content: no reason not to train
        logger.warning("How much memory the training takes is not known beforehand: %s", error)
        return
    if (warning := too_large(found, job.train)) is not None:
        logger.warning("%s", warning)


def _job(
    shards: ShardDirectory,
    labels: pd.DataFrame,
    task: Task,
    backbone: BackboneSettings,
    data_fingerprint: str,
    settings: TrainSettings,
    model_name: str | None,
    start: str | None,
) -> TrainingJob:
    from steps.fine_tune.backbone import resolve
    from steps.fine_tune.launch import TrainingJob

    begun = None if model_name is None or start is None else registry.fetch(registry.get(model_name, start), task)
    return TrainingJob(
        task=task,
        train=settings,
        backbone=backbone,
        resolved_backbone=resolve(backbone, home(), shards.path),
        shards=shards.path,
        provenance={
            "data": data_fingerprint,
            "labels": sorted(labels[LABEL_SOURCE].dropna().unique().tolist()),
            **({} if start is None else {"start": f"{model_name} version {start}"}),
        },
        start=begun,
    )
