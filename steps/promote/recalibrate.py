"""Calibration and thresholds of the champion, fitted again on newer posts; its weights stay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from model.checkpoint import load, read_operating_points
from model.errors import DataError
from model.schema import LABEL, POST_ID, SPLIT, TEST, VAL
from model.scorer import Scorer, answer_columns
from steps.evaluate.predictions import calibrated
from steps.evaluate.report import LOGIT, SCORE, EvalReport, build_report
from steps.promote.gate import Decision, Judged, Posts, decide, slices_of
from steps.settings import EvaluateSettings, PromoteSettings
from steps.tables import rows_of

#: Both versions rank the posts alike, so every rank metric is a tie: they differ in how far a score is the
#: probability that it says.
METRIC = "brier_skill"


@dataclass(frozen=True)
class Recalibrated:
    """report, predictions: as those of `evaluate`, on the new posts. decision: of the gate."""

    report: EvalReport
    predictions: pd.DataFrame
    decision: Decision


def recalibrate(
    checkpoint: Path, held: EvalReport, posts: pd.DataFrame, evaluate: EvaluateSettings, promote: PromoteSettings
) -> Recalibrated:
    """Fit on the val posts of `posts`, measure on its test posts, and ask the gate.

    Args:
        checkpoint: the champion's, as registered.
        held: the champion's report.
        posts: see `steps.ingest.posts`.

    Raises:
        DataError: val or test has no labelled positive post.
        ImageError: an image cannot be read any more.
    """
    loaded = load(checkpoint, torch.device("cuda") if torch.cuda.is_available() else None)
    points = read_operating_points(checkpoint)
    scorer, task = Scorer(loaded, points, loaded.info.train.micro_batch), loaded.info.task
    tables = {}
    for split in (VAL, TEST):
        rows = posts[posts[SPLIT] == split].reset_index(drop=True)
        if not (rows[LABEL] == 1).any():
            raise DataError(f"split {split}: none of its {len(rows)} posts has label 1: nothing can be fitted to it")
        answers = scorer.answers(rows)
        table = rows[[POST_ID, SPLIT, LABEL, *task.question_ids]]
        tables[split] = table.assign(**{LOGIT: answers.final_N, **answer_columns(answers, task)})
    val, test, calibration = calibrated(tables[VAL], tables[TEST])
    report = build_report(
        val,
        test,
        task,
        evaluate,
        variant=held.variant,
        seed=held.seed,
        backbone=held.backbone,
        annotator=held.annotator,
        annotated_missing_share=held.annotated_missing_share,
        calibration=calibration,
    )
    judged = test[test[LABEL].notna()]
    policy = promote.model_copy(
        update={"metric": METRIC, "floor": 0.0, "floors": {**promote.floors, promote.metric: promote.floor}}
    )
    decision = decide(
        Judged(scores_N=judged[SCORE].to_numpy(np.float64), report=report),
        Judged(scores_N=points.calibration.apply(judged[LOGIT].to_numpy()), report=held),
        Posts(
            labels_N=(judged[LABEL] == 1).to_numpy(bool),
            slices=slices_of(rows_of(posts, judged[POST_ID].tolist(), "posts")),
        ),
        policy,
    )
    return Recalibrated(report, pd.concat([val, test], ignore_index=True), decision)
