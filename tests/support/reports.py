"""A report of a model that nobody trained."""

from __future__ import annotations

from typing import Any

from model.metrics import Calibration
from steps.evaluate.report import EvalReport
from tests.support.tiny import TASK


def made_up(**changes: Any) -> EvalReport:
    values: dict[str, Any] = {
        "task": TASK.name,
        "task_fingerprint": TASK.fingerprint,
        "variant": "agentps",
        "seed": 0,
        "backbone": "tiny",
        "annotator": "human",
        "n_posts": 10,
        "n_positive": 4,
        "n_unlabelled": 0,
        "n_val": 10,
        "n_val_unlabelled": 0,
        "metrics": {},
        "operating_points": {},
        "f1_threshold": 0.5,
        "calibration": Calibration(),
        "missing_share": {},
        "annotated_missing_share": {},
    }
    return EvalReport.model_validate(values | changes)
