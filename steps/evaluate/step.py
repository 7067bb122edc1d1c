"""Step 6: recall at precision and the rest of the report, on the test split."""

from __future__ import annotations

import json
from typing import Annotated

import mlflow
import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger
from zenml.types import HTMLString

from materializers.directory import CheckpointDirectory, ShardDirectory
from model.schema import IMAGES, SPLIT, TRAIN
from model.settings import OWN
from model.task import Task
from steps.caching import depends_on
from steps.evaluate.report import EvalReport, build_report
from steps.publish import publish
from steps.settings import EvaluateSettings

logger = get_logger(__name__)


@step(experiment_tracker=True, cache_policy=depends_on(__name__))
def evaluate(
    checkpoint: CheckpointDirectory,
    shards: ShardDirectory,
    posts: pd.DataFrame,
    labels: pd.DataFrame,
    task: Task,
    backbone: str,
    annotator: str,
    settings: EvaluateSettings,
) -> tuple[
    Annotated[EvalReport, "report"], Annotated[HTMLString, "report_page"], Annotated[pd.DataFrame, "predictions"]
]:
    """The report, the same as one HTML page, and the scores of val and test that it was made of."""
    from steps.evaluate.page import render
    from steps.evaluate.predictions import predict_splits

    val, test, calibration, info = predict_splits(checkpoint.path, shards.path)
    report = build_report(
        val,
        test,
        task,
        settings,
        variant=info.train.variant,
        seed=info.train.seed,
        backbone=backbone,
        annotator=annotator,
        annotated_missing_share={q: float(labels[q].isna().mean()) if len(labels) else 1.0 for q in task.question_ids},
        calibration=calibration,
    )
    note = ""
    if backbone == OWN:
        from steps.fine_tune.size import next_profile

        train = posts[posts[SPLIT] == TRAIN]
        note = next_profile(task, len(train), float(train[IMAGES].map(len).mean()))
        logger.warning("%s", note)
    page = publish(render(report, val, test, posts, task, settings, note), "evaluation", "report.html")
    mlflow.log_metrics(report.mlflow_metrics())
    mlflow.log_dict(json.loads(report.model_dump_json()), "evaluation/report.json")
    log_metadata({name: metric.value for name, metric in report.metrics.items() if metric.value is not None})
    return report, page, pd.concat([val, test], ignore_index=True)
