"""A table of scored posts, in JSON Lines: what `steps.retrain.live` reads where no store is."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.columns import DECISION, ERROR, MODEL_VERSION, SCORE, SCORED_AT, answer_column, probability_column
from model.errors import ConfigError
from model.files import disk_told
from model.schema import POST_ID
from scoring.record import Record, to_row
from steps.ingest.rows import json_object, opened
from steps.retrain.live import read_score_table

logger = logging.getLogger(__name__)

#: How a line of ours begins.
_BEGIN = f'{{"{POST_ID}":'.encode()


class Table:
    """JSON Lines; made where it does not exist. A last line that was cut off is dropped, with a word.

    Raises, in any method:
        ConfigError: it is no JSON Lines file.
        DiskError: the lines could not be written: none of them is in the table.
        ManifestError: it holds rows that are no scores.
    """

    def __init__(self, path: Path, version: str, point: str, schema: pa.Schema) -> None:
        refuse_no_table(str(path))
        answers = [name for name in schema.names if name.startswith((answer_column(""), probability_column("")))]
        self._columns = (POST_ID, SCORE, *answers, ERROR)
        self._path, self._point = path, point
        self._before = _scored_before(path, version)

    def known(self, post_ids: Sequence[str]) -> Mapping[str, str | None]:
        return dict.fromkeys(self._before.intersection(post_ids))

    def keep(self, records: Sequence[Record]) -> None:
        lines = "".join(json.dumps(self._line(record), separators=(",", ":")) + "\n" for record in records)
        if lines:
            _append(self._path, lines.encode())

    def _line(self, record: Record) -> dict[str, Any]:
        row = to_row(record)
        return {name: row.get(name) for name in self._columns} | {
            DECISION: record.decisions.get(self._point),
            MODEL_VERSION: record.model_version,
            SCORED_AT: record.scored_at.isoformat(),
        }


def refuse_no_table(place: str) -> None:
    """Raises: ConfigError where lines cannot be appended there."""
    path = Path(place)
    if path.suffix.lower() not in (".jsonl", ".json"):
        raise ConfigError(
            f"scores {place}: rows are appended to JSON Lines only: name a file that ends in .jsonl, or a store's URL"
        )
    if path.exists() and not path.is_file():  # a pipe would be waited for for ever
        raise ConfigError(f"scores {place}: is no file: name one that ends in .jsonl")


def _scored_before(table: Path, version: str) -> set[str]:
    """The posts that `version` has a score for in the table, which ends with a whole line afterwards."""
    if not table.exists() or not table.stat().st_size:
        return set()
    place, last = _open_end(table)
    cut_off = last != b"" and not _is_row(last)
    before: set[str] = set()
    if not (cut_off and not place and last.startswith(_BEGIN[: len(last)])):  # else it is all there is
        known = read_score_table(table)
        before = set(known.loc[known[MODEL_VERSION] == version, POST_ID])
    if cut_off:  # only now it is sure that the file is a table of scores, not one of somebody else's
        with disk_told(table), table.open("r+b") as file:
            file.truncate(place)
        logger.warning("scores %s: its last line was cut off: it is dropped, and its post scored again", table)
    elif last:
        _append(table, b"\n")
    return before


def _open_end(table: Path) -> tuple[int, bytes]:
    """Where the last line begins, and the line, if it has no end; else the file's size, and nothing."""
    place, last = 0, b""
    with opened(table, "scores") as file:
        for line in file:
            place, last = place + len(last), line
    return (place + len(last), b"") if last.endswith(b"\n") else (place, last)


def _is_row(line: bytes) -> bool:
    try:
        json_object(line)
    except ValueError:
        return False
    return True


def _append(table: Path, lines: bytes) -> None:
    """All of it or nothing; in one write where the disk takes it, so that what others append does not mix with it."""
    with disk_told(table):
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(lines)
                while left:  # a disk that becomes full takes a part, without an error
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
