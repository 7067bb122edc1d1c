"""One process of this machine at a time; a killed process gives its turn back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    Args:
        wait: False: do not wait for the process that holds it.

    Raises:
        filelock.Timeout: another process holds it, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, timeout=-1 if wait else 0):
        yield


__all__ = ["Timeout", "locked"]
