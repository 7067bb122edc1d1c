"""The recipe: the version of what is computed. Finished trainings are known by it, and not by their source code.

The records of the study, the folder of a killed training and the tiny backbone are named after the recipe, the data and
the options. So a file that is moved, a function that is renamed or a new option whose default is what was done before
costs no training.

Raise a version by hand, in the same commit, where results are meant to change: other frames, another network, loss,
optimizer, order of the posts, formula of a metric, or another default of an option. Everything is then trained anew.
What nobody means is caught by measurement: `tests/steps/study/test_small_cell.py` trains a small cell, and fails where
its losses or metrics differ by more than float noise from those that are committed beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel

from model.data import FRAMES, TEXT_IDS, Shards
from model.schema import LABEL, POST_ID, PROBABILITY, SPLIT
from model.task import Task

#: From a post's shards and labels to trained weights and their metrics: `model/`, `steps/evaluate/`, `steps/study/`.
TRAINING = 1
#: Beside it, of trainings in several processes: how the posts are shared among them. 1 trained some posts of an epoch's
#: begin twice where the processes did not share them evenly.
SEVERAL = 2
#: Beside it, of cells of the method `relabelled`. 1 made the labels anew twice, each time by a training from nothing.
RELABELLED = 2
#: Options that say where a training runs, and how fast, but not what comes out.
WHERE = frozenset({"engine", "least_processes"})
#: From the sample's texts and images to the tiny backbone: `model/tiny.py`, `steps/ingest/sample.py`.
TINY_BACKBONE = 1


def options(settings: BaseModel, *, without: Collection[str] = ()) -> dict[str, Any]:
    """What differs from the defaults: a new option changes no key where it is left alone."""
    return settings.model_dump(mode="json", exclude_defaults=True, exclude=set(without))


def key(version: int, **parts: Any) -> str:
    """16 hexadecimal digits that name what follows from this version and these parts (JSON values)."""
    canonical = json.dumps({"recipe": version, **parts}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def table_digest(table: pd.DataFrame) -> str:
    """Names the content of a table, whose cells may be lists."""
    # Lists (frames, token ids) as text: pandas hashes no lists.
    plain = table.map(lambda cell: cell if np.isscalar(cell) or cell is pd.NA or cell is None else repr(list(cell)))
    rows = pd.util.hash_pandas_object(plain.astype("string"), index=False)
    return hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()


def shards_digest(shards: Shards, task: Task) -> dict[str, Any]:
    """Names what a training reads of shards: their posts, their images and the form of the sequence."""
    columns = [POST_ID, SPLIT, LABEL, *task.question_ids, FRAMES, TEXT_IDS]
    columns += [PROBABILITY] if PROBABILITY in shards.posts else []  # the best epoch depends on it
    return {
        "posts": table_digest(shards.posts[columns]),
        "images": shards.images_sha256,
        "sequence": options(shards.sequence),
    }
