"""The service as a `Score`: posts go over HTTP, and a busy service is waited for."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError

from model.errors import AgentPSError
from scoring.record import Record
from scoring.score import Input

#: Of one request, where the service does not say that it is too many.
_POSTS, _BYTES = 32, 16_000_000
#: Seconds before a request is sent again where the service does not say; doubled each time, up to the second.
_FIRST, _LONGEST = 0.5, 30.0
_AGAIN = (429, 500, 502, 503, 504)


class ServiceError(AgentPSError):
    """The service cannot be reached, does not let us in, or answers in another language."""


class _Answer(BaseModel):
    records: list[Record]


class Ready(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model: str
    version: str
    task: str


class RemoteScore:
    """Scores by a service of `agentps serve`.

    A post that cannot be scored gets its record here: the service is not asked. What the service refuses as too large
    is sent in halves; one post that is too large by itself gets an error. Where the service is busy (429), is ending or
    cannot be reached, its `Retry-After` is waited for: who calls this waits, which is how the load goes down.
    """

    def __init__(self, url: str, key: str | None = None, *, patience: float = 300, timeout: float = 120) -> None:
        """
        Args:
            url: of the service, as `http://127.0.0.1:8000`.
            key: sent as `Authorization: Bearer`.
            patience: seconds that a request is sent again and again; then it is an error.
            timeout: seconds for one answer.
        """
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url, self._patience = url.rstrip("/"), patience
        self._client = httpx2.Client(base_url=self._url, headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        """As `Score`. `scored_at` is the service's own time where `now` is None.

        Raises:
            ServiceError: see its words.
        """
        found: dict[int, Record] = {}
        usable = [number for number, post in enumerate(inputs) if post.error is None]
        for part in _parts(usable, inputs):
            found |= zip(part, self._scored([inputs[number] for number in part]), strict=True)
        left = [number for number in range(len(inputs)) if number not in found]
        if left:
            seen = self.ready()
            found |= {n: _failed(inputs[n], str(inputs[n].error), seen, now or datetime.now(UTC)) for n in left}
        records = [found[number] for number in range(len(inputs))]
        # the service sees a video's frames as pictures
        records = [
            record if post.video_sha256 is None else record.model_copy(update={"input_sha256": post.sha256})
            for post, record in zip(inputs, records, strict=True)
        ]
        return records if now is None else [record.model_copy(update={"scored_at": now}) for record in records]

    def _scored(self, posts: Sequence[Input]) -> list[Record]:
        answer = self._sent("POST", "/score", {"posts": [_body(post) for post in posts]})
        if answer.status_code == 413 and len(posts) > 1:
            middle = len(posts) // 2
            return self._scored(posts[:middle]) + self._scored(posts[middle:])
        if answer.status_code == 413:
            return [_failed(posts[0], f"too large for the service: {_detail(answer)}", self.ready())]
        records = self._read(_Answer, answer, (200, 422)).records
        if [record.post_id for record in records] != [post.post_id for post in posts]:
            raise ServiceError(
                f"{self._url}: other posts were answered than were sent: is it a service of this project?"
            )
        return records

    def ready(self) -> Ready:
        """Who scores there now. Raises: ServiceError."""
        return self._read(Ready, self._sent("GET", "/ready", None), (200,))

    def _read(self, kind: type[Any], answer: httpx2.Response, good: tuple[int, ...]) -> Any:
        if answer.status_code in (401, 403):
            raise ServiceError(f"{self._url}: {answer.status_code}: {_detail(answer)}: give a key that it knows")
        try:
            if answer.status_code in good:
                return kind.model_validate_json(answer.content)
        except ValidationError:
            pass  # 422 may also mean that the request was no good
        raise ServiceError(
            f"{self._url}: {answer.status_code}: {_detail(answer)}: is it a service of this project, of this version?"
        )

    def _sent(self, method: str, path: str, body: dict[str, Any] | None) -> httpx2.Response:
        """The answer, once it is none that says: again later."""
        content = None if body is None else json.dumps(body).encode()
        end, wait = time.monotonic() + self._patience, _FIRST
        while True:
            try:
                headers = {"Content-Type": "application/json"} if content is not None else {}
                answer = self._client.request(method, path, content=content, headers=headers)
                if answer.status_code not in _AGAIN:
                    return answer
                said = f"{answer.status_code}: {_detail(answer)}"
                seconds = _seconds(answer) or wait
            except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
                raise ServiceError(f"{self._url}: {error}: an address as http://127.0.0.1:8000 is expected") from error
            except httpx2.TransportError as error:
                said, seconds = f"{type(error).__name__}: {error}", wait
            if time.monotonic() + seconds > end:
                raise ServiceError(
                    f"{self._url}: no answer in {self._patience:g} s ({said}): see that it runs (`agentps serve`), and "
                    "that it is not busy (its /ready)"
                )
            time.sleep(seconds)
            wait = min(2 * wait, _LONGEST)


def _body(post: Input) -> dict[str, Any]:
    images = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in post.images]
    return {"post_id": post.post_id, "title": post.title, "text": post.text, "images": images}


def _parts(numbers: Sequence[int], inputs: Sequence[Input]) -> Iterator[list[int]]:
    """Of posts that go together."""
    part: list[int] = []
    size = 0
    for number in numbers:
        bytes_ = sum(map(len, inputs[number].images)) * 4 // 3
        if part and (len(part) == _POSTS or size + bytes_ > _BYTES):
            yield part
            part, size = [], 0
        part.append(number)
        size += bytes_
    if part:
        yield part


def _failed(post: Input, error: str, seen: Ready, now: datetime | None = None) -> Record:
    said = {"model_name": seen.model, "model_version": seen.version, "task": seen.task, "error": error}
    scored_at = now or datetime.now(UTC)
    return Record.model_validate(said | {"post_id": post.post_id, "input_sha256": post.sha256, "scored_at": scored_at})


def _seconds(answer: httpx2.Response) -> float | None:
    said = answer.headers.get("retry-after", "")
    return float(said) if said.isascii() and said.isdigit() and len(said) < 5 else None


def _detail(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["detail"])[:300]
    except (ValueError, KeyError, TypeError):
        return answer.text[:100]
