"""Who may send posts, and how many: API keys, of which only hashes are kept, in a file that only its owner reads.

A key is 32 random bytes, so that its plain SHA-256 gives it to nobody; it is shown once, when `agentps key` makes it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import yaml
from fastapi import HTTPException, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field, RootModel, ValidationError

from model.errors import ConfigError
from model.files import write_whole
from model.strict import Chosen, explain_validation
from model.yaml_file import load_yaml
from steps.locks import locked

logger = logging.getLogger(__name__)

_BEGIN = "agentps_"
_HEAD = """\
# Who may send posts to `agentps serve`: names, and hashes of their keys. `agentps key NAME` adds a key.
# A key or a client ends when it is removed here; the service reads the file again by itself.
"""
#: As a log and a metric may show it.
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_UNKNOWN = "a key is needed that this service knows: send it as the header Authorization: Bearer KEY"


class Entry(Chosen):
    """A client. sha256: of its keys, in hex; posts_per_minute: None is without a limit."""

    sha256: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1)
    posts_per_minute: int | None = Field(None, ge=1)


class Entries(RootModel[dict[_Name, Entry]]):
    """The file."""


class Client:
    """One client and what it has left. After a pause it may send the posts of a minute at once."""

    def __init__(self, name: str, entry: Entry, now: Callable[[], float] = time.monotonic) -> None:
        self.name, self.entry = name, entry
        self._now, self._one = now, threading.Lock()
        self._left, self._at = float(entry.posts_per_minute or 0), now()

    def take(self, posts: int, held: int = 0) -> None:
        """Where something is left, a request is taken whole, whatever its size: the next ones wait for it.

        Args:
            held: of them, those that were taken before.

        Raises:
            HTTPException: 429: nothing is left, with the seconds until something is.
        """
        most = self.entry.posts_per_minute
        if most is None:
            return
        with self._one:
            now, each = self._now(), most / 60
            self._left, self._at = min(most, self._left + (now - self._at) * each + held), now
            if self._left >= 1:
                self._left -= posts
                return
            wait = math.ceil((1 - self._left) / each)
        raise HTTPException(
            429, f"{self.name} may send {most} posts a minute: send it again after the seconds of Retry-After",
            {"Retry-After": str(max(1, wait))},
        )  # fmt: skip


class Keys:
    """The clients of a file, which is read again when it changes. `who` is what FastAPI depends on.

    A file that has become unreadable is told in the log, and the clients that were read last go on.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        """Raises: ConfigError: the file is missing, holds nobody or something else, or others may read it."""
        self._path, self._now = path, now
        self._one = threading.Lock()
        self._clients: dict[str, Client] = {}
        self._seen = _state(path)
        self._take(read_keys(path))

    def client_of(self, key: str) -> Client | None:
        """None: nobody's. All hashes are compared, each in the same time."""
        with self._one:
            self._look()
            clients = list(self._clients.values())
        given, found = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest(), None
        for client in clients:
            for known in client.entry.sha256:
                if hmac.compare_digest(given, known):
                    found = client
        return found

    async def who(
        self,
        request: Request,
        given: Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))],
    ) -> None:
        """Sets `request.state.client`. A request counts as one post at least.

        Raises:
            HTTPException: 401: no known key; 429: the client has nothing left.
        """
        client = self.client_of(given.credentials) if given is not None else None
        if client is None:
            raise HTTPException(401, _UNKNOWN, {"WWW-Authenticate": "Bearer"})
        client.take(1)
        request.state.client = client

    def _look(self) -> None:
        state = _state(self._path)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._take(read_keys(self._path))
        except ConfigError as error:
            logger.error("%s; the keys that were read before go on", error)
        else:
            logger.warning("%s was read again: %d clients", self._path, len(self._clients))

    def _take(self, entries: dict[str, Entry]) -> None:
        """A client whose limit is the same keeps what it has left."""
        clients = {}
        for name, entry in entries.items():
            old = self._clients.get(name)
            same = old is not None and old.entry.posts_per_minute == entry.posts_per_minute
            clients[name] = old if old is not None and same else Client(name, entry, self._now)
            clients[name].entry = entry
        self._clients = clients


def _state(path: Path) -> Any:
    try:
        found = os.stat(path)
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode


def read_keys(path: Path) -> dict[str, Entry]:
    """Raises: ConfigError."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ConfigError(f"keys {path}: is no file: name the one that `agentps key NAME` writes")
        if mode & 0o077:
            raise ConfigError(f"keys {path}: others may read or write it: run `chmod 600 {path}`")
        entries = Entries.model_validate(load_yaml(path)).root
    except FileNotFoundError:
        raise ConfigError(f"keys {path}: no such file: make a first key with `agentps key NAME`") from None
    except OSError as error:
        raise ConfigError(f"keys {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys {path}: is no YAML in UTF-8 that can be read: {_place(error)}") from None
    except ValidationError as error:
        raise ConfigError(f"keys {path}: {explain_validation(error)}") from None
    if not entries:
        raise ConfigError(f"keys {path}: holds no key: make one with `agentps key NAME`")
    owners = [hashed for entry in entries.values() for hashed in set(entry.sha256)]
    if len(owners) != len(set(owners)):
        raise ConfigError(f"keys {path}: one key stands there for two clients: remove it from one of them")
    return entries


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}" if mark is not None else type(error).__name__


def new_key(path: Path, name: str, posts_per_minute: int | None = None) -> str:
    """Add a key for a client, which may have others; returns the key, which stands nowhere else.

    Args:
        posts_per_minute: None: as it was; a new client has no limit.

    Raises:
        ConfigError: the name is none; or as `read_keys`.
        DiskError: the file cannot be written.
    """
    key = _BEGIN + secrets.token_urlsafe(32)
    hashed = hashlib.sha256(key.encode()).hexdigest()
    path = Path(os.path.abspath(path))
    with locked(path.with_name(f".{path.name}.lock"), f"the keys {path}"):
        entries = read_keys(path) if path.exists() else {}
        old = entries.get(name)
        before = old.posts_per_minute if old else None
        most = before if posts_per_minute is None else posts_per_minute
        entry = Entry(sha256=[*(old.sha256 if old else []), hashed], posts_per_minute=most)
        try:
            entries = Entries.model_validate(entries | {name: entry}).root
        except ValidationError:
            raise ConfigError(
                f"client {name!r:.80}: a name of at most 64 letters, digits, dots, - and _ is expected"
            ) from None
        body = {each: found.model_dump(exclude_none=True) for each, found in entries.items()}
        write_whole(path, _HEAD + yaml.safe_dump(body, sort_keys=False), private=True)
    return key
