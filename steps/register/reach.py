"""The way to MLflow's registry: one process of this machine at a time, and what goes wrong on it as one line."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from model.errors import RegistryError, cut
from steps.locks import locked
from steps.paths import home
from steps.secrets import masked

# MLflow draws a bar for each folder that it copies or downloads, also on this machine
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

_AGAIN = "run the same command again: it goes on where this one stopped"
#: MLflow tells the status in words where the answer is not its own: a proxy's, for example.
_STATUS = re.compile(r"error code (\d{3}) != |too many (\d{3}) error responses")
#: As `requests` tells it, of files.
_FILE_STATUS = re.compile(r"\b(\d{3}) (?:Client|Server) Error")
#: What was asked for, without the parts that are the same everywhere.
_ENDPOINT = re.compile(r"endpoint /api/2\.0/(?:mlflow|mlflow-artifacts)/(\S+) failed")
_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_LONGEST = 300


class NotAllowedError(RegistryError):
    """The server knows the user, who has no right to this."""


@contextmanager
def answered() -> Iterator[None]:
    """
    Raises:
        NotAllowedError: the server refuses what was asked.
        RegistryError: MLflow, its database or the way to it fails.
    """
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        kind = NotAllowedError if _status(error) == 403 else RegistryError
        raise kind(f"registry {place()}: {told(error)}") from None  # MLflow's text may hold credentials


def place() -> str:
    """The registry in use: a server's address without credentials, or the database."""
    uri = mlflow.get_registry_uri()
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else masked(uri)


@contextmanager
def turn() -> Iterator[None]:
    """One process of this machine at a time, for all models of the registry in use.

    Raises: RegistryError where the lock file cannot be written.
    """
    uri = mlflow.get_registry_uri()
    path = home() / "locks" / f"{hashlib.sha256(place().encode()).hexdigest()[:16]}.lock"
    if uri.startswith("sqlite:"):
        path = Path(f"{make_url(uri).database}.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, f"the registry {place()}"))
        except OSError as error:
            raise RegistryError(f"registry {place()}: its lock {path} cannot be written: {error.strerror}") from error
        yield


def told(error: Exception) -> str:
    """What the error means, and what to do; where that is not known, what it says."""
    return trouble(error) or _first(str(error))


def trouble(error: Exception) -> str | None:
    """What went wrong on the way to a server or in its database, and what to do; None: it is something else."""
    text, status = str(error), _status(error)
    if "No space left on device" in text:
        return "no space is left on the disk: make room, and run the same command again"
    if "timed out" in text or "timeout exception" in text:
        return f"no answer in time: {_AGAIN}; MLFLOW_HTTP_REQUEST_TIMEOUT sets the seconds to wait"
    if status == 401:
        remedy = "correct" if all(map(os.environ.get, _LOGIN)) or os.environ.get("MLFLOW_TRACKING_TOKEN") else "set"
        return f"the server does not know you (401): {remedy} {' and '.join(_LOGIN)}, or MLFLOW_TRACKING_TOKEN"
    if status == 403:
        asked = match[1] if (match := _ENDPOINT.search(text)) else _first(text)
        return f"the server does not allow this (403): {asked}: ask for the right to it, on model and history"
    if isinstance(error, SQLAlchemyError) or "sqlalche.me" in text or "database schema" in text:
        return f"its database cannot be used: {_first(text)}"
    if status is None and ("failed with exception" in text or "Max retries exceeded" in text):
        return f"no connection ({_cause(text)}): is the server up? Then {_AGAIN}"
    if status is not None and (status >= 500 or status == 429):
        return f"the server failed ({status}): {_AGAIN} once it is well"
    if _STATUS.search(text):
        return f"the answer {status} is not MLflow's: check MLFLOW_TRACKING_URI"
    if "valid JSON" in text:
        return "the answer is not MLflow's: check MLFLOW_TRACKING_URI"
    return None


def _status(error: Exception) -> int | None:
    if match := _STATUS.search(str(error)):
        return int(match[1] or match[2])
    if match := _FILE_STATUS.search(str(error)):
        return int(match[1])
    if isinstance(error, MlflowException) and error.error_code != "INTERNAL_ERROR":
        return int(error.get_http_status_code())
    return None


def _cause(text: str) -> str:
    named = re.search(r"Connection refused|Failed to resolve|RemoteDisconnected|Connection reset|certificate", text)
    return named[0] if named else "network"


def _first(text: str) -> str:
    """The first line of a text that others wrote, as far as a message has room for it."""
    return cut(masked(next(iter(text.splitlines()), "")), _LONGEST)
