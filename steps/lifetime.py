"""How a process ends: by a signal in one line, and never later than the process that it works for."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds after which what swallowed the interruption is interrupted once more; after three times there is no more.
_PATIENCE = 15.0
#: Seconds that `close` has.
_CLOSING = 60.0
#: Seconds within which two Ctrl-C count as one: a wrapper sends on what the terminal has sent already.
_ONE = 1.0
#: Seconds after which a process has seen that its parent is gone.
_WATCH = 0.5
_PARENT = "AGENTPS_PARENT_PID"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Interrupted(KeyboardInterrupt):
    """A signal asks this process to end.

    A KeyboardInterrupt, because libraries catch `Exception` around imports: they would go on with one that was cut in
    the middle.
    """


@contextmanager
def ends_by_signal(line: Callable[[], str] = str, close: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal (SIGHUP) end the process with one line and the exit code 128 + signal.

    The block is left as by Ctrl-C, so that what it holds is given back, without another word. Then the process ends at
    once: the interpreter's own end runs over libraries that are imported by half, or whose threads still work. A second
    Ctrl-C ends it at once, too. A signal that is ignored (nohup) stays so. In such a block, and in another thread than
    the main one, this does nothing.

    Args:
        line: what is said, after "Ended by SIGTERM".
        close: called when the block is left.
    """
    ours = any(isinstance(getattr(signal.getsignal(number), "__self__", None), _Ending) for number in _SIGNALS)
    if ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = _Ending(line, close)
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ending.begin) for number in heard}
    try:
        yield
    finally:
        if ending.signal:
            ending.finish()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ending:
    def __init__(self, line: Callable[[], str], close: Callable[[], None]) -> None:
        self._line, self._close = line, close
        self._at, self._reminders = 0.0, 0
        #: What ends the process; 0: nothing yet.
        self.signal = 0

    def begin(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            if number == signal.SIGINT and time.monotonic() - self._at > _ONE:
                os._exit(128 + self.signal)
            return
        self.signal, self._at = number, time.monotonic()
        logging.disable()  # ZenML tells the end of a step in hundreds of lines
        with suppress(OSError):  # the terminal is gone; and not by sys.stderr, which may be in the middle of a line
            os.write(2, f"\nEnded by {signal.Signals(number).name}{self._line()}\n".encode())
        sys.unraisablehook = self._swallowed
        signal.signal(signal.SIGALRM, self._remind)
        self._interrupt_again(_PATIENCE)
        raise self._interrupted()

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"ended by {signal.Signals(self.signal).name}")

    def _interrupt_again(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds, _PATIENCE)

    def _swallowed(self, _: Any) -> None:
        """Python passes over what is raised while it frees an object."""
        self._interrupt_again(0.05)

    def _remind(self, *_: object) -> None:
        self._reminders += 1
        if self._reminders > 3:
            os._exit(128 + self.signal)
        raise self._interrupted()

    def finish(self) -> NoReturn:
        self._reminders = 3
        signal.setitimer(signal.ITIMER_REAL, _CLOSING)
        try:
            self._close()
        finally:
            for child in multiprocessing.active_children():
                child.kill()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(128 + self.signal)


def of_this_process() -> dict[str, str]:
    """What a process that is started from this one needs in its environment, to `end_with_parent`."""
    return {_PARENT: str(os.getpid())}


def end_with_parent(*, at_once: bool = False) -> None:
    """Called first in a process that works for another: it ends within a second after that one, even a killed one.

    What a terminal sends to all processes at once, Ctrl-C and its own end, is for the other one to answer.

    Args:
        at_once: in the same moment, where the system can do that (Linux), so that processes that talk to each other
            do not complain of each other's end. Only for one that its parent's main thread has started: the system
            takes that thread for the parent.
    """
    if at_once and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, handler in (
        (signal.SIGINT, signal.SIG_IGN),
        (signal.SIGHUP, signal.SIG_IGN),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        signal.signal(number, handler)
    started_by = multiprocessing.parent_process()
    parent = int(os.environ[_PARENT]) if started_by is None else started_by.pid
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH)
    os._exit(1)
