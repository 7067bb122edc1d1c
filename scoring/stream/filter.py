"""Filter: what is done with a post, by what the model says of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from scoring.record import Record

if TYPE_CHECKING:
    from scoring.policy import Outcome


class Filter(Protocol):
    #: Of the policy: its name, version and digest; None: there is none.
    version: str | None

    def decide(self, record: Record) -> Outcome | None: ...


class NoFilter:
    """Scores and answers are all that is said."""

    version: str | None = None

    def decide(self, record: Record) -> Outcome | None:
        return None


def filter_of(policy: str | None) -> Filter:
    """Raises: ConfigError where the file is no policy."""
    if policy is None:
        return NoFilter()
    from scoring.policy import Policy

    return Policy.load(Path(policy))
