"""Filter: what is done with a post, by what the model says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scoring.record import Record

if TYPE_CHECKING:
    from scoring.policy import Outcome


class Filter(Protocol):
    @property
    def version(self) -> str | None:
        """Of the policy: its name, version and digest; None: there is none."""
        ...

    def decide(self, record: Record, fields: Mapping[str, Any]) -> Outcome | None:
        """
        Args:
            fields: of the post's message, for the allow-lists.
        """
        ...


class NoFilter:
    """Scores and answers are all that is said."""

    version: str | None = None

    def decide(self, record: Record, fields: Mapping[str, Any]) -> Outcome | None:
        return None


def filter_of(policy: str | None) -> Filter:
    """Raises: ConfigError where the file is no policy."""
    if policy is None:
        return NoFilter()
    from scoring.policy import Policy

    return Policy.load(Path(policy))
