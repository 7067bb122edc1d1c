"""A request to the service: read within limits, scored, answered. `scoring.app` has the routes."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Self, cast

import jiter
from fastapi import HTTPException, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import ClientDisconnect

from model.errors import DataError, ImageError, cut
from model.images import ImageLimits, read_source
from model.post import row_of
from model.schema import IMAGES, POST_ID, TEXT, TITLE, VIDEO
from model.video import FRAMES
from scoring.about import Served
from scoring.files import for_videos, read_below, watching
from scoring.record import Record
from scoring.score import Input, read_input
from scoring.settings import ServiceSettings
from steps.ingest.rows import is_url

if TYPE_CHECKING:
    from scoring.fetch import Fetch

logger = logging.getLogger(__name__)

#: Faults of a request that its answer names.
_NAMED = 10
#: What pydantic says of Python's types.
_AS_JSON = {"model_type": "Input should be an object", "list_type": "Input should be a valid array"}
_JSON = re.compile(r'application/json *(; *charset="?utf-?8"? *)?;?', re.IGNORECASE)
#: Values of a body for each post that it may have: a million empty objects are three megabytes, in memory a gigabyte.
_VALUES = 1000
_SIGNS = (b",", b"[", b"{")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
#: Bytes of a body that is read at once.
_SMALL = 2**18
#: Videos that wait or are being decoded, two at a time: each may take a minute. Posts of pictures go on beside them.
_VIDEOS = 16
#: Seconds that a rate looks back, at least.
_WINDOW = 10.0

#: What its reader adds to the reason.
_TOLD_OF_STORE = re.compile(r"(?<=^cannot be read).*|(?<=is not the name of a file) under .*", re.DOTALL)

Read = Callable[[Any], bytes]


_Named = Annotated[str, Field(pattern=r"\S")]


class ScorePost(row_of(columns=(POST_ID, TITLE, TEXT))):  # type: ignore[misc]
    """A post as it is sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": [IMAGES], "properties": {IMAGES: {"minItems": 1}}},
                {"required": [VIDEO], "properties": {VIDEO: {"type": "string"}}},
            ]
        },
    )

    images: list[_Named] = Field(
        default_factory=list,
        description="JPEG, PNG or WebP: each a data URL; or, where the service allows it, an https URL or a path",
    )
    video: _Named | None = Field(
        None, description="MP4, MOV, WebM or MKV, beside the images or instead of them; given as an image is"
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.images and self.video is None:
            raise ValueError("one or more images, or a video, are expected")
        return self


class ScoreRequest(BaseModel):
    """The body of `POST /score`."""

    posts: list[ScorePost] = Field(min_length=1)


class ScoreAnswer(BaseModel):
    """A record for each post, in order. The status is 422 where no post could be scored, each with its reason."""

    records: list[Record]


class Client(Protocol):
    """Who sends posts, where keys are asked for."""

    def take(self, posts: int, held: int = 0) -> None:
        """Raises: HTTPException: so many are too many at this moment."""
        ...


class _Metrics:
    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        new = functools.partial(Counter, registry=self.registry)
        self.requests = new("agentps_requests", "Requests to /score, by the status of their answer.", ["status"])
        self.posts = new("agentps_posts", "Posts that were answered.", ["version", "result"])
        self.latency = Histogram(
            "agentps_latency_seconds", "From a request's arrival to its answer.", registry=self.registry
        )
        self.batch = Histogram(
            "agentps_batch_posts", "Posts that were scored together.", registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )  # fmt: skip
        waiting = Gauge("agentps_queued_posts", "Posts that wait or are being scored.", registry=self.registry)
        waiting.set_function(lambda: service.posts)
        trouble = Gauge(
            "agentps_version_trouble", "1: the registry names a version that cannot be loaded.", registry=self.registry
        )
        trouble.set_function(lambda: float(service.score.about.status.trouble is not None))
        self._version = Gauge("agentps_version_info", "Serves now.", ["model", "version"], registry=self.registry)
        self._score = service.score
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What is counted where the posts are scored."""
        shadow = CounterMetricFamily("agentps_shadow_posts", "Posts for the challenger.", labels=["result"])
        for result, n in self._score.about.shadow.items():
            shadow.add_metric([result], n)
        yield shadow

    def render(self) -> bytes:
        status = self._score.about.status
        self._version.clear()
        self._version.labels(status.model, status.version).set(1)
        return generate_latest(self.registry)


class Service:
    """What the requests share: room for bytes and posts, and how fast posts leave."""

    def __init__(self, score: Served, settings: ServiceSettings, read: Read | None) -> None:
        self.score, self.settings = score, settings
        self.bytes = self.posts = self.requests = 0
        self.draining = False
        self.metrics = _Metrics(self)
        self._readers = ThreadPoolExecutor(4, "read")
        self._watchers, self._videos = ThreadPoolExecutor(2, "watch"), 0
        self._read = self._read_source if read is None else lambda source, limits: read(source)
        self._fetch = _fetch_of(settings) if read is None else None
        self._reads_fast = read is None and settings.image_root is None
        self._left: list[tuple[float, int]] = [(time.monotonic(), 0)]

    def _read_source(self, source: Any, limits: ImageLimits) -> bytes:
        folder = self.settings.image_root
        if isinstance(source, str) and not source.startswith("data:") and folder is None:
            raise ImageError("no path or URL is read here: send it as a data URL (data:image/jpeg;base64,...)")
        if isinstance(source, str) and source.startswith(("http:", "https:")):
            raise ImageError("no URL is read here: send it as a data URL (data:image/jpeg;base64,...)")
        if folder is None or not is_url(folder):
            return read_source(source, limits, folder=folder)
        try:
            return read_below(folder, source, limits)
        except ImageError as error:  # what an object store says may name its folder and its account
            if error.__cause__ is not None:
                logger.warning("image_root cannot be read: %s", type(error.__cause__).__name__)
            raise ImageError(_TOLD_OF_STORE.sub("", str(error))) from None

    # --- room ---------------------------------------------------------------------------------------

    def retry_after(self) -> dict[str, str]:
        """In whole seconds: how long what waits will take, by what has left lately."""
        (start, before), (end, after) = self._left[0], self._left[-1]
        rate = (after - before) / (end - start) if end > start else 0
        return {"Retry-After": str(min(60, max(1, math.ceil(self.posts / rate)))) if rate else "1"}

    def busy(self, what: str) -> HTTPException:
        return HTTPException(429, f"busy: {what}: send it again after the seconds of Retry-After", self.retry_after())

    def left(self, n: int) -> None:
        now = time.monotonic()
        self._left.append((now, self._left[-1][1] + n))
        while len(self._left) > 2 and self._left[1][0] < now - _WINDOW:
            self._left.pop(0)

    # --- one request --------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Response:
        """Raises: HTTPException with the reason."""
        arrived, taken = time.perf_counter(), [0]
        if self.draining:
            raise HTTPException(503, "this server is ending", {"Retry-After": "1"})
        if self.posts >= self.settings.queue_posts:
            raise self.busy(f"{self.posts} posts wait")
        self.requests += 1
        try:
            body = await self._body(request, taken)
            size = len(body)
            posts = await self._step(size, self._posts, body, getattr(request.state, "client", None))
            del body
            fetched = await self._fetched(posts, taken)
            inputs = await self._seen(size, posts, fetched)
            del posts, fetched
            records = await self._scored(inputs)
        finally:
            self.requests -= 1
            self.bytes -= taken[0]
        seconds = time.perf_counter() - arrived
        return self._answered(records, seconds)

    async def _body(self, request: Request, taken: list[int]) -> bytes:
        """Args: taken: gets the number of bytes that this request holds, also where it fails."""
        settings, chunks = self.settings, []
        is_json = _JSON.fullmatch(request.headers.get("content-type", ""))
        if not is_json or request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "the body is JSON in UTF-8, not compressed: Content-Type: application/json")
        length = request.headers.get("content-length", "")
        if length.isdigit() and len(length) < 20 and int(length) > settings.request_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(settings.request_seconds):
                async for chunk in request.stream():
                    self._hold(len(chunk), taken)
                    chunks.append(chunk)
        except TimeoutError:
            raise HTTPException(408, f"not sent within {settings.request_seconds:g} seconds") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client has gone") from None
        return b"".join(chunks)

    async def _step(self, size: int, step: Callable[..., Any], *given: Any) -> Any:
        """
        Args:
            size: bytes of the request's body.
        """
        if self._reads_fast and size < _SMALL:
            return step(*given)  # it takes less time than to wake a thread
        return await asyncio.get_running_loop().run_in_executor(self._readers, step, *given)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"more than {self.settings.request_bytes:,} bytes: send fewer posts at a time")

    def _hold(self, n: int, taken: list[int]) -> None:
        """Raises: HTTPException: a request, or all of them, would hold too many bytes."""
        taken[0] += n
        self.bytes += n
        if taken[0] > self.settings.request_bytes:
            raise self._too_large()
        if self.bytes > self.settings.queue_bytes:
            raise self.busy(f"{self.bytes:,} bytes wait")

    def _posts(self, body: bytes, client: Client | None) -> list[ScorePost]:
        if _has_more_values(body, most := _VALUES * (self.settings.request_posts + 1)):
            raise HTTPException(413, f"more than {most:,} values in one body")
        try:  # of a key that stands twice, readers differ in which one they take
            sent = jiter.from_json(body, catch_duplicate_keys=True, allow_inf_nan=False, cache_mode="none")
        except ValueError as error:
            raise HTTPException(422, cut(f"body: Invalid JSON: {error}", 200)) from None
        try:
            found = ScoreRequest.model_validate(sent)
        except ValidationError as error:
            raise HTTPException(422, _faults(error)) from None
        most, posts = self.settings.request_posts, found.posts
        if len(posts) > most:
            raise HTTPException(413, f"{len(posts):,} posts; at most {most} are taken in one request")
        if client is not None:
            client.take(len(posts), held=1)
        return posts

    async def _fetched(self, posts: Sequence[ScorePost], taken: list[int]) -> dict[str, bytes | ImageError]:
        """The pictures that are named by URLs, where URLs are read; none of a post that is not scored anyway."""
        if self._fetch is None:
            return {}
        about, wanted = self.score.about, dict[str, ImageLimits]()
        for post in posts:
            if about.post_limits.faults("", "", len(post.images) + FRAMES * (post.video is not None)):
                continue
            for source in post.images:
                wanted.setdefault(source, about.limits)
            if post.video is not None:
                wanted[post.video] = for_videos(about.limits)
        return await self._fetch.all(wanted, lambda n: self._hold(n, taken))

    async def _seen(
        self, size: int, posts: Sequence[ScorePost], fetched: Mapping[str, bytes | ImageError]
    ) -> list[Input]:
        """Raises: HTTPException: too many videos wait; or a post that no record can be of."""
        n = sum(post.video is not None for post in posts)
        if not n:
            return cast("list[Input]", await self._step(size, self._inputs, posts, fetched))
        if self._videos and self._videos + n > _VIDEOS:
            raise self.busy(f"{self._videos} videos wait")
        self._videos += n
        try:
            return await asyncio.get_running_loop().run_in_executor(self._watchers, self._inputs, posts, fetched)
        finally:
            self._videos -= n

    def _inputs(self, posts: Sequence[ScorePost], fetched: Mapping[str, bytes | ImageError]) -> list[Input]:
        """Base64, files, videos, and whatever `read` waits for."""

        def reader(limits: ImageLimits) -> Read:
            def read(source: Any) -> bytes:
                found = fetched.get(source)
                if isinstance(found, ImageError):
                    raise found
                return self._read(source, limits) if found is None else found

            return read

        about = self.score.about
        read, watch = reader(about.limits), watching(reader(for_videos(about.limits)), about.limits)
        try:
            return [read_input(post.model_dump(), read, about.post_limits, watch) for post in posts]
        except DataError as error:
            raise HTTPException(422, str(error)) from None

    async def _scored(self, inputs: Sequence[Input]) -> list[Record]:
        n = len(inputs)
        if self.posts and self.posts + n > self.settings.queue_posts:
            raise self.busy(f"{self.posts} posts wait, and {n} find no room")
        self.posts += n
        try:
            records = await self.score.submit(inputs)
        finally:
            self.posts -= n
        self.left(n)
        return records

    def _answered(self, records: Sequence[Record], seconds: float) -> Response:
        latency = round(seconds * 1000, 3)
        records = [record.model_copy(update={"latency_ms": latency}) for record in records]
        self.metrics.latency.observe(seconds)
        for record in records:
            self.metrics.posts.labels(record.model_version, "error" if record.error is not None else "scored").inc()
        body = '{"records":[' + ",".join(record.model_dump_json() for record in records) + "]}"
        failed = all(record.error is not None for record in records)
        return Response(body, 422 if failed else 200, media_type="application/json")

    async def drain(self, seconds: float) -> int:
        """Take no more requests, and wait for those that were taken; returns how many were not answered in time."""
        self.draining = True
        end = time.monotonic() + seconds
        while self.requests and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return self.requests


def _has_more_values(body: bytes, most: int) -> bool:
    """A value follows one of three signs. Strings, whose own signs count for nothing, are cut out where it matters."""
    if sum(map(body.count, _SIGNS)) <= most:
        return False
    return sum(map(_STRING.sub(b"", body).count, _SIGNS)) > most


def _faults(error: ValidationError) -> list[str]:
    """Where, and what is wrong; not what was sent."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        f"{'.'.join(map(str, fault['loc'])) or 'body'}: "
        + _AS_JSON.get(fault["type"], fault["msg"].removeprefix("Value error, "))
        for fault in found[:_NAMED]
    ]
    return lines + ([f"and {len(found) - _NAMED:,} more"] if len(found) > _NAMED else [])


def _fetch_of(settings: ServiceSettings) -> Fetch | None:
    if not settings.image_hosts:
        return None
    from scoring.fetch import Fetch

    return Fetch(settings.image_hosts, seconds=settings.image_seconds)
