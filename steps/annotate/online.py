"""The online mode: a fixed number of workers, each with one request at a time under way."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import httpx2
import openai

from model.errors import AnnotationError
from steps.annotate.endpoint import unreachable
from steps.annotate.faults import Kind
from steps.annotate.ledger import UNPAID, Ledger, LedgerAnswer, Missing, later
from steps.annotate.plan import is_settled
from steps.annotate.rates import RateLimits
from steps.annotate.reply import Reply, read_reply
from steps.annotate.requests import Request, Requests
from steps.annotate.tally import Tally, claim
from steps.secrets import masked

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 8.0  # seconds, before jitter
#: The endpoint counts as down after this many seconds and attempts without a connection: soon at the start, where a
#: wrong URL is likely; later only when it does not come back from a restart.
_DOWN_AT_START_SECONDS, _DOWN_SECONDS, _DOWN_FAILURES = 2.0, 30.0, 3
#: After this many requests in a row without a reply of the model the settings or the endpoint are wrong, not the posts.
#: Once a reply has come, a disturbance may last longer.
_BARREN_AT_START, _BARREN = 8, 64
_NO_REPLY = UNPAID | {Missing.TIMEOUT, Missing.NOT_JSON, Missing.ERROR}
#: When the run stops, it waits this many seconds for requests in flight: they are paid.
_GRACE_SECONDS = 10.0
#: An album of at most this many bytes is read in place, since a thread costs more. Decoding and resizing a larger one
#: would hold up every other request.
_INLINE_BYTES = 100_000
#: Leases taken in one transaction.
_CLAIMED = 32
#: The connection failed before the request was out: nothing can have been charged.
_NOT_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.LocalProtocolError,
    httpx2.UnsupportedProtocol,
    httpx2.ProxyError,
)


class OnlineRun:
    """One run against one endpoint: a fixed number of workers take requests from one queue."""

    def __init__(self, requests: Requests, ledger: Ledger, tally: Tally, client: openai.AsyncOpenAI) -> None:
        self._requests, self._ledger, self._tally, self._client = requests, ledger, tally, client
        self._settings, self._source, self._endpoint = requests.settings, requests.source, str(client.base_url)
        self._limits = RateLimits()
        self._stopping, self._freed = asyncio.Event(), asyncio.Event()
        self._reached = self._answered = False
        #: No request of this process is under way, and what batch files may cost leaves no room under the cap.
        self._full = False
        self._failures = self._barren = self._under_way = 0
        self._down_since = 0.0
        self._todo: deque[Request] = deque()
        self._ready: deque[tuple[Request, LedgerAnswer | None]] = deque()
        self._held: list[Request] = []

    async def ask(self, todo: Sequence[Request]) -> list[Request]:
        """Settle the requests of `todo`. Returns those that another process holds, and those for which the cap has no
        room until a batch file is collected."""
        self._todo, self._held, self._full = deque(todo), [], False
        workers = [asyncio.create_task(self._work()) for _ in range(min(self._settings.concurrency, len(todo)))]
        finished, pending = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        if pending:  # one of them failed
            self._stopping.set()
            self._freed.set()
            late, pending = await asyncio.wait(pending, timeout=_GRACE_SECONDS)
            finished |= late
            for worker in pending:
                worker.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        failures = [error for worker in finished if (error := worker.exception()) is not None]
        if failures:
            raise failures[0]
        left = [request for request, _ in self._ready]
        self._ready.clear()
        self._ledger.release([request.key for request in left])
        return [*self._held, *left, *self._todo]

    async def _work(self) -> None:
        while not self._stopping.is_set() and not self._full and (job := self._next()) is not None:
            await self._settle(*job)

    def _next(self) -> tuple[Request, LedgerAnswer | None] | None:
        """A request that only this process may ask, and what is known of it; None: there is no more."""
        while not self._ready and self._todo:
            size = min(_CLAIMED, self._settings.concurrency, len(self._todo))
            chunk = [self._todo.popleft() for _ in range(size)]
            ours, held = claim(chunk, self._requests, self._ledger, self._tally)
            self._ready += ours
            self._held += held
        return self._ready.popleft() if self._ready else None

    async def _settle(self, request: Request, known: LedgerAnswer | None) -> None:
        """Ask until there is an answer or the retries are used up; record every attempt."""
        requests, tally = self._requests, self._tally
        if requests.file_bytes(request.index) <= _INLINE_BYTES:
            body = requests.body(request)
        else:
            body = await asyncio.to_thread(requests.body, request)
        tokens = requests.tokens(request)
        expected = tokens.prompt + tokens.completion
        tally.asked += 1
        while True:
            most = requests.most(request)
            if not await self._admitted(most, expected):
                if self._full:
                    tally.asked -= 1
                    self._ledger.release([request.key])
                    self._held.append(request)
                return
            started = time.perf_counter()
            reply, lost = await self._ask_once(request, body, most, expected)
            self._under_way -= 1
            if reply is None:
                tally.budget.settle(most * (1 + lost), most * lost, 1 + lost)
                return
            cost = tally.cost(reply, most)
            requests.learn(request, most, cost)
            spent = None if cost is None else cost + most * lost
            post_id, options = requests.ids[request.index], requests.options(reply.missing)
            latency = time.perf_counter() - started
            attempt = reply.attempt(
                known, request.key, post_id, self._source, latency=latency, cost=spent, options=options
            )
            known = later(known, reply.counts, reply.missing, options, reply.completion_tokens)
            settled = reply.missing in UNPAID or is_settled(known, requests)
            self._ledger.record(attempt, settled=settled)
            tally.budget.settle(most * (1 + lost), spent or 0.0, 1 + lost)
            self._freed.set()
            tally.count(reply)
            if settled:
                tally.settle(request.key, known)
            self._watch_replies(reply)
            if settled or self._stopping.is_set():
                return

    async def _admitted(self, most: float, tokens: float) -> bool:
        """Wait until the cap and the endpoint's limits let one more request in.

        Returns:
            False: the run is stopping, or the cap has no room until a batch file is collected.
        """
        budget = self._tally.budget
        while not self._stopping.is_set():
            if budget.reserve(most):
                self._under_way += 1
                break
            if not budget.under_way:
                raise self._tally.cap_reached(self._source)
            if not self._under_way:
                self._full = True
                return False
            self._freed.clear()
            await self._freed.wait()
        while not self._stopping.is_set():
            wait = self._limits.wait(tokens)
            if wait <= 0:
                return True
            await self._pause(wait)
        return False

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than the run lasts."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _ask_once(
        self, request: Request, body: dict[str, Any], most: float, tokens: float
    ) -> tuple[Reply | None, int]:
        """One answer, within `settings.timeout` seconds, whatever the endpoint does meanwhile.

        Returns:
            The reply (None: the run is stopping, and nothing came back), and how many requests beside the last were
            lost on the way and may have been charged; `most` dollars are reserved for each.
        """
        lost, late = 0, Reply(missing=Missing.TIMEOUT)
        try:
            async with asyncio.timeout(self._settings.timeout):
                for retry in count():
                    delay = min(_FIRST_BACKOFF * 2**retry, _LONGEST_BACKOFF) * random.uniform(0.5, 1)
                    late = Reply(missing=Missing.TIMEOUT)  # if what follows does not come back
                    sent = self._requests.adapted(body)
                    try:
                        response = await self._post(sent, tokens)
                    except openai.APIConnectionError as error:
                        late = Reply(missing=Missing.CONNECTION, raw=repr(error.__cause__), billed=False)
                        self._watch_connection(error)
                        if not isinstance(error.__cause__, _NOT_SENT):
                            if not self._tally.budget.reserve(most):
                                return replace(late, billed=True), lost
                            lost += 1
                    else:
                        self._reached, self._failures = True, 0
                        asked = self._requests.asked(request, sent)
                        reply = read_reply(response.status_code, response.headers, response.content, asked)
                        if reply.fault is None:
                            return reply, lost
                        if reply.fault.kind is Kind.FIELD and self._requests.adapt(reply.fault, sent):
                            continue
                        if remedy := reply.fault.remedy(self._settings.model):  # every other post would meet it too
                            raise self._given_up(reply.fault.message, remedy)
                        if not reply.fault.passes:
                            return reply, lost
                        late, delay = reply, max(delay, reply.fault.wait)
                    await self._pause(max(delay, self._limits.wait(tokens)))
                    if self._stopping.is_set():
                        return None, lost
        except TimeoutError:
            return late, lost
        raise AssertionError("unreachable: count() does not end")

    async def _post(self, body: dict[str, Any], tokens: float) -> httpx2.Response:
        """What came back, whatever its status."""
        self._tally.requests += 1
        marks = self._limits.send(tokens)
        # Through `extra_body` and the raw response: the client's typed walks over the request and the reply
        # would cost more CPU than all the rest, and would raise on the replies that `read_reply` explains.
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self._settings.model, messages=[], extra_body=body
            )
            response = raw.http_response
        except openai.APIStatusError as error:
            response = error.response
        self._limits.learn(response.headers, marks)
        return response

    def _watch_replies(self, reply: Reply) -> None:
        if reply.missing not in _NO_REPLY:
            self._answered, self._barren = True, 0
            return
        self._barren += 1
        if self._barren >= (max(_BARREN, 2 * self._settings.concurrency) if self._answered else _BARREN_AT_START):
            last = reply.fault.message if reply.fault is not None else repr((reply.raw or "")[:300])
            raise self._given_up(
                f"the last {self._barren} requests brought no reply of the model ({reply.missing}: {last})",
                "check OPENAI_BASE_URL, annotate.model, request_fields, max_tokens and detail against what it accepts, "
                "and timeout and concurrency against its speed",
            )

    def _watch_connection(self, error: openai.APIConnectionError) -> None:
        now = time.monotonic()
        if self._failures == 0:
            self._down_since = now
        self._failures += 1
        patience = _DOWN_SECONDS if self._reached else _DOWN_AT_START_SECONDS
        if self._failures >= _DOWN_FAILURES and now - self._down_since >= patience:
            raise self._given_up(*unreachable(error, self._client.base_url)) from error

    def _given_up(self, found: str, remedy: str) -> AnnotationError:
        return AnnotationError(
            masked(f"annotator {self._source} at {self._endpoint}: {found}; {remedy}. ")
            + f"Done before: {self._tally.done} of {self._tally.total} requests; their answers are kept"
        )
