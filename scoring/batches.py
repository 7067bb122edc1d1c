"""Posts of several requests become batches: none larger than a budget, and each sent when the model needs it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from scoring.record import Record
from scoring.score import Input

#: Batches that are under way at one time: the next one lies ready when one ends.
_UNDER_WAY = 2
#: Of what a batch took, in the speed that is expected of the next.
_NEWEST = 0.3
#: Of a batch's time: so long before its end the next one is sent. Until it has arrived, the process that sends it may
#: have as many requests to read as a batch has (docs/service.md).
_LEAD = 0.35


@dataclass(frozen=True)
class _Waiting:
    post: Input
    tokens: int
    since: float
    record: asyncio.Future[Record]


@dataclass
class _Sent:
    """tokens: as the model reads them. start: of its scoring, in seconds: of one behind another, that one's end."""

    tokens: int
    start: float


class Batches:
    """Posts wait in their order until a batch is full, or the model has nothing else to do.

    A batch that is sent early is small, and small batches take longer per post; one that is sent late lets the model
    wait. So while another one is scored, the next is sent some time before that one's end, by the speed that was seen.
    """

    def __init__(
        self, score: Callable[[list[Input]], Awaitable[Sequence[Record]]], budget: int, most: int, wait: float
    ) -> None:
        """
        Args:
            score: takes a batch. What it raises is raised for each post of the batch.
            budget: tokens of a batch, each post as long as its longest. A longer post is a batch by itself.
            most: posts of a batch.
            wait: seconds that the first post waits for others, at most, where nothing is scored.
        """
        self.budget, self.most = budget, most
        self._score, self._wait = score, wait
        self._waiting: deque[_Waiting] = deque()
        self._longest = 0
        self._sent: deque[_Sent] = deque()
        self._speed = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, posts: Sequence[tuple[Input, int]]) -> list[Record]:
        """
        Args:
            posts: each with its tokens.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        futures = [loop.create_future() for _ in posts]
        for (post, tokens), future in zip(posts, futures, strict=True):
            self._waiting.append(_Waiting(post, tokens, now, future))
            self._longest = max(self._longest, tokens)
        self._consider()
        return list(await asyncio.gather(*futures))

    def _consider(self) -> None:
        """Send what is due, and come again when the next batch will be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and len(self._sent) < _UNDER_WAY:
            early = self._due() - time.monotonic()
            if early > 0:
                self._timer = asyncio.get_running_loop().call_later(early, self._consider)
                return
            self._send()

    def _due(self) -> float:
        """When the next batch is to be sent, in seconds of the clock."""
        if len(self._waiting) >= self.most or len(self._waiting) * self._longest >= self.budget:
            return 0.0
        waits = self._waiting[0].since + self._wait
        if not self._sent or not self._speed:
            return waits
        (before,) = self._sent
        return max(waits, before.start + (1 - _LEAD) * before.tokens / self._speed)

    def _send(self) -> None:
        batch: list[_Waiting] = []
        longest = 0
        while self._waiting:
            longest = max(longest, self._waiting[0].tokens)
            if batch and (len(batch) >= self.most or (len(batch) + 1) * longest > self.budget):
                break
            taken = self._waiting.popleft()
            if not taken.record.done():  # else its request was given up
                batch.append(taken)
        self._longest = max((each.tokens for each in self._waiting), default=0)
        if batch:
            sent = _Sent(len(batch) * max(each.tokens for each in batch), time.monotonic())
            self._sent.append(sent)
            task = asyncio.create_task(self._answer(batch, sent))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, batch: Sequence[_Waiting], sent: _Sent) -> None:
        try:
            records = await self._score([each.post for each in batch])
            for each, record in zip(batch, records, strict=True):
                if not each.record.done():
                    each.record.set_result(record)
        except Exception as error:  # noqa: BLE001  # whatever it is, the requests that wait must learn of it
            for each in batch:
                if not each.record.done():
                    each.record.set_exception(error)
        finally:
            self._ended(sent)

    def _ended(self, sent: _Sent) -> None:
        now = time.monotonic()
        self._sent.remove(sent)
        for behind in self._sent:
            behind.start = max(behind.start, now)
        if sent.tokens and now > sent.start:
            speed = sent.tokens / (now - sent.start)
            self._speed = _NEWEST * speed + (1 - _NEWEST) * self._speed if self._speed else speed
        self._consider()
