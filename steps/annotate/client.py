"""Asks an OpenAI-compatible endpoint for the process labels of posts: once a post, and never a guess.

Everything that comes back is recorded in the ledger before anything else is done with it. A reply
that is no answer (a refusal, prose, too many numbers) is a missing value with its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import openai
import pandas as pd

from model.errors import AnnotationError, ImageError
from model.schema import IMAGE_SHA256, IMAGES, LABEL_SOURCE, MISSING_REASON, POST_ID, SPLIT, TEXT, TITLE
from model.task import Task
from steps.annotate.ledger import UNPAID, Attempt, Ledger, LedgerAnswer, Missing
from steps.annotate.prompt import annotation_key, build_messages
from steps.settings import AnnotateSettings

_CONNECT_SECONDS = 10.0
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 8.0  # seconds, before jitter
#: The endpoint counts as down when no connection succeeded for so many seconds and attempts: soon at the
#: start, where a wrong URL is likely; later only when it does not come back from a restart.
_DOWN_AT_START_SECONDS, _DOWN_SECONDS, _DOWN_FAILURES = 2.0, 30.0, 3
#: So many posts in a row, from the start, without a reply of the model: the settings or the endpoint are wrong, not
#: the posts. After the first reply a disturbance may last longer.
_BARREN_AT_START, _BARREN = 8, 64
_NO_REPLY = UNPAID | {Missing.TIMEOUT, Missing.NOT_JSON}
#: When the run stops, requests in flight may still come in (they are paid) for so many seconds.
_GRACE_SECONDS = 10.0
#: An album of so many bytes in all is read at once, which costs less than handing it to a thread; decoding and
#: resizing a larger one would hold up every other request.
_INLINE_BYTES = 100_000
_FILTER_CODES = frozenset({"content_filter", "content_policy_violation"})


@dataclass(frozen=True)
class AnnotationResult:
    """The labels, and what they took."""

    #: post_id, one nullable Int8 column a question, label_source, missing_reason (None: answered).
    labels: pd.DataFrame
    #: Distinct posts that were asked for in this run, and posts answered from the ledger alone.
    asked: int
    reused: int
    #: Posts without an answer.
    missing: int
    #: HTTP requests sent, retries included.
    requests: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class AnswerError(ValueError):
    """A text that is not the numbers that were asked for; `reason` says in what way."""

    def __init__(self, reason: Missing) -> None:
        super().__init__(reason.value)
        self.reason = reason


_FENCED = re.compile(r"^```[a-z]*\n(.*?)\n?```$", re.DOTALL)
_NUMBERS = re.compile(r"^[0-9]{1,6}(?:[ \t]*,[ \t]*[0-9]{1,6})*$")


def parse_answer(text: str, n: int) -> list[int]:
    """The `n` numbers of an answer: separated by commas, on one line, and nothing else.

    White space around, and a code fence around, are tolerated. Numbers picked out of prose would be guesses.

    Raises:
        AnswerError: other text (MALFORMED), or more or fewer numbers than `n` (WRONG_NUMBER).
    """
    text = text.strip()
    fenced = _FENCED.match(text)
    line = fenced[1].strip() if fenced else text
    if not _NUMBERS.match(line):
        raise AnswerError(Missing.MALFORMED)
    numbers = [int(number) for number in line.split(",")]
    if len(numbers) != n:
        raise AnswerError(Missing.WRONG_NUMBER)
    return numbers


@dataclass(frozen=True, slots=True)
class _Reply:
    """What one attempt came to; exactly one of `counts` and `missing` is set."""

    counts: tuple[int, ...] | None = None
    missing: Missing | None = None
    raw: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def read_reply(body: bytes, task: Task, n_images: int) -> _Reply:
    """The answer in the body of a reply with HTTP 200, whatever the body holds."""
    raw = body.decode("utf-8", errors="replace")
    try:
        reply = json.loads(body)
    except ValueError:  # cut, HTML, or not UTF-8
        return _Reply(missing=Missing.NOT_JSON, raw=raw)
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return _Reply(missing=Missing.EMPTY, raw=raw)
    usage = reply.get("usage")
    tokens = [_natural(usage.get(name)) if isinstance(usage, dict) else None for name in _USAGE]
    content, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")

    def missing(reason: Missing) -> _Reply:
        return _Reply(None, reason, refusal if refusal and isinstance(refusal, str) else str(content), *tokens)

    if refusal:
        return missing(Missing.REFUSAL)
    if finish == "content_filter":
        return missing(Missing.CONTENT_FILTER)
    if finish == "length":
        return missing(Missing.CUT)
    if not isinstance(content, str):
        return missing(Missing.MALFORMED)
    try:
        counts = parse_answer(content, len(task.questions))
    except AnswerError as error:
        return missing(error.reason)
    try:
        for question, answer in zip(task.questions, counts, strict=True):
            question.class_of(answer, n_images)
    except ValueError:
        return missing(Missing.OUT_OF_RANGE)
    return _Reply(tuple(counts), None, content, *tokens)


_USAGE = ("prompt_tokens", "completion_tokens")


def _natural(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def annotate_posts(
    posts: pd.DataFrame,
    task: Task,
    settings: AnnotateSettings,
    ledger: Ledger,
    *,
    base_url: str | None,
    api_key: str | None,
    source: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> AnnotationResult:
    """The annotator's labels of the posts in `settings.splits`, asking only what the ledger lacks.

    Args:
        posts: the table of ingest.
        base_url: of the endpoint, with its `/v1`; None: `OPENAI_BASE_URL`, else OpenAI's own.
        api_key: None: `OPENAI_API_KEY`.
        source: names the annotator with its model, for example "openai:gpt-4o". It is the labels'
            label_source and a part of every post's key, so a simulated and a real annotator of the
            same model never share an answer.
        on_progress: called with (posts done, posts to ask) after each post that was asked.

    Raises:
        AnnotationError: the endpoint cannot be used (down, authentication, quota, no such model), an
            image changed since ingest, or more than `settings.max_missing_share` of the posts have no
            answer. What was answered is in the ledger; the same call goes on from there.
        RuntimeError: called from within a running event loop.
    """
    started = time.perf_counter()
    if settings.model not in source:
        raise ValueError(f"source {source!r} must name the model {settings.model!r}: answers are kept under it")
    album = _Posts(posts[posts[SPLIT].isin(settings.splits)], task, source)
    known = ledger.lookup(album.keys) if task.questions else {}
    # the first post of each key; the others of the same content take its answer
    first = {key: index for index, key in reversed(list(enumerate(album.keys)))} if task.questions else {}
    todo = [
        (index, known[key].attempts if key in known else 0)
        for key, index in sorted(first.items(), key=lambda item: item[1])
        if key not in known or (known[key].counts is None and known[key].attempts <= settings.retries)
    ]
    reused = sum(key in known and known[key].counts is not None for key in album.keys)
    run = _Run(album, task, settings, ledger, source, on_progress or (lambda done, total: None), len(todo))
    if todo:
        asyncio.run(run.ask(todo, base_url, api_key))
    known |= run.answers
    labels = _labels(album, task, known, source)
    missing = int(labels[MISSING_REASON].notna().sum())
    if missing > settings.max_missing_share * len(labels):
        reasons = Counter(labels[MISSING_REASON].dropna()).most_common()
        raise AnnotationError(
            f"annotator {source}: {missing} of {len(labels)} posts have no answer "
            f"({', '.join(f'{reason}: {n}' for reason, n in reasons)}); at most {settings.max_missing_share:.0%} may. "
            "What was answered is kept. Look at the raw answers in the ledger, then raise annotate.retries to ask "
            "again, change the questions' wording, or raise annotate.max_missing_share"
        )
    return AnnotationResult(
        labels=labels,
        asked=len(todo),
        reused=reused,
        missing=missing,
        requests=run.requests,
        prompt_tokens=run.prompt_tokens,
        completion_tokens=run.completion_tokens,
        seconds=time.perf_counter() - started,
    )


class _Posts:
    """The columns of the posts to annotate as plain lists, and each post's annotation key."""

    def __init__(self, table: pd.DataFrame, task: Task, source: str) -> None:
        self.ids: list[str] = table[POST_ID].tolist()
        self.titles: list[str] = table[TITLE].tolist()
        self.texts: list[str] = table[TEXT].tolist()
        self.images: list[Sequence[str]] = table[IMAGES].tolist()
        self.hashes: list[Sequence[str]] = table[IMAGE_SHA256].tolist()
        self.keys = [
            annotation_key(hashes, title, text, task, source)
            for hashes, title, text in zip(self.hashes, self.titles, self.texts, strict=True)
        ]

    def size(self, index: int) -> int:
        """Bytes of a post's image files in all; a file that is gone counts as empty, until it is read."""
        return sum(path.stat().st_size for path in map(Path, self.images[index]) if path.is_file())

    def messages(self, index: int, task: Task, detail: str) -> list[dict[str, Any]]:
        """The chat messages of one post; its image files are read here and not kept.

        Raises:
            AnnotationError: a file is gone, was changed since ingest, or cannot be decoded.
        """
        images = []
        for path, sha256 in zip(self.images[index], self.hashes[index], strict=True):
            try:
                data = Path(path).read_bytes()
            except OSError as error:
                raise AnnotationError(
                    f"post {self.ids[index]}: image {path}: {error.strerror}; ingest again"
                ) from error
            if hashlib.sha256(data).hexdigest() != sha256:
                raise AnnotationError(
                    f"post {self.ids[index]}: image {path} was changed since it was ingested; ingest again"
                )
            images.append(data)
        try:
            return build_messages(task, self.titles[index], self.texts[index], images, detail)
        except ImageError as error:
            paths = ", ".join(self.images[index])
            raise AnnotationError(
                f"post {self.ids[index]}: one of the images {paths} {error}; remove the post"
            ) from error


class _Run:
    """One run against one endpoint: a fixed number of workers take posts from one iterator."""

    def __init__(
        self,
        posts: _Posts,
        task: Task,
        settings: AnnotateSettings,
        ledger: Ledger,
        source: str,
        on_progress: Callable[[int, int], None],
        total: int,
    ) -> None:
        self._posts, self._task, self._settings, self._ledger, self._source = posts, task, settings, ledger, source
        self._on_progress, self._done, self._total = on_progress, 0, total
        self._stopping = asyncio.Event()
        self._reached = self._answered = False
        self._failures = self._barren = 0
        self._down_since = 0.0
        self.answers: dict[str, LedgerAnswer] = {}
        self.requests = self.prompt_tokens = self.completion_tokens = 0

    async def ask(self, todo: list[tuple[int, int]], base_url: str | None, api_key: str | None) -> None:
        """Ask for the posts of `todo`: (index, paid attempts of earlier runs)."""
        async with self._connect(base_url, api_key) as self._client:
            self._endpoint = str(self._client.base_url)
            jobs = iter(todo)
            workers = [asyncio.create_task(self._work(jobs)) for _ in range(min(self._settings.concurrency, len(todo)))]
            finished, pending = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            if pending:  # one of them failed
                self._stopping.set()
                late, pending = await asyncio.wait(pending, timeout=_GRACE_SECONDS)
                finished |= late
                for worker in pending:
                    worker.cancel()
                await asyncio.gather(*pending, return_exceptions=True)
            failures = [error for worker in finished if (error := worker.exception()) is not None]
            if failures:
                raise failures[0]

    def _connect(self, base_url: str | None, api_key: str | None) -> openai.AsyncOpenAI:
        timeout = openai.Timeout(self._settings.timeout, connect=min(_CONNECT_SECONDS, self._settings.timeout))
        local = urlsplit(base_url or "").hostname in ("127.0.0.1", "localhost", "::1")
        try:
            client = openai.AsyncOpenAI(
                base_url=base_url,
                api_key=api_key,
                max_retries=0,  # ours: the client's would wait any Retry-After, and repeat an exhausted quota
                timeout=timeout,
                # a proxy in the environment does not lead to this machine's own ports
                http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, trust_env=False) if local else None,
            )
        except openai.OpenAIError as error:
            raise AnnotationError(
                f"annotator {self._source}: no API key; set OPENAI_API_KEY (to any value where none is needed), "
                "or choose `annotator: human`"
            ) from error
        if not (client.api_key.isascii() and client.api_key.isprintable()):
            raise AnnotationError(
                f"annotator {self._source}: the API key holds characters that an HTTP header cannot; set OPENAI_API_KEY"
            )
        return client

    async def _work(self, jobs: Iterator[tuple[int, int]]) -> None:
        for index, attempts in jobs:
            if self._stopping.is_set():
                return
            await self._settle(index, attempts)

    async def _settle(self, index: int, attempts: int) -> None:
        """Ask for one post until it is answered or its retries are used up; record every attempt."""
        if self._posts.size(index) <= _INLINE_BYTES:
            messages = self._posts.messages(index, self._task, self._settings.detail)
        else:
            messages = await asyncio.to_thread(self._posts.messages, index, self._task, self._settings.detail)
        key = self._posts.keys[index]
        while attempts <= self._settings.retries and not self._stopping.is_set():
            started = time.perf_counter()
            reply = await self._ask_once(messages, len(self._posts.images[index]))
            if reply is None:
                return
            self._ledger.record(
                Attempt(
                    key=key,
                    attempt=attempts + 1,
                    post_id=self._posts.ids[index],
                    model=self._source,
                    raw=reply.raw,
                    counts=reply.counts,
                    missing=reply.missing,
                    prompt_tokens=reply.prompt_tokens,
                    completion_tokens=reply.completion_tokens,
                    latency=time.perf_counter() - started,
                )
            )
            attempts += reply.missing not in UNPAID
            self.answers[key] = LedgerAnswer(reply.counts, reply.missing, attempts)
            self.prompt_tokens += reply.prompt_tokens or 0
            self.completion_tokens += reply.completion_tokens or 0
            self._watch_replies(reply)
            if reply.counts is not None or reply.missing in UNPAID:
                break
        self._done += 1
        self._on_progress(self._done, self._total)

    async def _ask_once(self, messages: list[dict[str, Any]], n_images: int) -> _Reply | None:
        """One answer, within `settings.timeout` seconds, whatever the endpoint does meanwhile.

        Returns:
            None: the run is stopping, and nothing came back.
        """
        reason = Missing.TIMEOUT
        try:
            async with asyncio.timeout(self._settings.timeout):
                for retry in count():
                    delay = min(_FIRST_BACKOFF * 2**retry, _LONGEST_BACKOFF) * random.uniform(0.5, 1)
                    reason = Missing.TIMEOUT  # of what follows, if it does not come back
                    try:
                        body = await self._post(messages)
                    except openai.APIStatusError as error:
                        self._reached, self._failures = True, 0
                        reason = self._judge(error)
                        if reason in (Missing.REJECTED, Missing.CONTENT_FILTER):
                            return _Reply(missing=reason, raw=str(error))
                        delay = max(delay, _retry_after(error))
                    except openai.APIConnectionError as error:
                        reason = Missing.CONNECTION
                        self._watch_connection(error)
                    else:
                        self._reached, self._failures = True, 0
                        return read_reply(body, self._task, n_images)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(delay):
                            await self._stopping.wait()
                    if self._stopping.is_set():
                        return None
        except TimeoutError:
            return _Reply(missing=reason)
        raise AssertionError("unreachable: count() does not end")

    async def _post(self, messages: list[dict[str, Any]]) -> bytes:
        self.requests += 1
        # Through `extra_body` and the raw response: the client's typed walks over the request and the reply
        # would cost more CPU than all the rest, and would raise on the replies that `read_reply` explains.
        response = await self._client.chat.completions.with_raw_response.create(
            model=self._settings.model,
            messages=[],
            max_tokens=self._settings.max_tokens,
            temperature=0,
            extra_body={"messages": messages},
        )
        return response.http_response.content

    def _judge(self, error: openai.APIStatusError) -> Missing:
        """Why a reply with an error status is no answer; raises where no other post would fare better."""
        status, codes = error.status_code, {error.code, error.type}
        if status in (401, 403):
            self._give_up(error, "check OPENAI_API_KEY, and what this key may use")
        if status == 402 or "insufficient_quota" in codes:
            self._give_up(error, "add credit or raise the quota of this account, then start the same command again")
        if status == 404:
            self._give_up(error, f"check that annotate.model {self._settings.model!r} and OPENAI_BASE_URL fit together")
        if codes & _FILTER_CODES:
            return Missing.CONTENT_FILTER
        if status == 429:
            return Missing.RATE_LIMITED
        if status in (408, 409) or status >= 500:
            return Missing.SERVER_ERROR
        return Missing.REJECTED

    def _watch_replies(self, reply: _Reply) -> None:
        if reply.missing not in _NO_REPLY:
            self._answered, self._barren = True, 0
            return
        self._barren += 1
        if self._barren >= (max(_BARREN, 2 * self._settings.concurrency) if self._answered else _BARREN_AT_START):
            raise AnnotationError(
                f"annotator {self._source} at {self._endpoint}: the last {self._barren} requests brought no reply of "
                f"the model ({reply.missing}: {(reply.raw or '')[:300]!r}); check OPENAI_BASE_URL, annotate.model, "
                "max_tokens and detail against what it accepts, and timeout and concurrency against its speed. "
                f"Done before: {self._done} of {self._total} posts; their answers are kept"
            )

    def _watch_connection(self, error: openai.APIConnectionError) -> None:
        now = time.monotonic()
        if self._failures == 0:
            self._down_since = now
        self._failures += 1
        patience = _DOWN_SECONDS if self._reached else _DOWN_AT_START_SECONDS
        if self._failures >= _DOWN_FAILURES and now - self._down_since >= patience:
            self._give_up(error, "check that the endpoint runs, and OPENAI_BASE_URL")

    def _give_up(self, error: openai.APIError, remedy: str) -> NoReturn:
        found = f"{error.message} ({error.__cause__!r})" if error.__cause__ is not None else error.message
        raise AnnotationError(
            f"annotator {self._source} at {self._endpoint}: {found}; {remedy}. "
            f"Done before: {self._done} of {self._total} posts; their answers are kept"
        ) from error


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds that the endpoint asks to wait, 0 where it does not say; the caller's deadline bounds them."""
    value = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:  # absent, or neither a number nor a date
        return 0.0


def _labels(posts: _Posts, task: Task, answers: dict[str, LedgerAnswer], source: str) -> pd.DataFrame:
    """One row a post, classes made of counts by the task's rules of today."""
    columns: dict[str, list[int | None]] = {id_: [] for id_ in task.question_ids}
    reasons: list[str | None] = []
    for key, images in zip(posts.keys, posts.images, strict=True):
        answer = answers[key] if task.questions else LedgerAnswer((), None, 0)
        reasons.append(answer.missing.value if answer.missing is not None else None)
        for position, question in enumerate(task.questions):
            found = answer.counts
            columns[question.id].append(None if found is None else question.class_of(found[position], len(images)))
    labels = pd.DataFrame({POST_ID: pd.Series(posts.ids, dtype="str")})
    for id_, classes in columns.items():
        labels[id_] = pd.array(classes, dtype="Int8")
    labels[LABEL_SOURCE] = pd.Series([source] * len(posts.ids), dtype="str")
    labels[MISSING_REASON] = pd.Series(reasons, dtype=object)
    return labels
