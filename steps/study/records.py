"""The finished cells of a study: one line of JSON each, sorted by key, in one file."""

from __future__ import annotations

import base64
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from model.errors import DataError
from model.files import write_whole
from steps.locks import locked
from steps.study.cells import Cell


class Record(BaseModel):
    """A finished cell."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    cell: Cell
    #: On test; the names are those of the evaluation report.
    metrics: dict[str, float]
    best_val_average_precision: float
    best_epoch: float
    #: Of the labelled test posts, in the table's order: the place of their score among the distinct scores, 0 the
    #: lowest; uint32, compressed, base64. Every metric of the ranking, and so every interval, follows from it.
    test_ranks: str
    seconds: float
    #: What it was made of, and where: for people, never read by code.
    provenance: dict[str, Any]

    @cached_property
    def ranks(self) -> np.ndarray:
        """float64 (labelled test posts,): ranks in [0, 1], in place of scores."""
        ranks = np.frombuffer(zlib.decompress(base64.b64decode(self.test_ranks)), dtype=np.uint32)
        return ranks / max(int(ranks.max()), 1)


def encoded_ranks(scores: np.ndarray) -> str:
    """`Record.test_ranks` of scores."""
    ranks = np.unique(scores, return_inverse=True)[1].astype(np.uint32)
    return base64.b64encode(zlib.compress(ranks.tobytes(), 9)).decode()


def read_records(path: Path) -> dict[str, Record]:
    """By key; empty where there is no file.

    Raises:
        DataError: a line is no record.
    """
    if not path.exists():
        return {}
    records: dict[str, Record] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = Record.model_validate_json(line)
        except ValidationError as error:
            raise DataError(
                f"{path}, line {number}: not a study's record ({error.errors()[0]['msg']}): take the file from git "
                "again, or remove the line: its cell is then trained again"
            ) from error
        records[record.key] = record
    return records


def add_record(path: Path, record: Record, lock: Path) -> None:
    """Put `record` into the file, beside those that other processes put there.

    Args:
        lock: the lock file of all who write to `path`.
    """
    with locked(lock):
        records = read_records(path) | {record.key: record}
        write_whole(path, "".join(f"{records[key].model_dump_json()}\n" for key in sorted(records)))
