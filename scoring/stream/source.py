"""Source: where messages come from. Each is taken again until it is committed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from model.errors import ConfigError
from scoring.settings import StreamSettings
from steps.secrets import masked, resolved


@dataclass(frozen=True)
class Message:
    """id: of its place and its content; the same when it comes again."""

    id: str
    body: bytes

    @classmethod
    def at(cls, place: str, body: bytes) -> Message:
        """A place may be used again: a file of the same name, a topic that is made anew."""
        return cls(f"{place}@{hashlib.sha256(body).hexdigest()[:16]}", body)


class Source(Protocol):
    #: Without secrets; it stands in dead letters.
    name: str
    #: Seconds without a message after which `--once` takes it for empty.
    settles: float

    def open(self) -> None:
        """Raises: ConfigError where it cannot be used; AwayError where it does not answer yet."""
        ...

    def take(self) -> Sequence[Message]:
        """The next messages, in order; none where none came within a moment.

        Raises:
            AwayError: it does not answer.
        """
        ...

    def commit(self) -> None:
        """What `take` gave last is done with. Raises: AwayError: it will come again."""
        ...

    def behind(self) -> int | None:
        """Messages that are still to be taken, as far as this worker knows, of a folder files; None: it cannot tell.

        Asked by another thread, at any time; it waits for nobody.
        """
        ...

    def close(self) -> None:
        """What was taken and not committed comes again, to whoever takes next."""
        ...


def source_of(settings: StreamSettings) -> Source:
    """The source that the run file names; the broker's protocol by the scheme of the URL.

    Raises:
        ConfigError: it is neither a URL of a known broker nor a folder, or a package is missing.
    """
    url = resolved(settings.source or "", "stream.source")
    scheme = urlsplit(url).scheme if "://" in url else ""
    if scheme in ("", "file"):
        from scoring.stream.folder import FolderSource

        return FolderSource(folder_of(url), settings.batch)
    if scheme == "kafka":
        from scoring.stream.kafka import KafkaSource

        return KafkaSource(url, settings)
    from scoring.stream.brokers import BROKERS, BrokerSource

    if scheme not in BROKERS:
        known = ", ".join(f"{name}://" for name in ("kafka", *BROKERS))
        raise ConfigError(f"stream.source {masked(url)}: one of {known}, or a folder, is expected")
    return BrokerSource(url, settings)


def folder_of(url: str) -> Path:
    return Path(urlsplit(url).path if url.startswith("file://") else url)
