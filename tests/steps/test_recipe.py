"""A change of form costs no training, and a change of what an option means is not taken for one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from model.data import Shards
from model.schema import POST_ID, SPLIT, TRAIN
from model.settings import TINY, BackboneSettings, LoraSettings, SequenceSettings, TrainSettings
from model.task import Question
from steps import recipe
from steps.fine_tune.backbone import fingerprint
from steps.fine_tune.launch import TrainingJob, job_directory
from steps.paths import REPOSITORY
from steps.study.cells import Cell, cells_of_tables
from steps.study.run import Study
from steps.study.settings import load_study_settings
from tests.support.study import inputs_of, record_of
from tests.support.tiny import TASK

#: Edits of a copy: files that move, and what is replaced in every Python file.
MOVES = {"model/loss.py": "model/objective.py", "steps/study/labels.py": "steps/study/drawn.py"}
RENAMES = {
    r"(from \.|model\.)loss\b": r"\1objective",
    r"study\.labels\b": "study.drawn",
    r"\btask_loss\b": "whole_loss",
    r"\btrain_cell\b": "train_one",
    # an option that is new, and whose default is what was done before
    r"(class TrainSettings\(Chosen\):\n(?:.*\n)*?)(    variant: Variant\n)": r"\1    novelty: int = 0\n\2",
}
#: Run in the copy: what would be trained there, and by which names.
ASK = """
import json, sys
from pathlib import Path
import pandas as pd
from model.settings import TINY, BackboneSettings
from steps.fine_tune.backbone import fingerprint
from steps.fine_tune.launch import TrainingJob, job_directory
from steps.study.settings import load_study_settings
from steps.study.cells import cells_of_tables
from steps.study.run import Study
from steps.study.train import Inputs, train_one

given = json.loads(sys.argv[1])
inputs = Inputs.model_validate(given["inputs"])
study = Study(inputs, Path(given["records"]))
cells = [cell for of_table in cells_of_tables(load_study_settings({}).study, inputs.task).values() for cell in of_table]
print(json.dumps({
    "to train": sum(study.record(cell) is None for cell in cells),
    "cells": len(set(cells)),
    "training": job_directory(TrainingJob.model_validate(given["job"]), pd.read_parquet(inputs.labels), Path()).name,
    "backbone": fingerprint(BackboneSettings(name=TINY)),
}))
"""


def test_a_moved_file_a_renamed_function_and_a_new_option_leave_nothing_to_train(
    tiny_shards: Shards, tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    labels = tiny_shards.posts[tiny_shards.posts[SPLIT] == TRAIN][[POST_ID, *TASK.question_ids]]
    labels.to_parquet(tmp_path / "labels.parquet", index=False)
    inputs = inputs_of(tiny_shards, tiny_backbone, tmp_path, backbone_id=fingerprint(tiny_backbone))
    job = TrainingJob(
        task=TASK,
        train=inputs.train,
        backbone=tiny_backbone,
        resolved_backbone=tiny_backbone,
        shards=tiny_shards.root,
        provenance={},
    )
    records, study = tmp_path / "records.jsonl", Study(inputs, tmp_path / "records.jsonl")
    cells = {cell for of_table in cells_of_tables(load_study_settings({}).study, TASK).values() for cell in of_table}
    records.write_text("".join(f"{record_of(cell, study.key(cell)).model_dump_json()}\n" for cell in cells))

    copy = tmp_path / "copy"
    for part in ("model", "steps", "configs"):
        shutil.copytree(REPOSITORY / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    edit(copy)
    given = {"inputs": inputs.model_dump(mode="json"), "job": job.model_dump(mode="json"), "records": str(records)}
    command = [sys.executable, "-c", ASK, json.dumps(given)]
    found = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1]) == {
        "to train": 0,
        "cells": len(cells),
        "training": job_directory(job, labels, Path()).name,
        "backbone": fingerprint(BackboneSettings(name=TINY)),
    }


def edit(root: Path) -> None:
    for old, new in MOVES.items():
        (root / old).rename(root / new)
    edited = dict.fromkeys(RENAMES, 0)
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in RENAMES.items():
            text, count = re.subn(pattern, replacement, text)
            edited[pattern] += count
        path.write_text(text, encoding="utf-8")
    assert all(edited.values()), f"an edit has nothing to do: {edited}"


@pytest.mark.parametrize(
    ("settings", "defaults"),
    [
        (TrainSettings, {"head_dropout": 0.0, "loader_workers": 0, "processes": 1}),
        (LoraSettings, {"dropout": 0.0}),
        (SequenceSettings, {"repeat_frames": True, "frame_pooling": 2}),
        (BackboneSettings, {"revision": None, "quantization": None}),
        (Cell, {"method": "plain"}),
        (Question, {"classes": ("no", "yes"), "positive": None, "answer": "count", "rule": None, "weight": 1.0}),
    ],
)
def test_a_default_that_keys_leave_out_stays_what_it_was(settings: type[BaseModel], defaults: dict[str, Any]) -> None:
    """Keys hold what differs from the defaults. To change one of these, raise `recipe.TRAINING`, and change it here."""
    assert recipe.TRAINING == 1
    assert {name: settings.model_fields[name].default for name in defaults} == defaults
