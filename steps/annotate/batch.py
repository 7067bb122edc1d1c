"""The endpoint's batch interface: half the price, within a day; the same requests, parser and ledger.

Requests go up as files (batch files) and their answers come back as files. A batch file is in the ledger's
database before anything of it is sent, and leaves it in one transaction with its answers, so a
restart at any moment finds it again: uploaded or not, finished or not, in either mode.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import IO, Any, Final, TypeVar

import openai
from openai.types import Batch

from model.errors import AnnotationError, plain
from model.task import Task
from steps.annotate.endpoint import unreachable
from steps.annotate.faults import Fault, Kind, find_fault
from steps.annotate.ledger import UNPAID, Attempt, BatchFile, BatchItem, Ledger, Missing
from steps.annotate.reply import Asked, Reply, read_decoded
from steps.annotate.requests import Request, Requests
from steps.annotate.tally import Tally, claim
from steps.secrets import masked

#: Of one file, as documented: https://platform.openai.com/docs/guides/batch
MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
_CHAT: Final = "/v1/chat/completions"
#: By which a batch that was created just before a crash is found again; its name is older than "batch file".
_METADATA = "agentps_shard"
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
#: Seconds between two looks, from the first to the longest.
_FIRST_POLL, _LONGEST_POLL = 2.0, 60.0
#: How often a request is sent up in one run as long as it is not served at all.
_TRIES = 3
_CLAIMED = 500
_HTTP_RETRIES = 5

_T = TypeVar("_T")


class BatchRun:
    """The batch files of one annotator on one endpoint, those of earlier and of other processes included."""

    def __init__(self, requests: Requests, ledger: Ledger, tally: Tally, client: openai.AsyncOpenAI) -> None:
        self._requests, self._ledger, self._tally = requests, ledger, tally
        self._who = masked(f"annotator {requests.source} at {client.base_url}")
        self._client = client.with_options(max_retries=_HTTP_RETRIES)
        self._under_way: set[str] = set()
        #: Batch files whose lease is ours -> dollars reserved.
        self._mine: dict[str, float] = {}
        #: How often a key was sent up since it was last served.
        self._tries: Counter[str] = Counter()
        self._trouble = ""
        self._next_look, self._interval = 0.0, _FIRST_POLL

    # --- sending

    async def ask(self, todo: Sequence[Request]) -> list[Request]:
        """Settle what can be settled and send up the rest. Returns what is not settled yet."""
        outlook = self._tally.outlook
        if not outlook.is_due(len(todo)):
            return await self._ask(todo)
        if self._under_way & outlook.look:
            return list(todo)
        # a small batch file, before very many requests are paid for; those of the look stand first
        n = sum(request.key in outlook.look for request in todo) or len(todo)
        return [*await self._ask(todo[:n]), *todo[n:]]

    async def _ask(self, todo: Sequence[Request]) -> list[Request]:
        queue, waiting = deque(todo), list[Request]()
        ready: deque[Request] = deque()
        while queue or ready:
            with tempfile.TemporaryFile() as file:
                items: list[BatchItem] = []
                full = False
                while not full and (ready or queue):
                    if not ready:
                        self._claim(queue, ready, waiting)
                        continue
                    full = not self._append(ready[0], items, file)
                    if not full:
                        waiting.append(ready.popleft())
                    await asyncio.sleep(0)  # the sign of life that keeps our leases
                if items:
                    await self._send(items, file)
                elif full:  # not one more request fits under the cap
                    self._ledger.release([request.key for request in ready])
                    if not self._tally.budget.under_way:
                        raise self._tally.cap_reached(self._requests.source)
                    return [*waiting, *ready, *queue]
        return waiting

    def _claim(self, queue: deque[Request], ready: deque[Request], waiting: list[Request]) -> None:
        """Move requests from the queue: some are settled, some ready to be sent, some wait for other processes."""
        chunk = [queue.popleft() for _ in range(min(_CLAIMED, len(queue)))]
        ours, held = claim(chunk, self._requests, self._ledger, self._tally)
        waiting += held
        given_up = []
        for request, answer in ours:
            tries = self._tries[request.key]
            enough = 1 if answer and answer.missing is Missing.REJECTED else _TRIES  # it would be rejected again
            if answer and answer.missing in UNPAID and tries >= enough:
                given_up.append(request.key)
                self._tally.settle(request.key, answer)
            elif tries >= _TRIES:
                raise AnnotationError(
                    f"{self._who}: a request was sent up {tries} times and never "
                    f"served ({self._trouble or 'the batches ended without it'}); what was answered is kept. Look at "
                    "the batches there, or set `annotate.mode: online`, and start the same command again"
                )
            else:
                ready.append(request)
        self._ledger.release(given_up)

    def _append(self, request: Request, items: list[BatchItem], file: IO[bytes]) -> bool:
        """Write one request to the file; False: it goes into another file, or the cap has no room for it."""
        body = self._requests.adapted(self._requests.body(request))
        entry = {"custom_id": request.key, "method": "POST", "url": _CHAT, "body": body}
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        if len(line) > MAX_BYTES:
            raise AnnotationError(
                f"post {self._requests.ids[request.index]}: its request has {len(line):,} bytes, a batch file at most "
                f"{MAX_BYTES:,}; set `annotate.detail: low`, or `annotate.mode: online`"
            )
        if len(items) >= MAX_REQUESTS or file.tell() + len(line) > MAX_BYTES:
            return False
        item = self._requests.item(request)
        if not self._tally.budget.reserve(item.reserved):
            return False
        file.write(line)
        items.append(item)
        return True

    async def _send(self, items: list[BatchItem], file: IO[bytes]) -> None:
        requests = self._requests
        reserved = sum(item.reserved for item in items)
        form = {
            "task": requests.task.model_dump(mode="json"),
            "format": requests.settings.format,
            "fields": sorted({*requests.adapted(requests.fields()), "response_format"}),
            "options": requests.options(),
        }
        batch_file = BatchFile(uuid.uuid4().hex, requests.source, form, tuple(items), None, None, reserved)
        self._ledger.claim([batch_file.id])
        self._ledger.add_batch_file(batch_file)
        # one reservation from here on
        self._tally.budget.settle(reserved, 0.0, len(items))
        self._tally.budget.take_over(reserved)
        self._mine[batch_file.id] = reserved
        keys = [item.key for item in items]
        self._tally.asked += sum(key not in self._tries for key in keys)
        self._tally.requests += len(keys)
        self._tries.update(keys)
        self._under_way.update(keys)
        file.seek(0)
        with self._explained():
            uploaded = self._object(
                await self._client.files.create(file=(f"{batch_file.id}.jsonl", file), purpose="batch")
            )
            self._ledger.sent_batch_file(batch_file.id, file_id=uploaded.id)
            batch_id = await self._create(batch_file.id, uploaded.id)
        self._ledger.sent_batch_file(batch_file.id, batch_id=batch_id)
        self._next_look, self._interval = 0.0, _FIRST_POLL

    async def _create(self, id_: str, file_id: str) -> str:
        """Create a batch once. Where only the reply is lost, the client alone would create and pay for a second one.

        Returns:
            Its name.
        """
        batches = self._client.with_options(max_retries=0).batches
        for retry in count():
            try:
                batch = await batches.create(
                    input_file_id=file_id, endpoint=_CHAT, completion_window="24h", metadata={_METADATA: id_}
                )
                return self._object(batch).id
            except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError):
                if retry == _HTTP_RETRIES:
                    raise
                await asyncio.sleep(min(_FIRST_POLL * 2**retry, _LONGEST_POLL))
                if (found := await self._find(id_)) is not None:
                    return found
        raise AssertionError("unreachable: count() does not end")

    # --- collecting

    async def collect(self) -> set[str]:
        """Record the answers of batch files that have ended, of any process. Returns the keys still under way."""
        if time.monotonic() < self._next_look:
            return self._under_way
        self._under_way = set()
        for batch_file in self._ledger.batch_files(self._requests.source):
            if not await self._collected(batch_file):
                self._under_way.update(item.key for item in batch_file.items)
        self._next_look = time.monotonic() + self._interval
        self._interval = min(2 * self._interval, _LONGEST_POLL)
        return self._under_way

    async def _collected(self, batch_file: BatchFile) -> bool:
        if batch_file.id not in self._mine:
            if not self._ledger.claim([batch_file.id]):
                return False  # a living process looks after it
            self._mine[batch_file.id] = batch_file.reserved
            self._tally.budget.take_over(batch_file.reserved)
        with self._explained():
            batch_id = batch_file.batch_id
            if batch_id is None and batch_file.file_id is not None:  # without a file there is no batch to look for
                batch_id = await self._find(batch_file.id)
            if batch_id is None:  # it was never created: nothing was asked
                self._end(batch_file, [], 0.0)
                return True
            batch = await self._retrieve(batch_id)
            if batch.status not in _ENDED:
                return False
            if batch.errors is not None and batch.errors.data:
                self._trouble = plain("; ".join(str(error.message) for error in batch.errors.data[:3]))
            elif batch.status != "completed":
                self._trouble = f"batch {batch.id}: {batch.status}"
            lines = await self._download(batch)
        ended = batch.completed_at or batch.expired_at or batch.cancelled_at or batch.failed_at or time.time()
        attempts, spent, fault = self._read(batch_file, lines, float(max(0.0, ended - batch.created_at)))
        self._end(batch_file, attempts, spent)
        if fault is not None:  # after what was answered is recorded
            remedy = fault.remedy(self._requests.settings.model)
            raise AnnotationError(f"{self._who}: {masked(fault.message)}; {remedy}. What was answered is kept")
        return True

    async def _download(self, batch: Batch) -> list[bytes]:
        """The lines of the result files.

        Raises:
            AnnotationError: what came is no whole result file; read as one, its answers would be paid for again.
        """
        lines: list[bytes] = []
        for name in filter(None, (batch.output_file_id, batch.error_file_id)):
            data = (await self._client.files.content(name)).content
            if b'"custom_id"' not in data:
                raise AnnotationError(
                    f"{self._who}: file {name} of batch {batch.id} came as {data[:200]!r}, which is no file of "
                    "results. Nothing of it was recorded; start the same command again"
                )
            lines += data.splitlines()
        counts = batch.request_counts
        if counts is not None and counts.completed is not None and len(lines) < counts.completed:
            raise AnnotationError(
                f"{self._who}: of batch {batch.id} came {len(lines)} lines, but {counts.completed} of its requests "
                "were served. Nothing of it was recorded; start the same command again"
            )
        return lines

    async def _find(self, id_: str) -> str | None:
        """The batch of a file whose sender got no reply with its name, or died before it could record it."""
        more: dict[str, Any] = {}
        while True:
            # raw: the client's own pages end in an AttributeError at HTML, and are empty at an error with HTTP 200
            raw = await self._client.batches.with_raw_response.list(limit=100, **more)
            page = raw.http_response.json()
            found = page.get("data") if isinstance(page, dict) else None
            if not isinstance(found, list):
                raise self._foreign(raw.http_response.text)
            for batch in found:
                if (batch.get("metadata") or {}).get(_METADATA) == id_:
                    self._ledger.sent_batch_file(id_, batch_id=batch["id"])
                    return str(batch["id"])
            if not found or not page.get("has_more"):
                return None
            more = {"after": found[-1]["id"]}

    async def _retrieve(self, batch_id: str) -> Batch:
        try:
            return self._object(await self._client.batches.retrieve(batch_id), "status")
        except openai.NotFoundError as error:
            raise AnnotationError(
                f"{self._who}: batch {batch_id}, which holds requests of an earlier run, is not known there "
                f"({plain(error.message)}); set OPENAI_BASE_URL and OPENAI_API_KEY to those "
                "that it was sent with. To give up what was paid for it, set file_id and batch_id of its row in "
                "annotation_shards to NULL"
            ) from error

    def _read(
        self, batch_file: BatchFile, lines: Sequence[bytes], latency: float
    ) -> tuple[list[Attempt], float, Fault | None]:
        """The attempts that the lines of the result files are, their dollars, and what every request would meet."""
        form, sent = batch_file.form, batch_file.form.get("fields", ())
        task = Task.model_validate(form["task"])
        items = {item.key: item for item in batch_file.items}
        known = self._ledger.lookup(items)
        attempts, spent, stop = [], 0.0, None
        for line in lines:
            item, reply = _read_line(line, items, Asked(task, 0, form["format"], sent))
            if item is None or reply is None:
                continue
            fault = reply.fault
            if fault is not None and fault.kind is Kind.FIELD and self._requests.adapt(fault, sent):
                self._tries[item.key] = 0  # not served; it is sent again as another request
                continue
            if fault is not None and fault.remedy(self._requests.settings.model):
                stop = fault
            del items[item.key]  # a second line of the same request would be counted twice
            cost = self._tally.cost(reply, item.reserved, batch=True)
            spent += cost or 0.0
            self._tally.count(reply)
            if reply.missing not in UNPAID and item.key in self._tries:
                self._tries[item.key] = 0
            attempt = reply.attempt(
                known.get(item.key), item.key, item.post_id, batch_file.source,
                latency=latency, cost=cost, options=form.get("options"),
            )  # fmt: skip
            attempts.append(attempt)
        return attempts, spent, stop

    def _end(self, batch_file: BatchFile, attempts: Sequence[Attempt], spent: float) -> None:
        kept = self._ledger.collect_batch_file(batch_file.id, attempts)
        self._tally.budget.settle(self._mine.pop(batch_file.id), spent if kept else 0.0)
        self._interval = _FIRST_POLL

    def _object(self, reply: _T, field: str = "id") -> _T:
        """`reply`, held to have the field; the client hands on an error, or a page of HTML, that came with HTTP 200."""
        if getattr(reply, field, None) is None:
            raise self._foreign(reply if isinstance(reply, str) else str(getattr(reply, "model_extra", None)))
        return reply

    def _foreign(self, text: str) -> AnnotationError:
        return AnnotationError(
            f"{self._who}: the batch interface replied with {masked(text[:200])!r} in place of what was asked for; "
            "check OPENAI_BASE_URL, and start the same command again"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except json.JSONDecodeError as error:  # cut, or empty
            raise self._foreign(error.doc) from error
        except openai.APIError as error:
            found, remedy = error.message, "an endpoint without /files and /batches takes `annotate.mode: online` only"
            if isinstance(error, openai.APIConnectionError):
                found, remedy = unreachable(error, self._client.base_url)
            elif isinstance(error, openai.APIStatusError):
                fault = find_fault(error.status_code, error.response.headers, error.body or error.response.text)
                if fault is not None and fault.kind is not Kind.MODEL and fault.remedy(""):
                    found, remedy = fault.message, fault.remedy(self._requests.settings.model)
            raise AnnotationError(
                f"{self._who}: the batch interface: {plain(masked(found))}; {remedy}. What was sent up and what was "
                "answered is kept, and the same command goes on from there"
            ) from error


def _read_line(line: bytes, items: dict[str, BatchItem], asked: Asked) -> tuple[BatchItem | None, Reply | None]:
    """The request that a line of a result file belongs to, and its reply; None where it has none of ours.

    Args:
        asked: of the whole file; of a line that is for one question of one post, this is filled in.
    """
    try:
        result: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None, None
    item = items.get(str(result.get("custom_id"))) if isinstance(result, dict) else None
    response = result.get("response") if isinstance(result, dict) else None
    if item is None or not isinstance(response, dict):
        return item, None  # expired or cancelled before it was served: to be sent again
    status, body, task = response.get("status_code"), response.get("body"), asked.task
    if item.question is not None:
        task = task.model_copy(update={"questions": (task.questions[item.question],)})
    asked = replace(asked, task=task, n_images=item.n_images)
    return item, read_decoded(status if type(status) is int else 500, {}, body, json.dumps(body), asked)
