"""What one desk works with: the store, the model, its policy and thresholds, and the posts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Row, Select

from model.task import Task
from scoring.desk.posts import Posts
from scoring.desk.records import Records
from scoring.policy import Policy
from scoring.store import Store

#: Of a version: its thresholds by operating point, as `p80`; empty where they are not known.
Thresholds = Callable[[str], Mapping[str, float]]


@dataclass(frozen=True)
class Shares:
    """second: of reviewed posts, for a blind second look. gold: of a reviewer's posts, with known labels."""

    second: float = 0.1
    gold: float = 0.05


@dataclass
class Desk:
    """policy: in effect. policy_file: gets a policy that is confirmed; None: it is kept in the store only.

    near: so far from the threshold a score is near. claim: so long a post is one reviewer's. undo: so long a review
    can be taken back. shows_scores: also of the random share, whose labels measure the model, before a person decides.
    """

    store: Store
    model_name: str
    task: Task
    policy: Policy
    posts: Posts
    thresholds: Thresholds
    policy_file: Path | None = None
    shares: Shares = field(default_factory=Shares)
    near: float = 0.1
    claim: timedelta = timedelta(minutes=15)
    undo: timedelta = timedelta(minutes=10)
    shows_scores: bool = False

    @cached_property
    def records(self) -> Records:
        return Records(self)

    def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        return self.store.do(lambda connection: connection.execute(query).all())

    def value(self, query: Select[Any]) -> Any:
        """The first column of the first row; None: there is none."""
        return self.store.do(lambda connection: connection.execute(query).scalar())

    @property
    def point(self) -> str | None:
        return self.policy.point

    def decided_at(self, version: str, reasons: Sequence[str] | None) -> float | None:
        """The threshold that decided; None: something else did (a rule, a list, an error), or it is not known."""
        known = self.thresholds(version)
        return next((known[reason] for reason in reasons or () if reason in known), None)

    def threshold(self, version: str) -> float | None:
        return None if self.point is None else self.thresholds(version).get(self.point)


def drawn(what: str, key: str, share: float) -> bool:
    """The same for the same key, always; a larger share has all of a smaller one."""
    place = int.from_bytes(hashlib.sha256(json.dumps([what, key]).encode()).digest()[:8]) / 2**64
    return place < share
