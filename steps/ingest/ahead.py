"""Work that is begun before it is asked for, by a process that gives way to this one, which keeps one core busy at most
while it imports libraries.
"""

from __future__ import annotations

import atexit
import multiprocessing.util  # noqa: F401 (it joins all processes at exit, and what is registered last comes first: `_end`)
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Process

from steps.lifetime import end_with_parent

#: How much the process gives way (`nice`).
_NICENESS = 10

_begun: list[Process] = []


def begin(work: Callable[[], object]) -> None:
    """Begin `work`, whose result lies on the disk: whole or not at all, and made anew only where it is missing.

    Args:
        work: picklable. Who asks for the result calls it again after `wait`, and learns there why it failed.
    """
    process = Process(target=_give_way, args=(work,))
    process.start()
    _group(process.pid or 0)
    _begun.append(process)


def wait() -> None:
    """Until all that this process began has ended."""
    while _begun:
        _begun.pop().join()


def _give_way(work: Callable[[], object]) -> None:
    _group(0)
    end_with_parent()
    os.nice(_NICENESS)
    _begun.clear()  # a fork has its parent's
    work()


def _group(pid: int) -> None:
    """A group with the processes that `work` starts, to be ended with them. Both sides ask for it: whoever comes second
    finds it made, or the process gone.
    """
    with suppress(OSError):
        os.setpgid(pid, pid)


@atexit.register
def _end() -> None:
    """A run that failed does not wait for what nobody will ask for."""
    for process in _begun:
        if process.pid is not None and process.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
