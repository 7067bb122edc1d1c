"""What is away is waited for, with a word; nothing is lost or committed meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from model.errors import AgentPSError, StoreError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
#: Seconds to the first new try and, doubled each time, at most; seconds between two words.
_FIRST, _MOST, _WORD = 0.1, 5.0, 60.0


class AwayError(AgentPSError):
    """A broker, database or service does not answer now: the same is tried again."""


class StoppedError(AgentPSError):
    """The worker is asked to end while it waits."""


def patiently(ask: Callable[[], _T], stop: threading.Event) -> _T:
    """What `ask` returns, once it does not raise an AwayError.

    Raises:
        StoppedError: `stop` was set first.
    """
    began, told, delay = time.monotonic(), float("-inf"), _FIRST
    while True:
        try:
            found = ask()
        except AwayError as error:
            if time.monotonic() - told >= _WORD:
                logger.warning("Waiting: %s; nothing is lost or committed meanwhile", error)
                told = time.monotonic()
            if stop.wait(delay):
                raise StoppedError(f"ended while waiting: {error}") from error
            delay = min(2 * delay, _MOST)
        else:
            if told > 0:
                logger.warning("It answers again, after %.0f s", time.monotonic() - began)
            return found


def asking(ask: Callable[[], _T]) -> _T:
    """Of the store. Raises: AwayError: it cannot be read or written now."""
    try:
        return ask()
    except StoreError as error:
        raise AwayError(str(error)) from error
