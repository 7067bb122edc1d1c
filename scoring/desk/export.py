"""The audit trail, to be taken along: CSV for spreadsheets, whose formulas are defused, and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select

from scoring.desk.work import Desk
from steps.retrain.reviewed import REVIEWS
from steps.retrain.stored import HISTORY

_PART = 2_000
#: What a spreadsheet takes for a formula, in narrow and in wide characters, or skips before one.
_FORMULA = tuple("=+-@\t\r\n|%＝＋－＠")


def columns(desk: Desk) -> pa.Schema:
    text, number = pa.string(), pa.int64()
    fields = [("id", number), ("at", pa.timestamp("us", "UTC")), ("reviewer", text), ("kind", text), ("post_id", text)]
    fields += [("model_name", text), ("model_version", text), ("policy_version", text), ("score", pa.float64())]
    fields += [("threshold", pa.float64()), ("action", text), ("reasons", text), ("label", number)]
    for question in desk.task.question_ids:
        fields += [(f"model_{question}", text), (f"review_{question}", text)]
    return pa.schema([*fields, ("note", text), ("undoes", number)])


def rows(desk: Desk, after: int = 0) -> Iterator[dict[str, Any]]:
    """Each review, the oldest first, with what the model and the policy had said."""
    classes = {question.id: question.classes for question in desk.task.questions}
    shown = (HISTORY.c.score, HISTORY.c.action, HISTORY.c.reasons, HISTORY.c.answers.label("model_answers"))
    query = select(REVIEWS, *shown).join(HISTORY, HISTORY.c.id == REVIEWS.c.history_id)
    query = query.where(REVIEWS.c.model_name == desk.model_name).order_by(REVIEWS.c.id).limit(_PART)
    names = columns(desk).names
    while True:
        found = [row._mapping for row in desk.rows(query.where(REVIEWS.c.id > after))]
        for row in found:
            cells = dict(row) | {"reasons": "; ".join(row["reasons"] or ())}
            cells["threshold"] = desk.decided_at(row["model_version"], row["reasons"])
            for name in classes:
                index = row["answers"].get(name)
                cells[f"review_{name}"] = None if index is None else classes[name][index]
                cells[f"model_{name}"] = row["model_answers"].get(name, {}).get("answer")
            yield {name: cells[name] for name in names}
        if len(found) < _PART:
            return
        after = found[-1]["id"]


def defused(value: Any) -> Any:
    """A text that begins as a formula gets an apostrophe, which a spreadsheet does not show."""
    if isinstance(value, str) and value.lstrip(" \u00a0").startswith(_FORMULA):
        return f"'{value}"
    return value


def as_csv(desk: Desk) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(columns(desk).names)
    for number, row in enumerate(rows(desk), 1):
        writer.writerow([cell.isoformat() if hasattr(cell, "isoformat") else defused(cell) for cell in row.values()])
        if number % 200 == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


class _Passed(io.RawIOBase):
    """A file that is handed on while it is written: only what was not taken yet is in memory."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._at += len(self._parts[-1])
        return len(self._parts[-1])

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def as_parquet(desk: Desk) -> Iterator[bytes]:
    schema, file, found = columns(desk), _Passed(), rows(desk)
    with pq.ParquetWriter(file, schema) as writer:
        while part := list(islice(found, _PART)):
            writer.write_table(pa.Table.from_pylist(part, schema))
            yield file.taken()
    yield file.taken()
