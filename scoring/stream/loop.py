"""FastStream is asynchronous: its event loop is in a thread of its own, and lives on while a batch is scored."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class LoopThread:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="broker", daemon=True)
        self._thread.start()

    def ask(self, question: Coroutine[Any, Any, _T], seconds: float | None = None) -> _T:
        """Raises: TimeoutError: there is no answer after `seconds`; the question is given up."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(question, seconds), self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
