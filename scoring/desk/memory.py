"""What pages count over is kept in memory. It is read from the store in parts, so that no page waits for all of it."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, func, select

from model.errors import AgentPSError

if TYPE_CHECKING:
    from scoring.desk.work import Desk

#: A page waits so many seconds for what is new in the store.
SOON = 0.1
#: Rows of one part, at least.
PART = 1_000
#: Rows that are counted at most, to tell how much is left.
_COUNTED = 1_000_000


class BeingReadError(AgentPSError):
    """A page would have to wait. share: of what is to be read, which is there already."""

    status = 503

    def __init__(self, what: str, share: float) -> None:
        super().__init__(f"The {what} are being read: {share:.0%}.")
        self.share = share


class Memory(ABC):
    """What came since the last time is read before what is there is used: it is always whole, and of one moment.

    what: it holds, in a sentence of a page.
    """

    what: str

    def __init__(self, desk: Desk) -> None:
        self._desk, self._one = desk, threading.Lock()
        self._read = 0

    @abstractmethod
    def _part(self) -> tuple[int, bool]:
        """Read one part: how many rows, and whether more is to be read."""

    @abstractmethod
    def _left(self) -> ColumnElement[bool]:
        """Which rows are not read yet."""

    @contextmanager
    def _whole(self, within: float | None) -> Iterator[None]:
        """Nobody changes it inside.

        Args:
            within: so many seconds are spent on what is not read yet, or those of one part; None: as many as it takes.

        Raises:
            BeingReadError: there is more. What was read stays: the next call goes on from there.
        """
        until = None if within is None else time.monotonic() + within
        if not self._one.acquire(timeout=-1 if within is None else within):
            raise self._being_read()
        try:
            more = True
            while more:
                rows, more = self._part()
                self._read += rows
                if more and until is not None and time.monotonic() > until:
                    raise self._being_read()
            self._read = 0
            yield
        finally:
            self._one.release()

    def _being_read(self) -> BeingReadError:
        part: Any = select(func.count()).select_from(select(1).where(self._left()).limit(_COUNTED).subquery())
        read, left = self._read, self._desk.value(part)
        return BeingReadError(self.what, read / (read + left) if left else 1.0)
