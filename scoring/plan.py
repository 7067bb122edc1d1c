"""A job's posts in shards: one look at the manifests, before anything is scored. Memory does not grow with the posts.

The look finds where each shard begins, and which rows are the record of no post: those without a usable id, and those
whose id an earlier row has.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple

from model.errors import DiskError, ManifestError
from model.files import no_room, replacing
from model.post import post_id_of, shown
from model.schema import POST_ID
from model.strict import Strict
from steps.ingest.rows import opened
from steps.ingest.streamed import SUFFIXES, StreamedRow, stream
from steps.retrain.fresh import folder_of, manifests_of

#: Bytes that are hashed together.
_BLOCK = 2**20


class Shard(Strict):
    """A part of a manifest, for one file of records.

    manifest: its number among the job's. place, row: of the last row before it (see `steps.ingest.streamed`).
    rows: how many rows it has, but for empty ones. left_out: the numbers of those that are rejected. posts: the others.
    ids: a hash of their ids, so that a manifest that is changed meanwhile is noticed.
    """

    number: int
    manifest: int
    place: int
    row: int
    rows: int
    left_out: tuple[int, ...]
    posts: int
    ids: str


class Rejected(NamedTuple):
    """A row without a record. row: as `steps.ingest.rows` counts."""

    manifest: str
    row: int
    post_id: str | None
    reason: str


def sources_of(posts: str) -> list[str]:
    """The manifest, or those of a folder by their names.

    Raises:
        ManifestError: there is none.
    """
    return manifests_of(posts, SUFFIXES)


def fingerprint(posts: str, sources: Sequence[str]) -> str:
    """Of the manifests' bytes and of the folder that pictures are named from; no picture is opened.

    Raises:
        ManifestError: a manifest cannot be read.
    """
    digest = hashlib.sha256(folder_of(posts).encode())
    for source in sources:
        with opened(source, "manifest") as file:
            found = hashlib.sha256()
            while block := file.read(_BLOCK):
                found.update(block)
        digest.update(found.digest())
    return digest.hexdigest()


class IdsHash:
    """A hash of ids in their order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, post_id: str) -> None:
        self._digest.update(json.dumps(post_id).encode())

    def __str__(self) -> str:
        return self._digest.hexdigest()[:16]


def plan(sources: Sequence[str], size: int, shards: Path, rejects: Path, scratch: Path) -> None:
    """Write the shards as JSON Lines, and the rejected rows, where there are some, in the same form.

    Args:
        size: rows of a shard, at most.
        scratch: a free path for the ids that were seen.

    Raises:
        ManifestError: a manifest cannot be read; or no row has a usable id.
        DiskError: the disk is full.
    """
    with (
        _database_told(scratch),
        replacing(shards) as part,  # it takes its place last: a plan that is there is whole
        part.open("w", encoding="utf-8") as file,
        _Seen.at(scratch) as seen,
        replacing(rejects) as other,
        other.open("w", encoding="utf-8", errors="backslashreplace") as told,  # a file may have any name
    ):
        planner = _Planner(sources, size, seen, told)
        for shard in planner.shards():
            file.write(shard.model_dump_json() + "\n")
        if not planner.posts:
            first = f", the first: {planner.first}" if planner.first else ""
            raise ManifestError(
                f"posts {', '.join(sources):.500}: {planner.rejected:,} rows, none with a usable {POST_ID}{first}. "
                "Write one row per post"
            )
    if not planner.rejected:
        rejects.unlink()


def read_plan(path: Path) -> Iterator[Shard]:
    with opened(path, "shards") as file:
        for line in file:
            yield Shard.model_validate_json(line)


class _Planner:
    def __init__(self, sources: Sequence[str], size: int, seen: _Seen, told: IO[str]) -> None:
        self._sources, self._size, self._seen = sources, size, seen
        self._told = told
        self.posts, self.rejected, self.first = 0, 0, ""

    def shards(self) -> Iterator[Shard]:
        numbers = count()
        for manifest, source in enumerate(self._sources):
            rows = stream(source, (POST_ID,))
            place, row = 0, 0
            while True:
                shard, last = self._shard(rows, manifest, place, row)
                if last is None:
                    break
                if shard.posts:
                    yield shard.model_copy(update={"number": next(numbers)})
                place, row = last.place, last.number

    def _shard(
        self, rows: Iterator[StreamedRow], manifest: int, place: int, row: int
    ) -> tuple[Shard, StreamedRow | None]:
        """The next shard and its last row; None: there are no more rows."""
        left_out: list[int] = []
        n_rows, ids, last = 0, IdsHash(), None
        for last in rows:
            n_rows += 1
            post_id, reason = self._usable(last, manifest)
            if reason:
                left_out.append(last.number)
                self._reject(Rejected(self._sources[manifest], last.number, post_id, reason))
            else:
                ids.add(str(post_id))
            if n_rows == self._size:
                break
        posts = n_rows - len(left_out)
        self.posts += posts
        values = {"number": 0, "manifest": manifest, "place": place, "row": row, "rows": n_rows, "posts": posts}
        return Shard.model_validate(values | {"left_out": left_out, "ids": str(ids)}), last

    def _usable(self, row: StreamedRow, manifest: int) -> tuple[str | None, str]:
        """The post's id; and why the row is no post's record, or nothing."""
        if row.cells is None:
            return None, row.fault
        cell = row.cells.get(POST_ID)
        post_id = post_id_of(cell)
        if post_id is None:
            return (
                None,
                f"{POST_ID}: {'missing' if cell is None else shown(cell)}; a text that is not empty is expected",
            )
        before = self._seen.add(post_id, manifest, row.number)
        if before is None:
            return post_id, ""
        where = f" of {self._sources[before[0]]}" if before[0] != manifest else ""
        return post_id, f"{POST_ID}: {shown(post_id)} is already the post of row {before[1]}{where}"

    def _reject(self, found: Rejected) -> None:
        self.rejected += 1
        self.first = self.first or f"row {found.row}: {found.reason:.300}"
        self._told.write(json.dumps(found._asdict(), ensure_ascii=False) + "\n")


@contextmanager
def _database_told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:  # it has no other words for a limit, and none for a full disk at times
        raise DiskError(f"{path}: {no_room(path, error)}") from error


class _Seen:
    """The ids that were read, on disk."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base
        for line in (
            "PRAGMA journal_mode = OFF",  # it is of no use to anybody when this process has ended
            "PRAGMA synchronous = OFF",
            "PRAGMA cache_size = -65536",  # kB
            "CREATE TABLE seen (id TEXT PRIMARY KEY, manifest INTEGER, row INTEGER) WITHOUT ROWID",
            "BEGIN",
        ):
            base.execute(line)

    @classmethod
    @contextmanager
    def at(cls, path: Path) -> Iterator[_Seen]:
        """A new one, in a file that is removed afterwards."""
        path.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(path, isolation_level=None)) as base:
                yield cls(base)
        finally:
            path.unlink(missing_ok=True)

    def add(self, post_id: str, manifest: int, row: int) -> tuple[int, int] | None:
        """Where the id was before; None: nowhere."""
        if self._base.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (post_id, manifest, row)).rowcount:
            return None
        with closing(self._base.execute("SELECT manifest, row FROM seen WHERE id = ?", (post_id,))) as found:
            where: tuple[int, int] = found.fetchone()
            return where
