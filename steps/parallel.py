"""One function over many items on all cores, in order, in memory that does not grow with the items."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from steps.lifetime import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    chunk: int,
    workers: int | None = None,
    initializer: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """The function's results in the items' order, computed by processes.

    Args:
        function: picklable, as are its results; what it raises is raised here.
        chunk: items handed over at a time. No more items than that are computed without other processes,
            whose start would cost more than it saves.
        workers: processes; default: one per core. At most two chunks per process are computed ahead of the
            reader: `Executor.map` would compute all, and keep them for a reader that is slower.
        initializer: what each process calls first.
    """
    if len(items) <= chunk:
        yield from map(function, items)
        return
    workers = workers or os.cpu_count() or 1
    ahead: deque[Future[list[Result]]] = deque()
    pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(initializer,))
    try:
        for start in range(0, len(items), chunk):
            if len(ahead) == 2 * workers:
                yield from ahead.popleft().result()
            ahead.append(pool.submit(_map, function, items[start : start + chunk]))
        while ahead:
            yield from ahead.popleft().result()
    finally:  # nobody asks for the rest after an error or a signal
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(initializer: Callable[[], None] | None) -> None:
    end_with_parent()
    if initializer is not None:
        initializer()


def _map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]
