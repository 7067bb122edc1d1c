"""What is asked: the posts of a table as requests with their keys, and what each costs at most."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from model.errors import AnnotationError, ImageError
from model.images import ImageLimits, read_source
from model.schema import IMAGE_SHA256, IMAGES, LABEL_SOURCE, MISSING_REASON, POST_ID, ROOT, SPLIT, TEXT, TITLE
from model.task import Task
from steps.annotate.ledger import LedgerAnswer, ShardItem
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
from steps.settings import AnnotateSettings

#: Data URLs that are kept for the next request with the same image: a distinct image is encoded once as long as
#: the album's repetitions lie within so many bytes.
_PAYLOAD_BYTES = 128_000_000
#: None: ingest has held the images to its own, and their hashes say that they are the same.
_LIMITS = ImageLimits(max_bytes=sys.maxsize, max_pixels=sys.maxsize)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the post at `index`, and the position of the question that is asked, None: all of them."""

    key: str
    index: int
    question: int | None


class Asks:
    """The posts to annotate, and one request for each of them, or for each of their questions.

    Args:
        table: of ingest; the posts of `settings.splits` are taken, in their order.
        source: names the annotator with its model.
        price: of the model; None: it has none, and every cost is None.
    """

    def __init__(
        self, table: pd.DataFrame, task: Task, settings: AnnotateSettings, source: str, price: Price | None = FREE
    ) -> None:
        table = table[table[SPLIT].isin(settings.splits)]
        self.task, self.settings, self.source, self.price = task, settings, source, price
        self.ids: list[str] = table[POST_ID].tolist()
        self._titles: list[str] = table[TITLE].tolist()
        self._texts: list[str] = table[TEXT].tolist()
        self.images: list[Sequence[str]] = table[IMAGES].tolist()
        self._roots: list[str] = table[ROOT].tolist()
        self.hashes: list[Sequence[str]] = table[IMAGE_SHA256].tolist()
        self._single = [task.model_copy(update={"questions": (question,)}) for question in task.questions]
        self._payloads = Payloads(_PAYLOAD_BYTES)
        self._sizes: dict[str, tuple[int, int]] = {}
        #: How many times as much as by the rules a request was seen to cost; an endpoint's own images may do that.
        self._dearer = 1.0
        #: The requests of each post, in the order of the posts.
        self.of_posts: list[list[Ask]] = [self._asks(index) for index in range(len(self.ids))]

    def _asks(self, index: int) -> list[Ask]:
        if not self.task.questions:
            return []
        if self.settings.ask == "together":
            return [Ask(self._key(index, self.task, self._titles[index], self._texts[index]), index, None)]
        asks = []
        for position, task in enumerate(self._single):
            wording = task.questions[0].annotate
            # a title that the wording does not quote is not sent, so that another one asks nothing anew
            title = self._titles[index] if "{title}" in wording else ""
            text = self._texts[index] if "{text}" in wording else ""
            asks.append(Ask(self._key(index, task, title, text), index, position))
        return asks

    def _key(self, index: int, task: Task, title: str, text: str) -> str:
        settings = self.settings
        return annotation_key(
            self.hashes[index], title, text, task, self.source, answer_format=settings.format, detail=settings.detail
        )

    def distinct(self) -> list[Ask]:
        """One request of each key: posts of the same content take its answer."""
        first: dict[str, Ask] = {}
        for asks in self.of_posts:
            for ask in asks:
                first.setdefault(ask.key, ask)
        return list(first.values())

    def task_of(self, ask: Ask) -> Task:
        """The questions of a request."""
        return self.task if ask.question is None else self._single[ask.question]

    def questions(self, ask: Ask) -> str:
        """The text of a request."""
        index = ask.index
        return build_questions(
            self.task_of(ask), self._titles[index], self._texts[index], len(self.images[index]), self.settings.format
        )

    def body(self, ask: Ask) -> dict[str, Any]:
        """The whole request, as `POST /v1/chat/completions` takes it.

        Raises:
            AnnotationError: an image file is gone, was changed since ingest, or cannot be decoded.
        """
        index, settings = ask.index, self.settings
        images = zip(self.images[index], self.hashes[index], strict=True)
        urls = [self._url(index, path, sha256) for path, sha256 in images]
        body = {
            "model": settings.model,
            "messages": build_messages(self.questions(ask), urls, settings.detail),
            "max_tokens": settings.max_tokens,
            "temperature": 0,
        }
        return body | self._response_format(ask)

    def _response_format(self, ask: Ask) -> dict[str, Any]:
        return {"response_format": answer_schema(self.task_of(ask))} if self.settings.format == "json_schema" else {}

    def _url(self, index: int, path: str, sha256: str) -> str:
        try:
            return self._payloads.get(
                sha256, lambda: image_url(image_payload(self._read(index, path, sha256), self.settings.detail))
            )
        except ImageError as error:
            raise AnnotationError(f"post {self.ids[index]}: image {path} {error}; remove the post") from error

    def _read(self, index: int, path: str, sha256: str) -> bytes:
        try:
            return read_source(path, _LIMITS, root=self._roots[index], sha256=sha256)
        except ImageError as error:
            raise AnnotationError(f"post {self.ids[index]}: image {path}: {error}; ingest again") from error

    def file_bytes(self, index: int) -> int:
        """Bytes of a post's image files in all; a file that is gone counts as empty, until it is read."""
        paths = (Path(self._roots[index], name) for name in self.images[index])
        return sum(path.stat().st_size for path in paths if path.is_file())

    def tokens(self, ask: Ask) -> Tokens:
        """Tokens of a request, by the price's rule for images.

        Raises:
            AnnotationError: as `body`; files are opened where the rule needs the images' sizes only.
        """
        index, settings, image = ask.index, self.settings, (self.price or FREE).image
        if settings.detail == "low":
            images = image.base * len(self.images[index])
        else:
            sizes = (self._size(index, *pair) for pair in zip(self.images[index], self.hashes[index], strict=True))
            images = sum(image_tokens(*size, settings.detail, image) for size in sizes)
        form = self._response_format(ask)
        text = self.questions(ask) + (json.dumps(form) if form else "")
        return request_tokens(text, images, len(self.task_of(ask).questions), settings.max_tokens)

    def _size(self, index: int, path: str, sha256: str) -> tuple[int, int]:
        if sha256 not in self._sizes:
            try:
                with Image.open(BytesIO(self._read(index, path, sha256))) as image:  # ingest has decoded the file
                    self._sizes[sha256] = image.size
            except OSError as error:
                raise AnnotationError(f"post {self.ids[index]}: image {path}: {error}; ingest again") from error
        return self._sizes[sha256]

    def most(self, ask: Ask) -> float:
        """Dollars that a request costs at most; 0 without a price."""
        return self._dearer * self._by_rule(ask)

    def _by_rule(self, ask: Ask) -> float:
        if self.price is None or self.price == FREE:
            return 0.0
        return self.tokens(ask).most_dollars(self.price, batch=self.settings.mode == "batch")

    def learn(self, ask: Ask, most: float, cost: float | None) -> None:
        """Raise what requests cost at most, where `ask`, held to cost `most` when it was sent, has cost more."""
        if cost is not None and cost > most > 0:
            # by the rule and not by `most`: of many under way at once each would raise it again
            self._dearer = max(self._dearer, cost / self._by_rule(ask))

    def item(self, ask: Ask) -> ShardItem:
        """A request as a shard keeps it."""
        return ShardItem(ask.key, self.ids[ask.index], len(self.images[ask.index]), ask.question, self.most(ask))

    def labels(self, answers: dict[str, LedgerAnswer]) -> pd.DataFrame:
        """One row a post: post_id, one nullable Int8 column a question, label_source, missing_reason.

        Classes are made of the counts by the task's rules of today. `missing_reason` is None where every question is
        answered; of questions asked singly it names each that is not.
        """
        columns: dict[str, list[int | None]] = {id_: [] for id_ in self.task.question_ids}
        reasons: list[str | None] = []
        for asks, images in zip(self.of_posts, self.images, strict=True):
            missing = []
            for ask in asks:
                answer, questions = answers[ask.key], self.task_of(ask).questions
                if answer.missing is not None:
                    name = "" if ask.question is None else f"{questions[0].id}: "
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
