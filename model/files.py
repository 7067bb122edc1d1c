"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A free path beside `path`, for a file or a folder that takes its place when the block ends.

    A killed process leaves the old content or the new; where the block fails, the old one stays. Of several processes
    that write the same path, the last one wins. A folder that is there is removed first: it cannot be exchanged in one
    step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    _remove(part)
    try:
        yield part
        if path.is_dir():
            shutil.rmtree(path)
        part.replace(path)
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write `content` (text as UTF-8) in place of what `path` holds, in one step.

    Args:
        private: only the user can read it.
    """
    with replacing(path) as part:
        if private:
            part.touch(mode=0o600)
        part.write_bytes(content.encode() if isinstance(content, str) else content)
