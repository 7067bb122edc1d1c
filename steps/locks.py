"""One process of this machine at a time; a killed process gives its turn back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout, lock_descriptor


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock file `path` while the block runs.

    Args:
        wait: False: do not wait for the process that holds it.

    Yields:
        The lock's descriptor. A child process that gets it (`pass_fds`) holds the lock too, and keeps it where this
        process is killed.

    Raises:
        filelock.Timeout: another process holds it, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not lock_descriptor(file.fileno(), blocking=wait):
            raise Timeout(str(path))
        yield file.fileno()
