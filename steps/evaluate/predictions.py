"""The predictions table: a checkpoint's answers to the posts of a shard directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from model.checkpoint import CheckpointInfo, load
from model.data import Batches, Shards
from model.metrics import Calibration, fit_calibration
from model.schema import LABEL, POST_ID, SPLIT, TEST, VAL
from model.scorer import answer_columns, in_chunks, predict
from steps.evaluate.report import LOGIT, SCORE


def predict_splits(checkpoint: Path, shards: Path) -> tuple[pd.DataFrame, pd.DataFrame, Calibration, CheckpointInfo]:
    """The predictions tables of val and test (see `steps.evaluate.report`), calibrated on val."""
    device = torch.device("cuda") if torch.cuda.is_available() else None
    loaded = load(checkpoint, device)
    data = Shards(shards)
    task = loaded.info.task
    batches = Batches(data, loaded.prompt, task)
    tables: dict[str, pd.DataFrame] = {}
    for split in (VAL, TEST):
        rows = batches.rows(split, labelled=False)
        answers = predict(loaded.model, in_chunks(rows, loaded.info.train.micro_batch, batches))
        table = data.posts.iloc[rows][[POST_ID, SPLIT, LABEL, *task.question_ids]].reset_index(drop=True)
        tables[split] = table.assign(**{LOGIT: answers.final_N, **answer_columns(answers, task)})
    return *calibrated(tables[VAL], tables[TEST]), loaded.info


def calibrated(val: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, Calibration]:
    """The predictions tables of val and test with their scores, by the calibration that is fitted on val."""
    labelled = val[val[LABEL].notna()]
    calibration = fit_calibration(labelled[LOGIT].to_numpy(), labelled[LABEL].to_numpy(dtype=np.int64) == 1)
    val, test = (table.assign(**{SCORE: calibration.apply(table[LOGIT].to_numpy())}) for table in (val, test))
    return val, test, calibration
