"""What is asked: the posts of a table as requests with their keys, and what each costs at most."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from model.errors import AnnotationError, ImageError, plain
from model.images import INGESTED, read_source, sides
from model.schema import IMAGE_SHA256, IMAGES, LABEL_SOURCE, MISSING_REASON, POST_ID, ROOT, SPLIT, TEXT, TITLE
from model.task import Task
from steps.annotate.faults import Fault
from steps.annotate.ledger import BatchItem, LedgerAnswer, Missing
from steps.annotate.prices import FREE, Price, Tokens, image_tokens, request_tokens
from steps.annotate.prompt import (
    Payloads,
    annotation_key,
    answer_schema,
    build_messages,
    build_questions,
    image_payload,
    image_url,
)
from steps.annotate.reply import Asked
from steps.annotate.settings import COMPLETION_LIMITS, AnnotateSettings

#: Data URLs that are kept for the next request with the same image: a distinct image is encoded once as long as
#: the album's repetitions lie within this many bytes.
_PAYLOAD_BYTES = 128_000_000

#: Fields that we send of our own accord and some models do not take, and what is sent in their place ("": nothing).
#: Source: https://platform.openai.com/docs/guides/reasoning
_INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": ""}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: the post at `index`, and the position of the question that is asked, None: all of them."""

    key: str
    index: int
    question: int | None


class Requests:
    """The posts to annotate, and one request for each of them, or for each of their questions.

    Args:
        table: of ingest; the posts of `settings.splits` are taken, in their order.
        price: of the model; None: it has none, and every cost is None.
    """

    def __init__(self, table: pd.DataFrame, task: Task, settings: AnnotateSettings, price: Price | None = FREE) -> None:
        table = table[table[SPLIT].isin(settings.splits)]
        self.task, self.settings, self.source, self.price = task, settings, settings.source, price
        self.ids: list[str] = table[POST_ID].tolist()
        self._titles: list[str] = table[TITLE].tolist()
        self._texts: list[str] = table[TEXT].tolist()
        self._roots: list[str] = table[ROOT].tolist()
        self.images: list[Sequence[str]] = table[IMAGES].tolist()
        self.hashes: list[Sequence[str]] = table[IMAGE_SHA256].tolist()
        self._single = [task.model_copy(update={"questions": (question,)}) for question in task.questions]
        self._payloads = Payloads(_PAYLOAD_BYTES)
        self._sides: dict[str, tuple[int, int]] = {}
        #: How many times as much as by the rules a request was seen to cost; an endpoint's own images may do that.
        self._dearer = 1.0
        #: Fields that the endpoint was found not to take, of those in `_INSTEAD`.
        self._refused: list[str] = []
        #: The requests of each post, in the order of the posts.
        self.of_posts: list[list[Request]] = [self._of_post(index) for index in range(len(self.ids))]

    def _of_post(self, index: int) -> list[Request]:
        if not self.task.questions:
            return []
        if self.settings.ask == "together":
            return [Request(self._key(index, self.task, self._titles[index], self._texts[index]), index, None)]
        requests = []
        for position, task in enumerate(self._single):
            wording = task.questions[0].annotate
            # a title that the wording does not quote is not sent: where it changes, nothing is asked again
            title = self._titles[index] if "{title}" in wording else ""
            text = self._texts[index] if "{text}" in wording else ""
            requests.append(Request(self._key(index, task, title, text), index, position))
        return requests

    def _key(self, index: int, task: Task, title: str, text: str) -> str:
        settings = self.settings
        return annotation_key(
            self.hashes[index], title, text, task, self.source,
            answer_format=settings.format, detail=settings.detail, form=settings.prompt,
        )  # fmt: skip

    def distinct(self) -> list[Request]:
        """One request per key: posts of the same content share its answer."""
        first: dict[str, Request] = {}
        for requests in self.of_posts:
            for request in requests:
                first.setdefault(request.key, request)
        return list(first.values())

    def task_of(self, request: Request) -> Task:
        """The questions of a request."""
        return self.task if request.question is None else self._single[request.question]

    def text(self, request: Request) -> str:
        """The questions as they are sent, with the form of the answer."""
        index = request.index
        task, n_images, settings = self.task_of(request), len(self.images[index]), self.settings
        title, text = self._titles[index], self._texts[index]
        return build_questions(task, title, text, n_images, settings.format, settings.prompt)

    def body(self, request: Request) -> dict[str, Any]:
        """The whole request, as `POST /v1/chat/completions` takes it.

        Raises:
            AnnotationError: an image is gone, was changed since ingest, or cannot be decoded.
        """
        index, settings = request.index, self.settings
        urls = [self._url(index, position) for position in range(len(self.images[index]))]
        messages = build_messages(self.text(request), urls, settings.detail)
        return {"model": settings.model, "messages": messages} | self.fields(request)

    def fields(self, request: Request | None = None) -> dict[str, Any]:
        """What is sent beside model and messages, as the settings have it.

        Args:
            request: whose `response_format` is included; None: what all requests have in common.
        """
        settings = self.settings
        fields: dict[str, Any] = {"max_tokens": settings.max_tokens, "temperature": 0}
        fields |= self._response_format(request) if request else {}
        if settings.request_fields.get("max_completion_tokens"):
            del fields["max_tokens"]  # no endpoint takes both
        return {name: value for name, value in (fields | settings.request_fields).items() if value is not None}

    def adapt(self, fault: Fault, sent: Collection[str]) -> bool:
        """From now on send no request with a field that the endpoint does not take, as long as the field is ours.

        Args:
            sent: the fields of the request that was refused.

        Returns:
            Whether the request differs from now on. A field of the settings is theirs: dropped without a word, it
            would change what the user asked for.
        """
        name = fault.field
        if name not in sent or name in self.settings.request_fields or name not in _INSTEAD:
            return False
        if name not in self._refused:  # else another request, under way at the same time, was refused before
            self._refused.append(name)
            instead = f"{_INSTEAD[name]} is sent in its place" if _INSTEAD[name] else "it is no longer sent"
            logger.warning(
                "Annotator %s does not take %s, so %s; annotate.request_fields can set this for good (%s)",
                self.source, name, instead, fault.message,
            )  # fmt: skip
        return True

    def adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """`body` without the fields that the endpoint was found not to take."""
        for name in self._refused:
            if name in body:
                body = dict(body)
                value, instead = body.pop(name), _INSTEAD[name]
                if instead:
                    body.setdefault(instead, value)
        return body

    def asked(self, request: Request, body: Mapping[str, Any]) -> Asked:
        """What the reply to `body` is an answer to."""
        fields = [name for name in body if name not in ("model", "messages")]
        return Asked(self.task_of(request), len(self.images[request.index]), self.settings.format, fields)

    @property
    def limit(self) -> int:
        """The most tokens that an answer may have."""
        return int(max(limit for name, limit in self.fields().items() if name in COMPLETION_LIMITS))

    def options(self, reason: Missing | None = None) -> str:
        """What an outcome depends on beside its key: the fields of the request, whatever the limit's is called.

        Args:
            reason: of a missing answer; a timeout also depends on `annotate.timeout`.
        """
        fields = {name: value for name, value in self.fields().items() if name not in COMPLETION_LIMITS}
        fields |= {"max_tokens": self.limit}
        fields |= {"timeout": self.settings.timeout} if reason is Missing.TIMEOUT else {}
        return json.dumps(fields, sort_keys=True)

    def _response_format(self, request: Request) -> dict[str, Any]:
        if self.settings.format != "json_schema":
            return {}
        return {"response_format": answer_schema(self.task_of(request))}

    def _url(self, index: int, position: int) -> str:
        with self._explained(index, position):
            return self._payloads.get(
                self.hashes[index][position],
                lambda: image_url(image_payload(self._read(index, position), self.settings.detail)),
            )

    def _read(self, index: int, position: int) -> bytes:
        """An image's bytes, held to what ingest saw."""
        name, sha256 = self.images[index][position], self.hashes[index][position]
        return read_source(name, INGESTED, root=self._roots[index], sha256=sha256)

    @contextmanager
    def _explained(self, index: int, position: int) -> Iterator[None]:
        try:
            yield
        except ImageError as error:  # it could be read when it was ingested
            raise AnnotationError(
                f"post {self.ids[index]}: image {plain(self.images[index][position])} under {self._roots[index]}: "
                f"{error}; ingest the posts again, or remove the post"
            ) from error

    def file_bytes(self, index: int) -> float:
        """Bytes of a post's image files in all; one that is gone counts as empty, and `inf` where the root is a URL."""
        root = self._roots[index]
        if "://" in root:
            return math.inf
        paths = (Path(root, name) for name in self.images[index])
        return sum(path.stat().st_size for path in paths if path.is_file())

    def tokens(self, request: Request) -> Tokens:
        """Tokens of a request, by the price's rule for images.

        Raises:
            AnnotationError: as `body`; files are opened where the rule needs the images' sizes only.
        """
        index, settings, image = request.index, self.settings, (self.price or FREE).image
        if settings.detail == "low":
            images = image.base * len(self.images[index])
        else:
            sizes = (self._size(index, position) for position in range(len(self.images[index])))
            images = sum(image_tokens(*size, settings.detail, image) for size in sizes)
        form = self._response_format(request)
        text = self.text(request) + (json.dumps(form) if form else "")
        return request_tokens(text, images, len(self.task_of(request).questions), self.limit)

    def _size(self, index: int, position: int) -> tuple[int, int]:
        sha256 = self.hashes[index][position]
        if sha256 not in self._sides:
            with self._explained(index, position):
                self._sides[sha256] = sides(self._read(index, position), INGESTED)
        return self._sides[sha256]

    def most(self, request: Request) -> float:
        """Dollars that a request costs at most; 0 without a price."""
        return self._dearer * self._by_rule(request)

    def _by_rule(self, request: Request) -> float:
        if self.price is None or self.price == FREE:
            return 0.0
        return self.tokens(request).most_dollars(self.price, batch=self.settings.mode == "batch")

    def learn(self, request: Request, most: float, cost: float | None) -> None:
        """Raise what requests cost at most, where `request`, held to cost `most` when it was sent, has cost more."""
        if cost is not None and cost > most > 0:
            # by the rule and not by `most`: of many under way at once each would raise it again
            self._dearer = max(self._dearer, cost / self._by_rule(request))

    def item(self, request: Request) -> BatchItem:
        """A request as a batch file keeps it."""
        index = request.index
        return BatchItem(request.key, self.ids[index], len(self.images[index]), request.question, self.most(request))

    def labels(self, answers: dict[str, LedgerAnswer]) -> pd.DataFrame:
        """One row per post: post_id, one nullable Int8 column per question, label_source, missing_reason.

        Counts become classes by the task's present rules. `missing_reason` is None where every question is answered;
        where questions are asked singly, it names each that is not.
        """
        columns: dict[str, list[int | None]] = {id_: [] for id_ in self.task.question_ids}
        reasons: list[str | None] = []
        for requests, images in zip(self.of_posts, self.images, strict=True):
            missing = []
            for request in requests:
                answer, questions = answers[request.key], self.task_of(request).questions
                if answer.missing is not None:
                    name = "" if request.question is None else f"{questions[0].id}: "
                    missing.append(f"{name}{answer.missing.value}")
                for position, question in enumerate(questions):
                    count = None if answer.counts is None else answer.counts[position]
                    columns[question.id].append(None if count is None else question.class_of(count, len(images)))
            reasons.append("; ".join(missing) or None)
        labels = pd.DataFrame({POST_ID: pd.Series(self.ids, dtype="str")})
        for id_, classes in columns.items():
            labels[id_] = pd.array(classes, dtype="Int8")
        labels[LABEL_SOURCE] = pd.Series([self.source] * len(self.ids), dtype="str")
        labels[MISSING_REASON] = pd.Series(reasons, dtype=object)
        return labels
