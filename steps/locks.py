"""One process at a time; a killed process gives its turn back; who waits is told for whom."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout, lock_descriptor

from model.errors import ConfigError

logger = logging.getLogger(__name__)

#: Seconds between two tries; before a wait is told; before it is told again.
_POLL, _FIRST_WORD, _NEXT_WORD = 0.05, 1.0, 60.0


@contextmanager
def locked(path: Path, what: str = "", *, wait: bool = True) -> Iterator[int]:
    """Hold the lock file `path` while the block runs.

    It is the operating system's lock on the open file: free at once when its process ends, also by SIGKILL. The
    file's content only tells others who holds it.

    Args:
        what: is being waited for, in the words of the one who waits.
        wait: False: do not wait for the process that holds it.

    Yields:
        The lock's descriptor. A child process that gets it (`pass_fds`) holds the lock too, and keeps it where this
        process is killed.

    Raises:
        filelock.Timeout: another process holds it, and `wait` is False.
        ConfigError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        if not _take(file, path):
            if not wait:
                raise Timeout(str(path))
            _wait(file, path, what or f"the lock {path}")
        _write(file, json.dumps(_this_process()._asdict()).encode())
        try:
            yield file.fileno()
        finally:
            _write(file, b"")


def _take(file: FileIO, path: Path) -> bool:
    try:
        return lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be locked ({error.strerror}): the file system has no locks, without which two runs would "
            "spoil each other's files. Set AGENTPS_HOME to a folder on a local disk, or mount this one with locks"
        ) from error


def _wait(file: FileIO, path: Path, what: str) -> None:
    told = time.monotonic() + _FIRST_WORD - _NEXT_WORD
    while not _take(file, path):
        if time.monotonic() - told >= _NEXT_WORD:
            logger.warning("Waiting for %s: it is held by %s", what, holder(path) or "another process")
            told = time.monotonic()
        time.sleep(_POLL)


def _write(file: FileIO, text: bytes) -> None:
    with suppress(OSError):  # a full disk: the lock holds all the same
        file.truncate(0)
        file.write(text)


class Holder(NamedTuple):
    """The process that holds a lock."""

    pid: int
    host: str
    since: str
    command: str
    #: Of the system that ran then: the same in all its containers, another after each start. Empty where it has none.
    boot: str = ""

    @property
    def is_of_this_machine(self) -> bool:
        """Whether it runs, or ran, where a lock that is free here is free: then it is gone."""
        return self.host == socket.gethostname() or self.boot == _boot() != ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since}: {self.command})"


def _this_process() -> Holder:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return Holder(os.getpid(), socket.gethostname(), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", command, _boot())


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return ""


def holder(path: Path) -> Holder | None:
    """Who holds the lock, or held it until it was killed; None where nobody has said so."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # between two holders
        return None
