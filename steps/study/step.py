"""The study's step: every cell trained once, then the tables."""

from __future__ import annotations

from typing import Annotated

import mlflow
import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger
from zenml.types import HTMLString

from materializers.directory import ShardDirectory
from model.data import Shards
from model.files import replacing
from model.settings import OWN, BackboneSettings, TrainSettings
from model.task import Task
from steps import recipe
from steps.fine_tune.backbone import fingerprint, resolve
from steps.paths import REPOSITORY, home
from steps.publish import publish
from steps.settings import EvaluateSettings
from steps.study.baselines import baselines
from steps.study.cells import Cell, cells_of_tables
from steps.study.records import Record
from steps.study.report import build
from steps.study.run import Study, describe
from steps.study.settings import StudySettings
from steps.study.train import Inputs

logger = get_logger(__name__)


@step(experiment_tracker=True, enable_cache=False)  # what is finished is in the records
def study(
    shards: ShardDirectory,
    posts: pd.DataFrame,
    labels: pd.DataFrame,
    task: Task,
    backbone: BackboneSettings,
    train: TrainSettings,
    evaluate: EvaluateSettings,
    source: str,
    settings: StudySettings,
) -> Annotated[HTMLString, "results"]:
    """The report's page; the same is written to `settings.output` as Markdown, JSON and plots."""
    work = home() / "work" / "study"
    work.mkdir(parents=True, exist_ok=True)
    # named by its content: a study of other labels at the same time must not take their place
    annotated = work / f"labels-{recipe.table_digest(labels)[:16]}.parquet"
    with replacing(annotated) as part:
        labels.to_parquet(part, index=False)
    resolved = resolve(backbone, home(), shards.path)
    inputs = Inputs(
        shards=shards.path,
        labels=annotated,
        task=task,
        train=train,
        backbone=resolved,
        backbone_id=fingerprint(resolved if backbone.name == OWN else backbone),
        evaluate=evaluate,
        gold_share=settings.gold_share,
        work=work,
    )
    output = REPOSITORY / settings.output
    runner = Study(inputs, output / "records.jsonl")
    planned = cells_of_tables(settings, task)
    cells = list(dict.fromkeys(cell for table in planned.values() for cell in table))
    trained = runner.run(cells, settings.workers)
    report = build(
        planned,
        runner.record,
        Shards(shards.path).posts,
        task,
        settings,
        baselines(posts, task),
        f"{source}, {len(posts):,} in all",
    )
    report.write(output)
    page = publish(report.html(), "study", "results.html")
    _log_cells(cells, runner)
    log_metadata({"cells": len(cells), "trained_now": trained})
    logger.info("%d cells, %d trained now. Results: %s", len(cells), trained, output / "results.md")
    return page


def _log_cells(cells: list[Cell], runner: Study) -> None:
    """One nested MLflow run per cell, so that MLflow's own comparison works on them."""
    for cell in cells:
        record: Record | None = runner.record(cell)
        if record is not None:
            with mlflow.start_run(run_name=describe(cell), nested=True):
                mlflow.log_params(cell.model_dump(mode="json"))
                mlflow.log_metrics({f"test_{name}": value for name, value in record.metrics.items()})
                mlflow.log_metric("best_val_average_precision", record.best_val_average_precision)
