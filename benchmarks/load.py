"""Load for a service: requests over kept connections, by as little code as can be, beside the service's own cores."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import numpy as np

#: Seconds that an answer may take.
PATIENCE = 300


@dataclass(frozen=True)
class Answer:
    """status: 0: nobody listened; -1: the connection broke after the request had been sent."""

    number: int
    start: float
    seconds: float
    status: int
    retry_after: bool = False
    body: bytes = b""


class _Connection:
    def __init__(self, url: str) -> None:
        self._where = urlsplit(url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, number: int, body: bytes) -> Answer:
        start = time.perf_counter()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._where.hostname, self._where.port)
        except OSError:
            return Answer(number, start, time.perf_counter() - start, 0)
        try:
            async with asyncio.timeout(PATIENCE):
                status, headers, said = await self._exchange(body)
        except (OSError, EOFError, TimeoutError):
            self._streams[1].close()
            self._streams = None
            return Answer(number, start, time.perf_counter() - start, -1)
        if b"connection: close" in headers:
            self._streams[1].close()
            self._streams = None
        return Answer(number, start, time.perf_counter() - start, status, b"retry-after:" in headers, said)

    async def _exchange(self, sent: bytes) -> tuple[int, bytes, bytes]:
        assert self._streams is not None
        reader, writer = self._streams
        head = f"POST {self._where.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        await writer.drain()
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = headers.partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        if length:
            body = await reader.readexactly(int(length))
        elif b"transfer-encoding: chunked" in headers:
            body = await reader.readuntil(b"0\r\n\r\n")
        else:  # of a server that is ending
            raise EOFError
        return int(headers.split(b" ", 2)[1]), headers, body


async def closed(
    url: str,
    bodies: Sequence[bytes],
    clients: int,
    n: int | None = None,
    until: Callable[[], bool] = lambda: False,
    keep: Callable[[Answer], None] | None = None,
) -> list[Answer]:
    """Each client sends its next request when it has an answer, `n` in all, or until `until()`.

    Args:
        keep: gets each answer in place of the list.
    """
    answers: list[Answer] = []
    take, numbers = keep or answers.append, count()

    async def client() -> None:
        connection = _Connection(url)
        while not until() and (n is None or (number := next(numbers)) < n):
            number = number if n is not None else next(numbers)
            answer = await connection.send(number, bodies[number % len(bodies)])
            take(answer)
            if answer.status != 200:
                await asyncio.sleep(0.05)

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def steady(url: str, bodies: Sequence[bytes], rate: float, seconds: float, most: int = 1000) -> list[Answer]:
    """`rate` requests a second, whatever is answered; `most` connections."""
    answers: list[Answer] = []
    free: asyncio.Queue[_Connection] = asyncio.Queue()
    for _ in range(most):
        free.put_nowait(_Connection(url))
    tasks: set[asyncio.Task[None]] = set()

    async def one(number: int, connection: _Connection) -> None:
        answers.append(await connection.send(number, bodies[number % len(bodies)]))
        free.put_nowait(connection)

    begin = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        task = asyncio.create_task(one(number, await free.get()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return answers


def figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """Posts a second that were answered, and the times of those, in milliseconds."""
    good = [answer for answer in answers if answer.status == 200]
    span = max(a.start + a.seconds for a in answers) - min(a.start for a in answers)
    times = 1000 * np.array([answer.seconds for answer in good] or [0.0])
    return {
        "requests": len(answers),
        "seconds": round(span, 1),
        "answered_per_second": round(len(good) / span, 1),
        "p50_ms": round(float(np.percentile(times, 50)), 1),
        "p99_ms": round(float(np.percentile(times, 99)), 1),
        "statuses": {str(status): n for status, n in sorted(Counter(a.status for a in answers).items())},
    }


def run(work: Awaitable[list[Answer]]) -> list[Answer]:
    """Without this process's own garbage collector, which would hold all clients up, for half a second each time."""

    async def call() -> list[Answer]:
        return await work

    gc.disable()
    try:
        return asyncio.run(call())
    finally:
        gc.enable()
