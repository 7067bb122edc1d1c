"""Predictions of MENU's posts, and the report on them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from model.metrics import Calibration
from model.settings import Variant
from steps.evaluate.report import EvalReport, build_report
from steps.settings import EvaluateSettings
from tests.support.tasks import MENU


def predictions(n: int, seed: int, split: str, answers: bool = True) -> pd.DataFrame:
    """A predictions table of a calibrated model; every tenth post lacks the label of `spicy`."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    frame = pd.DataFrame(
        {
            "post_id": [f"{split}{i}" for i in range(n)],
            "split": split,
            "label": pd.array((rng.random(n) < scores).astype(int), dtype="Int8"),
            "logit": np.log(scores / (1 - scores)),
            "score": scores,
            "spicy": pd.array([pd.NA if i % 10 == 0 else i % 2 for i in range(n)], dtype="Int8"),
            "course": pd.array([i % 3 for i in range(n)], dtype="Int8"),
        }
    )
    if answers:
        for question, probability in zip(MENU.questions, (0.9, 0.7), strict=True):
            frame[f"answer_{question.id}"] = question.classes[-1]
            frame[f"probability_{question.id}"] = probability
    return frame


def report_of(val: pd.DataFrame, test: pd.DataFrame, variant: Variant, settings: EvaluateSettings) -> EvalReport:
    return build_report(
        val, test, MENU, settings, variant=variant, seed=1, backbone="tiny", annotator="human",
        annotated_missing_share={"spicy": 0.25, "course": 0.0}, calibration=Calibration(scale=2.0, bias=0.5),
    )  # fmt: skip
