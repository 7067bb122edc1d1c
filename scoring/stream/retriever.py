"""Retriever: from a message to the cells of its post, and from the source of a picture to its bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DataError, SQLAlchemyError

from model.errors import AgentPSError, ConfigError, ImageError, cut
from model.images import ImageLimits, read_source
from model.post import post_id_of, shown
from model.schema import IMAGES, POST_ID
from scoring.files import check_store, read_below
from scoring.stream.source import Message
from scoring.stream.waiting import AwayError
from steps.ingest.rows import is_url, json_object
from steps.secrets import masked, resolved

#: The bytes of a picture, or an ImageError.
Read = Callable[[Any], bytes]
#: The same of a URL, as `scoring.fetch.Fetch`.
ReadUrl = Callable[[str, ImageLimits], bytes]
#: Bytes of a message, at most; a post of 16 pictures of 4 MB each, in base64, has fewer.
LONGEST = 100_000_000


class UnusableError(AgentPSError):
    """Of this message no record can be made: it becomes a dead letter, with this reason."""


class Retriever(Protocol):
    def __call__(self, message: Message) -> Mapping[str, Any]:
        """The cells of the post: `post_id`, `title`, `text`, `images`.

        Raises:
            UnusableError: the message is no post.
            AwayError: what it is looked up in does not answer.
        """
        ...


def from_message(message: Message) -> Mapping[str, Any]:
    """The message is the row of a manifest, as JSON."""
    if len(message.body) > LONGEST:
        raise UnusableError(f"{len(message.body):,} bytes; a message of at most {LONGEST:,} is read")
    try:
        cells = json_object(message.body)
    except ValueError as error:
        raise UnusableError(f"no JSON object: {error}") from error
    if post_id_of(cells.get(POST_ID)) is None:
        raise UnusableError(f"{POST_ID}: {shown(cells.get(POST_ID))}; a text that is not empty is expected")
    return cells


class FromSql:
    """The message names the post; a query gives title, text and pictures."""

    def __init__(self, url: str, query: str) -> None:
        try:
            self._engine = create_engine(resolved(url, "stream.sql.url"), pool_pre_ping=True)
        except (SQLAlchemyError, ImportError) as error:
            raise ConfigError(f"stream.sql.url: {masked(str(error))}: an URL of SQLAlchemy is expected") from error
        self._query = text(query)

    def close(self) -> None:
        self._engine.dispose()

    def __call__(self, message: Message) -> Mapping[str, Any]:
        post_id = post_id_of(from_message(message)[POST_ID])
        try:
            with self._engine.connect() as connection:
                row = connection.execute(self._query, {POST_ID: post_id}).mappings().first()
        except DataError as error:  # this id is none of that column's
            raise UnusableError(f"{POST_ID} {shown(post_id)}: stream.sql: {cut(str(error.orig), 300)}") from error
        except SQLAlchemyError as error:
            place = self._engine.url.render_as_string(hide_password=True)
            raise AwayError(f"stream.sql {place}: {cut(masked(str(getattr(error, 'orig', error))), 300)}") from error
        if row is None:
            raise UnusableError(f"{POST_ID} {shown(post_id)}: the query of stream.sql gives no row")
        cells = {**row, POST_ID: post_id}
        if isinstance(images := cells.get(IMAGES), str):
            try:
                cells[IMAGES] = json.loads(images)
            except ValueError as error:
                raise UnusableError(f"{IMAGES}: {shown(images)}; a JSON list is expected of the query") from error
        return cells


class MissingError(ImageError):
    """The picture may be there later."""


#: How an ImageError begins of a file that may be there, or of a host that may answer, later.
_LATER = re.compile(
    "no such file|cannot be read|"
    "(it is elsewhere now: )?(not fetched within|cannot be fetched from|its host answered with status)"
)


def reader(limits: ImageLimits, folder: str | None, fetch: ReadUrl | None = None) -> Read:
    """How pictures of messages are read: in base64, as paths under `folder`, and from https addresses by `fetch`.

    Args:
        folder: a local one, or an fsspec URL, as s3://bucket/pictures.

    What the reader raises is a MissingError where another try may have another end.
    """

    def read(source: Any) -> bytes:
        on_the_web = isinstance(source, str) and source.startswith(("https://", "http://"))
        try:
            if not on_the_web and folder is not None and is_url(folder):
                return read_below(folder, source, limits)
            if not on_the_web:
                return read_source(source, limits, folder=folder)
            if fetch is None:
                raise ImageError("an address on the web: none is on the list of those that are read")
            return fetch(source, limits)
        except ImageError as error:
            if _LATER.match(str(error)):
                raise MissingError(str(error)) from error
            raise

    return read


def picture_folder(images: str | None, source_folder: Path | None) -> str | None:
    if images is not None and is_url(images):
        try:
            check_store(images)
        except ConfigError as error:
            raise ConfigError(f"stream.images {error}") from error
        return images
    folder = Path(images) if images else source_folder
    if folder is None:
        return None
    if not folder.is_dir():
        raise ConfigError(f"stream.images {folder}: is no folder: make it, or correct the path")
    return str(folder.resolve())
