"""Files as rows: the one reader of JSON Lines, Parquet and CSV, on a local disk or any fsspec file system.

What is wrong with the file as a whole is an error; what a cell may hold is `model.post`'s.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model import post
from model.errors import ManifestError, plain
from model.schema import IMAGES, POST_ID, VIDEO

logger = logging.getLogger(__name__)

#: A row: its 1-based number in the file (of JSON Lines the line), and its cells.
Numbered = tuple[int, dict[str, Any]]
#: Rows, and the names of all columns of the file.
_Read = tuple[list[Numbered], list[str]]
_R = TypeVar("_R", bound=post.Row)

#: A cell that a spreadsheet would run as a formula, or take for one that was made harmless.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
#: A Parquet file of more rows than this, or of more values in a column, must hold a bit for each of them at least: ids
#: that differ need more.
_ROWS_OF_NO_BITS = 100_000
#: Bytes of a Parquet file's texts, at most; of a large file, for each of its bytes. It stores a repeated text once.
_MOST_TEXT, _MOST_TEXT_RATIO = 2**30, 64
#: Bytes of a line of JSON Lines, at most: some times as much of memory is needed to read one.
_LONGEST_LINE = 100_000_000
#: Bytes of a file behind a URL that are asked for at a time.
_BUFFER = 2**20


def is_url(source: str | Path) -> bool:
    return "://" in str(source)


def is_csv(source: str | Path) -> bool:
    return str(source).lower().endswith(".csv")


def absolute(source: str | Path) -> str:
    """A local path as it is from everywhere; a URL as it is."""
    return str(source) if is_url(source) else str(Path(source).resolve())


def parent_of(source: str | Path) -> str:
    """The folder that a manifest lies in, absolute, links resolved; or its URL."""
    return str(source).rpartition("/")[0] if is_url(source) else str(Path(source).parent.resolve())


@contextmanager
def opened(source: str | Path, what: str) -> Iterator[IO[bytes]]:
    """The file. Raises: ManifestError where it cannot be read, inside of the block too."""
    try:
        with _open(source) as file:
            yield file
    except FileNotFoundError:
        raise ManifestError(f"{what} {source}: no such file; give the path, or the URL, of a file") from None
    except OSError as error:
        raise ManifestError(f"{what} {source}: cannot be read: {error.strerror or error}") from error
    except FileError as fault:
        raise ManifestError(f"{what} {source}{fault}") from fault.__cause__


def _open(source: str | Path) -> IO[bytes]:
    if not is_url(source):
        return open(source, "rb")
    import fsspec  # those whose posts lie on a disk do without it

    try:
        file = fsspec.open(str(source), "rb").open()
    except OSError:
        raise
    except Exception as error:  # no such file system, or its package is missing; and its own, as of botocore: no keys
        raise OSError(str(error) or type(error).__name__) from error
    return io.BufferedReader(file, _BUFFER)  # an object store's file reads no line up to a length


def read_rows(
    source: str | Path,
    columns: Collection[str],
    required: Collection[str],
    what: str = "manifest",
    *,
    text: bool = False,
    grows: bool = False,
) -> _Read:
    """All rows, of each the named columns that it has; and the names of all columns in the file.

    Args:
        what: the file is, for the messages.
        text: CSV is read, too; its cells are text (see `model.post.parse`), an empty one is absent.
        grows: lines are added to the file: a last one that was cut off is left out, with a word.

    Raises:
        ManifestError: the file cannot be read, holds no row, two columns of one name, or lacks a required column.
    """
    readers: dict[str, Callable[[IO[bytes], Collection[str]], _Read]]
    read_lines = partial(_read_jsonl, grows=grows)
    readers = {".jsonl": read_lines, ".json": read_lines, ".parquet": _read_parquet}
    if text:
        readers[".csv"] = _read_csv
    suffix = Path(str(source)).suffix
    if suffix.lower() not in readers:
        raise ManifestError(f"{what} {source}: suffix {suffix!r}; one of {', '.join(readers)} is expected")
    with opened(source, what) as file:
        rows, found = readers[suffix.lower()](file, columns)
    if not rows:
        raise ManifestError(f"{what} {source}: it holds no rows; write one row per post")
    _require(required, found, f"{what} {source}", "add or rename it")
    return rows, found


def _require(columns: Collection[str], found: Collection[str], where: str, remedy: str) -> None:
    for column in columns:
        if column not in found and not (column == IMAGES and VIDEO in found):
            names = plain(", ".join(found))
            raise ManifestError(f"{where}: no column {column!r} (found {names:.500}); {remedy}")


def checked_rows(
    source: str | Path, row: type[_R], what: str, required: Collection[str], *, grows: bool = False
) -> list[tuple[int, _R]]:
    """The rows of a table that is right as a whole, or not used.

    Args:
        grows: as of `read_rows`.

    Raises:
        ManifestError: as `read_rows`; or a cell is not what its column holds.
    """
    checked = []
    for number, cells in read_rows(source, post.columns_of(row), required, what, text=True, grows=grows)[0]:
        parsed, faults = post.parse(row, cells, text=is_csv(source))
        if parsed is None:
            raise ManifestError(f"{what} {source}:{number}: {'; '.join(faults)}: correct or remove the row")
        checked.append((number, parsed))
    return checked


def read_table(source: Path, what: str) -> pd.DataFrame:
    """A Parquet table that this project wrote (labels, predictions), its types as they are, `post_id` as text.

    Raises:
        ManifestError: as `read_rows`; or a `post_id` is no id.
    """
    with opened(source, what) as file:
        parquet = open_parquet(file)
        with as_parquet():
            table = parquet.read()
    _require((POST_ID,), table.column_names, f"{what} {source}", "is it another table?")
    if not len(table):
        raise ManifestError(f"{what} {source}: it holds no rows")
    frame: pd.DataFrame = table.to_pandas()
    ids = [post.post_id_of(cell) for cell in table.column(POST_ID).to_pylist()]
    if None in ids:
        number = ids.index(None)
        raise ManifestError(
            f"{what} {source}:{number + 1}: {POST_ID}: {post.shown(frame[POST_ID].iloc[number])} is no id"
        )
    frame[POST_ID] = pd.Series(ids, index=frame.index, dtype="str")
    return frame


def refuse_input(out: Path, *inputs: Path | None) -> None:
    """Raises: ManifestError where `out` is one of the files that are read, by whatever name."""
    for path in inputs:
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise ManifestError(f"{out}: is the file {path}, which is read: give another name for what is written")


# --- the formats --------------------------------------------------------------------------------------------


class FileError(Exception):
    """What is wrong with a file, to stand behind its name."""


def refuse_twice(names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            places = ", ".join(str(k) for k, other in enumerate(names, start=1) if other == name)
            raise FileError(
                f": the column {post.shown(name)} stands there {count} times (columns {places:.200}): keep one"
            )


def json_value(text: bytes) -> Any:
    """Raises: ValueError: no JSON, or a key stands in an object twice."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except _DuplicateKeyError:
        raise
    except (RecursionError, ValueError) as error:  # too deep; not JSON, or not UTF-8
        raise ValueError(f"not JSON: {error} (found {post.shown(text)})") from error


def json_object(line: bytes) -> dict[str, Any]:
    """Raises: ValueError: no JSON object, or a key stands in it twice."""
    row = json_value(line)
    if not isinstance(row, dict):
        raise ValueError(f"found the {type(row).__name__} {post.shown(row)}")
    return row


class _DuplicateKeyError(ValueError):
    """A key stands twice in a JSON object: readers differ in which of the two they take."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        values = " and ".join(post.shown(value) for key, value in pairs if key == name)
        raise _DuplicateKeyError(f"the key {post.shown(name)} stands there more than once, with {values:.300}")
    return cells


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value, write null")


def _read_jsonl(file: IO[bytes], columns: Collection[str], grows: bool) -> _Read:
    rows: list[Numbered] = []
    found: dict[str, None] = {}
    for number, _, line in lines_of(file):
        try:
            row = json_object(line)
        except ValueError as error:
            if grows and not line.endswith(b"\n"):
                logger.warning("%s:%d: the last line was cut off and is left out", file.name, number)
                break
            raise FileError(
                f":{number}: {error}; each line must hold one JSON object: correct or remove the line"
            ) from error
        found |= dict.fromkeys(row)
        rows.append((number, {column: row[column] for column in columns if column in row}))
    return rows, list(found)


def lines_of(file: IO[bytes], place: int = 0, number: int = 1) -> Iterator[tuple[int, int, bytes]]:
    """Of each line that is not blank its number, the place behind it, and the line, from a line's place and number on.

    Raises:
        FileError: as `next_line`.
    """
    if place:  # a pipe has no places
        file.seek(place)
    while line := next_line(file, number):
        first, place = not place, place + len(line)
        if first:
            line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors write
        if line.strip():
            yield number, place, line
        number += 1


def next_line(file: IO[bytes], number: int) -> bytes:
    """Nothing where the file ends. Raises: FileError, where it is too long for one post."""
    line = file.readline(_LONGEST_LINE + 1)
    if len(line) > _LONGEST_LINE:
        raise FileError(f":{number}: the line has more than {_LONGEST_LINE:,} bytes: that is no post; remove it")
    return line


@contextmanager
def as_parquet() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError) as error:  # not UTF-8; a time in the year 100000
        raise FileError(f": cannot be read as Parquet: {plain(str(error)):.500}") from error


def open_parquet(file: IO[bytes], columns: Collection[str] | None = None) -> pq.ParquetFile:
    """Its texts come as Arrow's dictionaries, each distinct one once, where `columns` are named that will be read."""
    n_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    with as_parquet():
        parquet = pq.ParquetFile(file)
        leaves = [parquet.schema.column(k) for k in range(len(parquet.schema))]
    metadata, most = parquet.metadata, max(_ROWS_OF_NO_BITS, 8 * n_bytes)
    wanted = [k for k, leaf in enumerate(leaves) if columns is None or leaf.path.split(".")[0] in columns]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if metadata.num_rows > most:
        raise _claims(f"{metadata.num_rows:,} rows", n_bytes)
    for k in wanted:  # a list of very many values in one row, or texts that were packed well
        if (values := sum(group.column(k).num_values for group in groups)) > most:
            raise _claims(f"{values:,} values of {post.shown(leaves[k].path)}", n_bytes)
    refuse_expanded(sum(group.column(k).total_uncompressed_size for group in groups for k in wanted), n_bytes)
    refuse_twice(parquet.schema_arrow.names)
    if columns is None:
        return parquet
    with as_parquet():
        return pq.ParquetFile(file, read_dictionary=[leaves[k].path for k in wanted])


def _claims(what: str, n_bytes: int) -> FileError:
    return FileError(
        f": claims {what} in {n_bytes:,} bytes, less than a bit for each: that is no table of posts, and would "
        "fill the memory; make the file again"
    )


def refuse_expanded(size: int, n_bytes: int) -> None:
    if size > (most := max(_MOST_TEXT, _MOST_TEXT_RATIO * n_bytes)):
        raise FileError(
            f": its {n_bytes:,} bytes stand for {size:,}, {most:,} are read at most: the same long texts stand in very "
            "many rows; remove these, or split the file"
        )


def _read_parquet(file: IO[bytes], columns: Collection[str]) -> _Read:
    parquet = open_parquet(file, columns)
    found: list[str] = parquet.schema_arrow.names
    n_bytes, size, rows = file.seek(0, io.SEEK_END), 0, []
    for group in range(parquet.num_row_groups):  # of several at once Arrow reads no dictionaries in lists
        with as_parquet():
            table = parquet.read_row_group(group, [column for column in columns if column in found])
            size += sum(size_of(chunk) for column in table.columns for chunk in column.chunks)
            refuse_expanded(size, n_bytes)
            rows += table.to_pylist()
    return list(enumerate(rows, start=1)), found


def size_of(array: pa.Array) -> int:
    """Bytes of the texts in it, each as often as it stands there."""
    if isinstance(array, pa.DictionaryArray) and pa.types.is_string(array.type.value_type):
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if isinstance(array, pa.ListArray | pa.StructArray):
        parts = array.flatten()
        return sum(map(size_of, [parts] if isinstance(parts, pa.Array) else parts))
    return int(array.nbytes)


def csv_text(table: pd.DataFrame) -> str:
    """The table as CSV: a spreadsheet runs none of its texts as a formula, and `read_rows` reads them as they were.

    A text that begins as a formula gets an apostrophe. One that holds a quote, or any character at which a reader may
    break lines, stands in quotes.
    """
    harmless = table.map(lambda cell: f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell)
    return harmless.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def _read_csv(file: IO[bytes], columns: Collection[str]) -> _Read:
    csv.field_size_limit(sys.maxsize)  # of the process; who writes a text of 200,000 characters may read it, too
    try:
        text = file.read().decode("utf-8-sig")
        # unless the header ends in one, a bare carriage return is a text's: not quoted, it would break its row
        end = re.search(r"\r?\n|\r", text)
        lines = io.StringIO(text, newline="" if end and end[0] == "\r" else "\n")
        records = list(csv.reader(lines, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise FileError(f": cannot be read as CSV: {error}") from error
    header, *body = records or [[]]
    refuse_twice(header)
    rows = []
    for number, record in enumerate(body, start=2):  # as a spreadsheet counts
        if len(record) > len(header):
            raise FileError(f":{number}: {len(record)} cells for {len(header)} columns: are all texts in quotes?")
        cells = dict(zip(header, map(as_written, record), strict=False))
        if record:
            rows.append((number, {name: cells[name] for name in columns if cells.get(name, "").strip()}))
    return rows, header


def as_written(cell: str) -> str:
    """Without the apostrophe of `csv_text`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
