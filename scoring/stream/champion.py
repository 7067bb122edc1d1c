"""The champion as a scorer that is the newest: a promoted version is taken between two batches."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import datetime

from model.errors import AgentPSError
from scoring.record import Record
from scoring.score import Input, LocalScore
from steps.register import history
from steps.register.registry import CHAMPION, aliases_of, get

logger = logging.getLogger(__name__)


class ChampionScore:
    """As `LocalScore`, with the version that is champion.

    A version that cannot be loaded, and a registry that does not answer, leave the old one scoring, with a word.
    """

    def __init__(self, name: str, watch: float) -> None:
        """
        Args:
            watch: seconds between two looks.

        Raises:
            RegistryError, CheckpointError: there is no champion, or it cannot be loaded.
        """
        self._name, self._watch = name, watch
        self._score = LocalScore.of(history.champion_of(name))
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
                self._score = LocalScore.of(get(self._name, found))
                logger.warning("%s: version %s is the champion now, and scores from here on", self._name, found)
            self._told = None
        except AgentPSError as error:
            if str(error) != self._told:
                logger.warning("%s version %s goes on scoring: %s", self._name, self._score.version.version, error)
            self._told = str(error)
        return self._score

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        return self._score(inputs, now)
