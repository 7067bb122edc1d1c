"""Read a manifest and its images: the posts that can be used, and a reason for every other one.

A fault of the file (no file, bad JSON on a line, a missing column) stops the run. A fault of one
post goes to the rejects table; the run stops when too many are there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from model import schema
from model.errors import ImageError, ManifestError
from model.images import ImageLimits, decode, read_source
from model.task import Question, Task
from steps.parallel import ordered_map
from steps.settings import IngestSettings

logger = logging.getLogger(__name__)

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
#: Images handed to a worker at a time.
_CHUNK = 64
#: Rejects named in an error's message.
_SHOWN = 5

#: A manifest row: its 1-based number in the file, its columns.
Row = tuple[int, dict[str, Any]]


class RejectsError(ManifestError):
    """Too many posts were rejected; `rejects` is the whole table."""

    def __init__(self, message: str, rejects: pd.DataFrame) -> None:
        super().__init__(message)
        self.rejects = rejects


@dataclass(frozen=True)
class IngestResult:
    """What a manifest held.

    posts: one row a usable post: post_id, created_at (datetime64[us, UTC], NaT where absent), title,
        text, images (absolute paths), image_sha256, label, one Int8 column a question, split; and
        language where the manifest has it.
    rejects: row (1-based line or row number in the manifest), post_id (or None), reason.
    counts: rows, posts, rejected, images, files (distinct), labelled, train, val, test.
    """

    posts: pd.DataFrame
    rejects: pd.DataFrame
    counts: dict[str, int]


def read_manifest(
    path: str | Path, task: Task, settings: IngestSettings, *, root: Path | None = None, workers: int | None = None
) -> IngestResult:
    """Read the posts of a JSON Lines or Parquet manifest and decode every image once.

    Args:
        root: the folder that images lie in and are named from; default: the manifest's own.
        workers: processes that decode images, each of which holds one at a time; default: one a core.

    Raises:
        ManifestError: the file as a whole cannot be used; names file, line, remedy.
        RejectsError: every post, or a larger share than `settings.max_reject_share`, is rejected.
    """
    path = Path(path)
    root = (root or path.parent).resolve()
    parsers: dict[str, Callable[[Any], Any]] = {
        schema.POST_ID: _post_id,
        schema.CREATED_AT: parse_time,
        schema.TITLE: _text,
        schema.TEXT: _text,
        schema.IMAGES: partial(
            _images, root=str(root), real_folder=cache(os.path.realpath), max_images=settings.max_images
        ),
        schema.LABEL: _label,
        **{question.id: _class_parser(question) for question in task.questions},
        schema.SPLIT: _split,
        schema.LANGUAGE: _language,
    }
    rows, found = read_rows(path, tuple(parsers))
    unknown = [column for column in found if column not in parsers]
    if unknown:
        logger.warning("manifest %s: ignoring columns that task %s does not name: %s", path, task.name, unknown)

    posts: list[dict[str, Any]] = []
    rejected: list[tuple[int, str | None, str]] = []
    first_row: dict[str, int] = {}
    for number, row in rows:
        post, faults = _parse(row, parsers)
        post_id = post.get(schema.POST_ID)
        if post_id is not None and first_row.setdefault(post_id, number) != number:
            faults.append(f"{schema.POST_ID}: {post_id!r:.80} is already the post of row {first_row[post_id]}")
        if faults:
            rejected.append((number, post_id, "; ".join(faults)))
        else:
            if post[schema.SPLIT] is None:
                post[schema.SPLIT] = split_of(post[schema.POST_ID], settings.val_share, settings.test_share)
            posts.append(post | {"row": number})

    files = dict.fromkeys(file for post in posts for file in post[schema.IMAGES])
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    hashes = _check_images(list(files), limits, workers)
    usable = []
    for post in posts:
        checked = {file: hashes[file] for file in post[schema.IMAGES]}
        faults = [f"image {os.path.relpath(f, root)}: {e}" for f, e in checked.items() if isinstance(e, ImageError)]
        if faults:
            rejected.append((post["row"], post[schema.POST_ID], "; ".join(faults)))
        else:
            post[schema.IMAGE_SHA256] = [checked[file] for file in post[schema.IMAGES]]
            usable.append(post)

    rejects = pd.DataFrame(sorted(rejected), columns=["row", schema.POST_ID, "reason"], dtype="object")
    rejects = rejects.astype({"row": "int64", "reason": "str"})
    if not usable or len(rejects) > settings.max_reject_share * len(rows):
        raise RejectsError(_too_many(path, rejects, len(rows), settings.max_reject_share), rejects)
    table = _table(usable, task)
    counts = {
        "rows": len(rows),
        "posts": len(table),
        "rejected": len(rejects),
        "images": int(table[schema.IMAGES].map(len).sum()),
        "files": len({file for images in table[schema.IMAGES] for file in images}),
        "labelled": int(table[schema.LABEL].notna().sum()),
        **{split: int((table[schema.SPLIT] == split).sum()) for split in schema.SPLITS},
    }
    return IngestResult(posts=table, rejects=rejects, counts=counts)


def manifest_fingerprint(path: str | Path, root: Path | None = None) -> str:
    """A cache key that changes when the manifest or one of its images does; no image is opened.

    Covers the manifest's bytes, its images' folder `root` (posts hold absolute paths) and the size and modification
    time of every file it names; a missing file counts as missing.

    Raises:
        ManifestError: as `read_manifest`, for faults of the file as a whole.
    """
    path = Path(path)
    root = (root or path.parent).resolve()
    names = dict.fromkeys(
        name
        for _, row in read_rows(path, schema.REQUIRED_COLUMNS)[0]
        if isinstance(row.get(schema.IMAGES), list)
        for name in row[schema.IMAGES]
        if isinstance(name, str)
    )
    digest = hashlib.sha256(hashlib.sha256(path.read_bytes()).digest())
    digest.update(json.dumps(str(root)).encode())
    for name in names:
        try:
            status = os.stat(root / name)
            state: list[int] | None = [status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):  # ValueError: a NUL character in the name
            state = None
        digest.update(json.dumps([name, state]).encode())
    return digest.hexdigest()


def split_of(post_id: str, val_share: float, test_share: float) -> str:
    """The split of a post that names none: by a hash of its id alone, so it stays as posts arrive."""
    place = int.from_bytes(hashlib.sha256(post_id.encode()).digest()[:8]) / 2**64
    if place < test_share:
        return schema.TEST
    return schema.VAL if place < test_share + val_share else schema.TRAIN


# --- the file ---------------------------------------------------------------------------------


def read_rows(
    path: Path, columns: tuple[str, ...], required: tuple[str, ...] = schema.REQUIRED_COLUMNS
) -> tuple[list[Row], list[str]]:
    """All rows, of each the named columns that it has; and the names of all columns in the file.

    Raises:
        ManifestError: the file cannot be read, holds no row, or lacks a required column.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ManifestError(f"manifest {path}: suffix {path.suffix!r}; one of {', '.join(readers)} is expected")
    try:
        rows, found = reader(path, columns)
    except FileNotFoundError:
        raise ManifestError(f"manifest {path}: no such file; set `posts` to a JSON Lines or Parquet file") from None
    except OSError as error:
        raise ManifestError(f"manifest {path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise ManifestError(f"manifest {path}: it holds no posts; write one row a post")
    for column in required:
        if column not in found:
            raise ManifestError(f"manifest {path}: no column {column!r} (found {', '.join(found)}); add or rename it")
    return rows, found


def _read_jsonl(path: Path, columns: tuple[str, ...]) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    found: dict[str, None] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors write
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
                raise ManifestError(
                    f"manifest {path}:{number}: not JSON: {error} (found {_shown(line)}); "
                    "each line must hold one JSON object: correct or remove the line"
                ) from error
            if not isinstance(row, dict):
                raise ManifestError(
                    f"manifest {path}:{number}: found the {type(row).__name__} {_shown(row)}; "
                    "each line must hold one JSON object: correct or remove the line"
                )
            found |= dict.fromkeys(row)
            rows.append((number, {column: row[column] for column in columns if column in row}))
    return rows, list(found)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value, write null")


def _read_parquet(path: Path, columns: tuple[str, ...]) -> tuple[list[Row], list[str]]:
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            found = parquet.schema_arrow.names
            rows = parquet.read(columns=[column for column in columns if column in found]).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ManifestError(f"manifest {path}: cannot be read as Parquet: {error}") from error
    return list(enumerate(rows, start=1)), found


# --- one post ---------------------------------------------------------------------------------
# A parser takes a cell (None: null, or no such column) and returns what the posts table holds, or
# raises ValueError with what was found and expected.


def _parse(row: dict[str, Any], parsers: dict[str, Callable[[Any], Any]]) -> tuple[dict[str, Any], list[str]]:
    """The parsed cells of the good columns, and what is wrong with each other one."""
    post, faults = {}, []
    for column, parser in parsers.items():
        cell = row.get(column)
        if isinstance(cell, float) and math.isnan(cell):  # how pandas writes null into a number column
            cell = None
        try:
            post[column] = parser(cell)
        except ValueError as error:
            faults.append(f"{column}: {error}")
    return post, faults


def _post_id(cell: Any) -> str:
    if cell is None or cell == "":
        raise ValueError("missing; every post needs an id of its own")
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError(f"{_shown(cell)}; a string that is not blank is expected")
    return _text(cell)


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise ValueError(f"{_shown(cell)}; a string or null is expected")
    cell.encode()  # JSON can spell lone surrogates, which no file of ours can hold
    return cell


def parse_time(cell: Any) -> datetime | None:
    """A manifest's `created_at` in UTC. Raises: ValueError with what was found and expected."""
    if cell is None:
        return None
    try:
        time = cell if isinstance(cell, datetime) else datetime.fromisoformat(cell)
        if time.tzinfo is None:
            raise ValueError("no zone")
        return time.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{_shown(cell)}; ISO 8601 with a zone is expected, as 2025-03-01T12:00:00Z") from None


def _images(cell: Any, root: str, real_folder: Callable[[str], str], max_images: int) -> list[str]:
    if cell is None or cell == []:
        raise ValueError("no image; one or more are expected")
    if not isinstance(cell, list):
        raise ValueError(f"{_shown(cell)}; a list of paths is expected")
    if len(cell) > max_images:
        raise ValueError(f"{len(cell)} images; at most {max_images} are read (ingest.max_images)")
    return [_local_path(name, root, real_folder) for name in cell]


def _local_path(name: Any, root: str, real_folder: Callable[[str], str]) -> str:
    """The absolute path of an image below `root`, links resolved. Whether it exists is not asked."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{_shown(name)}; a path is expected")
    if _URL.match(name):
        raise ValueError(f"{_shown(name)} is a URL; only local paths are read: download it beside the manifest")
    path = _real_path(os.path.join(root, name), real_folder)
    if path != root and not path.startswith(os.path.join(root, "")):
        raise ValueError(f"{_shown(name)} lies outside the manifest's folder; move it there")
    path.encode()
    return path


def _real_path(path: str, real_folder: Callable[[str], str]) -> str:
    """As `os.path.realpath`, which looks at every folder above each file; `real_folder` remembers them."""
    folder, name = os.path.split(path)
    if name in ("", os.curdir, os.pardir):
        return os.path.realpath(path)
    path = os.path.join(real_folder(folder), name)
    try:
        is_link = stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        is_link = False
    return os.path.realpath(path) if is_link else path


def _label(cell: Any) -> int | None:
    if cell is None or _integer(cell) in (0, 1):
        return _integer(cell)
    raise ValueError(f"{_shown(cell)}; 0, 1 or null is expected")


def _class_parser(question: Question) -> Callable[[Any], int | None]:
    classes = question.classes

    def parse(cell: Any) -> int | None:
        if isinstance(cell, str) and cell in classes:
            return classes.index(cell)
        index = _integer(cell)
        if cell is None or (index is not None and 0 <= index < len(classes)):
            return index
        raise ValueError(f"{_shown(cell)}; a class index 0 to {len(classes) - 1}, one of {list(classes)} or null")

    return parse


def _integer(cell: Any) -> int | None:
    """Whole floats count: pandas writes a column of integers and nulls as floats. `true` does not."""
    if isinstance(cell, int | float) and not isinstance(cell, bool) and cell == cell // 1:
        return int(cell)
    return None


def _split(cell: Any) -> str | None:
    if cell is None or cell in schema.SPLITS:
        return cell
    raise ValueError(f"{_shown(cell)}; one of {', '.join(schema.SPLITS)} or null is expected")


def _language(cell: Any) -> str | None:
    if cell is None or (isinstance(cell, str) and cell.strip()):
        return cell
    raise ValueError(f"{_shown(cell)}; a language's name, for example en, or null is expected")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- images and tables ------------------------------------------------------------------------


def _check_images(files: list[str], limits: ImageLimits, workers: int | None) -> dict[str, str | ImageError]:
    """Of each file the sha256 of its bytes, or why it cannot be used. Each is read once."""
    logger.info("decoding %d images", len(files))
    checked = ordered_map(partial(_check_image, limits=limits), files, chunk=_CHUNK, workers=workers)
    return dict(zip(files, checked, strict=True))


def _check_image(file: str, limits: ImageLimits) -> str | ImageError:
    try:
        data = read_source(file, limits)
        decode(data, limits, least_side=1)  # all of the file is read, and no more pixels made than needed
    except ImageError as error:
        return error
    return hashlib.sha256(data).hexdigest()


def _table(posts: Sequence[dict[str, Any]], task: Task) -> pd.DataFrame:
    dtypes = {
        schema.POST_ID: "str",
        schema.CREATED_AT: "datetime64[us, UTC]",
        schema.TITLE: "str",
        schema.TEXT: "str",
        schema.IMAGES: "object",
        schema.IMAGE_SHA256: "object",
        schema.LABEL: "Int8",
        **dict.fromkeys(task.question_ids, "Int8"),
        schema.SPLIT: "str",
    }
    if any(post[schema.LANGUAGE] is not None for post in posts):
        dtypes[schema.LANGUAGE] = "str"
    return pd.DataFrame(
        {name: pd.Series([post[name] for post in posts], dtype=dtype) for name, dtype in dtypes.items()}
    )


def _too_many(path: Path, rejects: pd.DataFrame, n_rows: int, max_share: float) -> str:
    shown = rejects.head(_SHOWN).to_dict("records")
    first = "; ".join(f"row {r['row']} ({r[schema.POST_ID] or 'no id'}): {r['reason']}" for r in shown)
    more = f"; and {len(rejects) - _SHOWN} more" if len(rejects) > _SHOWN else ""
    return (
        f"manifest {path}: {len(rejects)} of {n_rows} posts are rejected, {max_share:.1%} at most may be: "
        f"{first}{more}. Correct these rows, or raise ingest.max_reject_share"
    )
