"""Who scores a stream: the champion in this process, the newest between two batches; or a service."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import TypeVar

from model.errors import AgentPSError
from model.task import Task
from scoring.record import Record
from scoring.score import Input, LocalScore
from scoring.stream.waiting import AwayError
from steps.register import history
from steps.register.registry import CHAMPION, RegisteredVersion, aliases_of, get

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class ChampionScore:
    """As `LocalScore`, with the version that is champion.

    A version that cannot be loaded, and a registry that does not answer, leave the old one scoring, with a word.
    """

    def __init__(self, name: str, watch: float, check: Callable[[Task, Collection[str]], None]) -> None:
        """
        Args:
            watch: seconds between two looks.
            check: raises a ConfigError where a version of this task and these operating points cannot be used.

        Raises:
            RegistryError, CheckpointError: there is no champion, or it cannot be loaded.
        """
        self._name, self._watch, self._check = name, watch, check
        self._score = LocalScore.of(history.champion_of(name))
        check(self._score.task, self._score.points)
        self._looked = time.monotonic()
        self._told: str | None = None

    def renew(self) -> LocalScore:
        """The scorer of the next batch."""
        if time.monotonic() - self._looked < self._watch:
            return self._score
        self._looked = time.monotonic()
        try:
            found = aliases_of(self._name).get(CHAMPION)
            if found is not None and found != self._score.version.version:
                loaded = LocalScore.of(get(self._name, found))
                self._check(loaded.task, loaded.points)
                self._score = loaded
                logger.warning("%s: version %s is the champion now, and scores from here on", self._name, found)
            self._told = None
        except AgentPSError as error:
            if str(error) != self._told:
                logger.warning("%s version %s goes on scoring: %s", self._name, self._score.version.version, error)
            self._told = str(error)
        return self._score

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        return self._score(inputs, now)


class ServiceScore:
    """As `RemoteScore`; a service that does not answer is away, and its version is known before each batch."""

    def __init__(self, url: str, key: str | None = None) -> None:
        from scoring.remote import RemoteScore

        self._remote = RemoteScore(url, key, patience=1)
        self.version: RegisteredVersion | None = None

    def renew(self) -> ServiceScore:
        """Raises: AwayError."""
        ready = self._asked(self._remote.ready)
        self.version = RegisteredVersion(name=ready.model, version=ready.version, run_id=None, source=None)
        return self

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        return self._asked(lambda: self._remote(inputs, now))

    def close(self) -> None:
        self._remote.__exit__(None, None, None)

    def _asked(self, ask: Callable[[], _T]) -> _T:
        from scoring.remote import ServiceError

        try:
            return ask()
        except ServiceError as error:
            raise AwayError(str(error)) from error
