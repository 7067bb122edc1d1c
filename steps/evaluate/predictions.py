"""The predictions table: a checkpoint's answers to the posts of a shard directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from model.agentps import AgentPS
from model.checkpoint import load
from model.checkpoint_info import CheckpointInfo
from model.columns import LOGIT, SCORE
from model.data import Batches, Shards
from model.device import best_device
from model.metrics import Calibration, fit_calibration
from model.prompt import Prompt
from model.schema import LABEL, POST_ID, PROBABILITY, SPLIT, TEST, VAL
from model.scorer import answer_columns, predict_rows
from model.task import Task
from steps.survey import weights_of


def predict_splits(checkpoint: Path, shards: Path) -> tuple[pd.DataFrame, pd.DataFrame, Calibration, CheckpointInfo]:
    """The predictions tables of val and test (see `steps.evaluate.report`), calibrated on val."""
    loaded = load(checkpoint, best_device())
    info = loaded.info
    return *prediction_tables(loaded.model, loaded.prompt, Shards(shards), info.task, info.train.micro_batch), info


def prediction_tables(
    network: AgentPS, prompt: Prompt, shards: Shards, task: Task, micro_batch: int
) -> tuple[pd.DataFrame, pd.DataFrame, Calibration]:
    """The same of a network in memory; its gold labels are those of the shards' posts."""
    batches = Batches(shards, prompt, task)
    tables: dict[str, pd.DataFrame] = {}
    for split in (VAL, TEST):
        rows = batches.rows(split, labelled=False)
        answers = predict_rows(network, batches, rows, micro_batch)
        drawn = {PROBABILITY} & {*shards.posts}
        table = shards.posts.iloc[rows][[POST_ID, SPLIT, LABEL, *task.question_ids, *drawn]].reset_index(drop=True)
        tables[split] = table.assign(**{LOGIT: answers.final_N, **answer_columns(answers, task)})
    return calibrated(tables[VAL], tables[TEST])


def calibrated(val: pd.DataFrame, test: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, Calibration]:
    """The predictions tables of val and test with their scores, by the calibration that is fitted on val."""
    labelled = val[val[LABEL].notna()]
    calibration = fit_calibration(
        labelled[LOGIT].to_numpy(), labelled[LABEL].to_numpy(dtype=np.int64) == 1, weights_of(labelled)
    )
    val, test = (table.assign(**{SCORE: calibration.apply(table[LOGIT].to_numpy())}) for table in (val, test))
    return val, test, calibration
