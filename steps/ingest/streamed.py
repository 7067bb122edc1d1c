"""A manifest of any size, read from any place on: what `rows` reads whole, in memory that does not grow with the file.

Of Parquet the texts of one row group are in memory. What `rows` stops at in a row is here the row's own fault; what is
wrong with the file as a whole is an error here, too.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from model.errors import ManifestError
from model.schema import IMAGES
from steps.ingest.rows import (
    FileError,
    as_parquet,
    as_written,
    json_object,
    json_value,
    lines_of,
    next_line,
    open_parquet,
    opened,
    refuse_expanded,
    refuse_twice,
    size_of,
)

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
#: Rows of a Parquet file that are in memory together.
_BATCH = 256
#: Rows that are read and dropped rather than opening the file again: a row group is read from its begin on.
_NEAR = 100_000


@dataclass(frozen=True)
class StreamedRow:
    """
    place: behind the row, in bytes; of Parquet, in rows. number: as `rows` counts. cells: None where it is no row.
    fault: why.
    """

    place: int
    number: int
    cells: dict[str, Any] | None
    fault: str = ""


def stream(source: str | Path, columns: Collection[str], place: int = 0, number: int = 0) -> Iterator[StreamedRow]:
    """The rows behind a place, of each the named columns that it has.

    Args:
        place, number: of the last row that is not wanted; 0, 0: all are.

    Raises:
        ManifestError: the file cannot be read, has no such suffix, or two columns of one name.
    """
    suffix = Path(str(source)).suffix.lower()
    if suffix not in SUFFIXES:
        raise ManifestError(f"manifest {source}: suffix {suffix!r}; one of {', '.join(SUFFIXES)} is expected")
    read = {".parquet": _parquet, ".csv": _csv}.get(suffix, _jsonl)
    with opened(source, "manifest") as file:
        yield from read(file, columns, place, number)


class Reader:
    """Parts of manifests. The next part costs no more than its own rows, wherever the format allows it."""

    def __init__(self, columns: Collection[str]) -> None:
        self._columns = columns
        self._source, self._place = "", 0
        self._rows: Iterator[StreamedRow] = iter(())

    def rows(self, source: str, place: int, number: int, count: int) -> Iterator[StreamedRow]:
        """So many rows behind a place; fewer where the file ends.

        Raises:
            ManifestError: as `stream`.
        """
        near = place - self._place if source.lower().endswith(".parquet") else 0
        if source != self._source or not 0 <= near <= _NEAR or (not near and place != self._place):
            self._rows, near = stream(source, self._columns, place, number), 0
        self._source = source
        for _ in range(near):
            next(self._rows, None)
        self._place = place
        for row in islice(self._rows, count):
            self._place = row.place
            yield row


def _jsonl(file: IO[bytes], columns: Collection[str], place: int, number: int) -> Iterator[StreamedRow]:
    for at, behind, line in lines_of(file, place, number + 1):
        try:
            row = json_object(line)
        except ValueError as error:
            yield StreamedRow(behind, at, None, str(error))
        else:
            yield StreamedRow(behind, at, {name: row[name] for name in columns if name in row})


def _parquet(file: IO[bytes], columns: Collection[str], place: int, number: int) -> Iterator[StreamedRow]:
    parquet = open_parquet(file, columns)
    n_bytes = file.seek(0, io.SEEK_END)
    names = [name for name in columns if name in parquet.schema_arrow.names]
    begin = 0
    for group in range(parquet.metadata.num_row_groups):
        behind = begin + parquet.metadata.row_group(group).num_rows
        if place < behind:
            for cells in _batches(parquet.iter_batches(_BATCH, [group], names), max(0, place - begin), n_bytes):
                place += 1
                yield StreamedRow(place, place, cells)
        begin = behind


def _batches(batches: Iterator[pa.RecordBatch], skip: int, n_bytes: int) -> Iterator[dict[str, Any]]:
    """The rows of a row group but for the first so many."""
    while True:
        with as_parquet():
            batch = next(batches, None)
            if batch is None:
                return
            skipped, batch = min(skip, len(batch)), batch.slice(skip)
            skip -= skipped
            refuse_expanded(sum(map(size_of, batch.columns)), n_bytes)
            rows = batch.to_pylist()
        yield from rows


def _csv(file: IO[bytes], columns: Collection[str], place: int, number: int) -> Iterator[StreamedRow]:
    csv.field_size_limit(sys.maxsize)  # as in `rows`
    lines = _Lines(file)
    records = csv.reader(lines, strict=True)  # it takes no more lines than a record has
    try:
        header = next(records, [])
        refuse_twice(header)
        if place:
            lines.seek(place, number)
        number = max(number, 1)  # the header's
        for record in records:
            number += 1
            if len(record) > len(header):
                fault = f"{len(record)} cells for {len(header)} columns: are all texts in quotes?"
                yield StreamedRow(lines.place, number, None, fault)
            elif record:
                cells = dict(zip(header, map(as_written, record), strict=False))
                chosen: dict[str, Any] = {name: cells[name] for name in columns if cells.get(name, "").strip()}
                yield StreamedRow(lines.place, number, chosen | _album(chosen))
    except (csv.Error, UnicodeDecodeError) as error:
        raise FileError(f":{number + 1}: cannot be read as CSV: {error}") from error


def _album(cells: dict[str, Any]) -> dict[str, Any]:
    """A CSV has no lists: the cell is one path, or a list as JSON has it."""
    cell = cells.get(IMAGES)
    if cell is None:
        return {}
    if not cell.lstrip().startswith("["):
        return {IMAGES: [cell]}
    try:
        return {IMAGES: json_value(cell.encode())}
    except ValueError:
        return {}  # a text is no list: the post says so


class _Lines:
    """The lines of a file as text. place: behind the last one, in bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.place, self._number = file, 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._number += 1
        line = next_line(self._file, self._number)
        if not line:
            raise StopIteration
        first, self.place = not self.place, self.place + len(line)
        return line.decode("utf-8-sig" if first else "utf-8")

    def seek(self, place: int, number: int) -> None:
        self._file.seek(place)
        self.place, self._number = place, number
