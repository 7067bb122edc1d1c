"""A watched folder as a source: `.json` (a post), `.jsonl` (a post a line) and `.parquet` (a manifest).

A file whose posts are all done moves to `done/`; that is the commit. Where the worker is killed, the file is read again
from its begin, and posts that did not change are not scored again. A file is read once it has stopped to grow for a
moment; names that begin with a dot are passed over, so that a writer may write beside and rename.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import Timeout

from model.errors import ConfigError, ManifestError
from model.schema import POST_ID
from scoring.stream.retriever import LONGEST
from scoring.stream.source import Message
from steps.ingest.rows import read_rows
from steps.locks import holder, locked

logger = logging.getLogger(__name__)

_SUFFIXES = (".json", ".jsonl", ".parquet")
#: Seconds between two looks at the folder; a file that is the same at both is whole.
_LOOK = 0.5


class FolderSource:
    settles = 3 * _LOOK

    def __init__(self, folder: Path, batch: int) -> None:
        if not folder.is_dir():
            raise ConfigError(f"stream.source {folder}: is no folder: make it, or correct the path")
        self.folder, self._batch = folder.resolve(), batch
        self.name = f"folder:{self.folder}"
        self._held = ExitStack()
        self._seen: dict[str, tuple[int, int]] = {}
        self._passed: dict[str, tuple[int, int] | None] = {}
        self._looked = 0.0
        self._ready: list[Path] = []
        self._file: tuple[Path, Iterator[Message]] | None = None
        self._finished: list[Path] = []

    def open(self) -> None:
        lock = self.folder / ".agentps-stream.lock"
        try:
            self._held.enter_context(locked(lock, wait=False))
        except Timeout:
            raise ConfigError(
                f"stream.source {self.folder}: {holder(lock) or 'another process'} works on it: one worker for a "
                "folder; several share a broker"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"stream.source {self.folder}: cannot be written ({error.strerror}): files that are done "
                "move to a folder in it"
            ) from error

    def take(self) -> Sequence[Message]:
        messages: list[Message] = []
        while len(messages) < self._batch:
            if self._file is None:
                if (path := self._next()) is None:
                    break
                self._file = path, _read(path)
            path, rows = self._file
            try:
                message = next(rows, None)
            except OSError as error:  # no right to it, or it was taken away
                logger.warning("%s: cannot be read (%s): it is passed over until it changes", path, error.strerror)
                self._passed[path.name] = self._seen.get(path.name)
                self._file = None
                continue
            if message is None:
                self._finished.append(path)
                self._file = None
            else:
                messages.append(message)
        if not messages and not self._finished:
            time.sleep(_LOOK / 2)
        return messages

    def _next(self) -> Path | None:
        if not self._ready and time.monotonic() - self._looked >= _LOOK:
            self._ready = self._look()
            self._looked = time.monotonic()
        return self._ready.pop(0) if self._ready else None

    def _look(self) -> list[Path]:
        """The files that are as they were at the last look, the oldest first."""
        before, self._seen = self._seen, {}
        whole = []
        for entry in os.scandir(self.folder):
            if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in _SUFFIXES or not entry.is_file():
                continue
            path, stat = self.folder / entry.name, entry.stat()
            if path in self._finished:
                continue
            self._seen[entry.name] = state = (stat.st_size, stat.st_mtime_ns)
            if before.get(entry.name) == state != self._passed.get(entry.name):
                whole.append((stat.st_mtime_ns, path))
        return [path for _, path in sorted(whole)]

    def commit(self) -> None:
        while self._finished:
            path = self._finished.pop(0)
            done = self.folder / "done"
            try:
                done.mkdir(exist_ok=True)
                target = done / path.name
                if target.exists():  # a file of this name was done before: both stay
                    target = done / f"{path.stem}.{time.time_ns()}{path.suffix}"
                path.rename(target)
            except FileNotFoundError:
                logger.warning("%s: was taken away before it was moved to done/; its posts are scored", path)
            except OSError as error:
                raise ConfigError(
                    f"{path}: is done, and cannot be moved to {done} ({error.strerror}): give the right to do that"
                ) from error

    def behind(self) -> int:
        return len(self._seen)

    def close(self) -> None:
        self._held.close()


def _read(path: Path) -> Iterator[Message]:
    if path.suffix.lower() == ".parquet":
        try:
            _, columns = read_rows(path, (POST_ID,), (POST_ID,))
            rows, _ = read_rows(path, columns, ())  # all: a policy's allow-lists may name any
        except ManifestError as error:
            logger.warning("%s; the whole file is a dead letter", error)
            yield Message.at(path.name, str(error).encode())
            return
        for number, cells in rows:
            yield Message.at(f"{path.name}:{number}", json.dumps(cells, default=_text).encode())
        return
    with path.open("rb") as file:
        if path.suffix.lower() == ".json":
            yield Message.at(path.name, file.read(LONGEST + 1))
            return
        for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield Message.at(f"{path.name}:{number}", line)


def _text(cell: Any) -> str:
    return base64.b64encode(cell).decode() if isinstance(cell, bytes) else str(cell)
