"""What the study's tests give to cells, and the record of one that was never trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.data import Shards
from model.settings import BackboneSettings
from steps.settings import load_settings
from steps.study.cells import Cell
from steps.study.records import Record
from steps.study.train import Inputs
from tests.support.tiny import TASK, train_settings


def inputs_of(shards: Shards, backbone: BackboneSettings, folder: Path, **changes: Any) -> Inputs:
    """Of the tiny task; the annotator's labels are `folder/labels.parquet`."""
    values: dict[str, Any] = {
        "shards": shards.root,
        "labels": folder / "labels.parquet",
        "task": TASK,
        "train": train_settings(),
        "backbone": backbone,
        "backbone_id": "tiny",
        "evaluate": load_settings({}).evaluate,
        "gold_share": 0.5,
        "work": folder / "work",
    }
    return Inputs.model_validate(values | changes)


def record_of(cell: Cell, key: str, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "metrics": {},
        "best_val_average_precision": 0.5,
        "best_epoch": 1,
        "test_ranks": "",
        "seconds": 1,
        "provenance": {},
    }
    return Record.model_validate({"key": key, "cell": cell, **values, **changes})
