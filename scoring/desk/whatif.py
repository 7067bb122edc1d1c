"""What another policy would do: replayed over the stored records, without scoring or changing anything.

What a policy says of a record follows from its answers, its decisions, and on which side of each number in the rules
its score lies. So each such group is decided once, which makes a replay as fast as sorting.
"""

from __future__ import annotations

import ast
import threading
from dataclasses import dataclass
from datetime import datetime
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import and_, select

from model.schema import POST_ID
from scoring.desk.work import Desk
from scoring.policy import Policy
from scoring.record import Answer, Record
from steps.retrain.reviewed import LABELS
from steps.retrain.stored import CURRENT, HISTORY
from steps.survey import Figures, estimate

#: The newest records that are replayed, at most; and posts that a page lists of each side.
_MOST, _LISTED = 200_000, 25
_ACTIONS = ("flag", "pass", "review")
#: Places in _ACTIONS.
_Actions = NDArray[np.int8]


@dataclass(frozen=True)
class Volume:
    """posts: how many of them each action gets. figures: None where no label allows them."""

    posts: dict[str, int]
    figures: Figures | None


@dataclass(frozen=True)
class Move:
    """Posts that go from one action to another, the first of them with their scores."""

    before: str
    after: str
    posts: int
    listed: list[tuple[str, float]]


@dataclass(frozen=True)
class Difference:
    posts: int
    now: Volume
    then: Volume
    moves: list[Move]


class Replay:
    """The stored records, in memory; what is new in the store is read before each use."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._one = desk, threading.Lock()
        self._place: dict[str, int] = {}
        self._ids: list[str] = []
        self._scores: list[float] = []
        self._groups: list[int] = []
        self._probability: list[float] = []
        self._known: dict[tuple[Any, ...], int] = {}
        self._said: list[tuple[dict[str, Answer], dict[str, bool]]] = []
        self._since: datetime | None = None

    def compare(self, then: Policy) -> Difference:
        """The policy in effect against another one.

        Raises:
            ConfigError: the policy asks for a threshold or an answer that a version lacks.
        """
        with self._one:
            self._refresh()
            score_N, group_N = np.array(self._scores, dtype=np.float64), np.array(self._groups, dtype=np.int64)
            before_N, after_N = (self._actions(policy, score_N, group_N) for policy in (self._desk.policy, then))
            labelled = self._labelled()
            moves = []
            for before, after in permutations(range(len(_ACTIONS)), 2):
                found = np.flatnonzero((before_N == before) & (after_N == after))
                if len(found):
                    first = found[np.argsort(-score_N[found], kind="stable")][:_LISTED]
                    listed = [(self._ids[i], self._scores[i]) for i in first]
                    moves.append(Move(_ACTIONS[before], _ACTIONS[after], len(found), listed))
            volumes = [_volume(actions, labelled) for actions in (before_N, after_N)]
            return Difference(len(score_N), volumes[0], volumes[1], moves)

    def warm(self) -> None:
        """Read what is stored before somebody waits for it: some seconds for 100,000 records."""
        with self._one:
            self._refresh()

    def _refresh(self) -> None:
        query = select(
            CURRENT.c.post_id, CURRENT.c.score, CURRENT.c.scored_at, CURRENT.c.action, CURRENT.c.audit,
            HISTORY.c.audit_probability, HISTORY.c.answers, HISTORY.c.decisions,
        )  # fmt: skip
        query = query.join(HISTORY, HISTORY.c.id == CURRENT.c.history_id)
        query = query.where(CURRENT.c.model_name == self._desk.model_name, CURRENT.c.score.is_not(None))
        if self._since is not None:
            query = query.where(CURRENT.c.day >= self._since.date(), CURRENT.c.scored_at >= self._since)
        query = query.order_by(CURRENT.c.day.desc()).limit(_MOST)
        for row in self._desk.rows(query):
            self._take(*row)

    def _take(
        self, post_id: str, score: float, at: datetime, action: str | None, audit: bool | None,
        probability: float | None, answers: dict[str, Any], decisions: dict[str, bool],
    ) -> None:  # fmt: skip
        key = (tuple((name, said["answer"]) for name, said in answers.items()), tuple(decisions.items()))
        group = self._known.setdefault(key, len(self._said))
        if group == len(self._said):
            self._said.append(({name: Answer(**said) for name, said in answers.items()}, decisions))
        drawn = audit or action == "review"
        place = self._place.setdefault(post_id, len(self._ids))
        likely = (probability or 0.0) if drawn else 0.0
        if place == len(self._ids):
            self._ids.append(post_id)
            self._scores.append(score)
            self._groups.append(group)
            self._probability.append(likely)
        self._scores[place], self._groups[place], self._probability[place] = score, group, likely
        self._since = at if self._since is None else max(at, self._since)

    def _actions(self, policy: Policy, score_N: NDArray[np.float64], group_N: NDArray[np.int64]) -> _Actions:
        numbers = np.unique([value for rule, _ in policy.rules for value in _numbers(rule.when)])
        side_N = np.searchsorted(numbers, score_N, "left") + np.searchsorted(numbers, score_N, "right")
        width = 2 * len(numbers) + 1
        _, first, place_N = np.unique(group_N * width + side_N, return_index=True, return_inverse=True)
        said = np.array([self._decided(policy, int(i)) for i in first], dtype=np.int8)
        action_N: _Actions = said[place_N]
        for post_id in policy.allowed.get(POST_ID, ()):
            if (place := self._place.get(post_id)) is not None:
                action_N[place] = _ACTIONS.index("pass")
        return action_N

    def _decided(self, policy: Policy, place: int) -> int:
        answers, decisions = self._said[self._groups[place]]
        record = Record.model_construct(
            post_id="", model_name=self._desk.model_name, model_version="of a stored record",
            score=self._scores[place], answers=answers, decisions=decisions, error=None,
        )  # fmt: skip
        return _ACTIONS.index(policy.decide(record, {}).action)

    def _labelled(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Places of the posts that were drawn, their labels (NaN: none yet), and their probabilities."""
        query = select(LABELS.c.post_id, LABELS.c.label).join(
            CURRENT, and_(CURRENT.c.model_name == LABELS.c.model_name, CURRENT.c.post_id == LABELS.c.post_id)
        )
        query = query.where(LABELS.c.model_name == self._desk.model_name, LABELS.c.label.is_not(None))
        labels = dict(row._tuple() for row in self._desk.rows(query))
        probability_N = np.array(self._probability, dtype=np.float64)
        place_D = np.flatnonzero(probability_N > 0)
        label_D = np.array([labels.get(self._ids[i], np.nan) for i in place_D], dtype=np.float64)
        return place_D, label_D, probability_N[place_D]


def _numbers(text: str) -> list[float]:
    nodes = ast.walk(ast.parse(" ".join(text.split()), mode="eval"))
    return [float(n.value) for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, int | float)]


def _volume(action_N: _Actions, labelled: tuple[Any, Any, Any]) -> Volume:
    counts = np.bincount(action_N, minlength=len(_ACTIONS))
    place_D, label_D, probability_D = labelled
    known = bool(np.isfinite(label_D).any())
    figures = estimate(label_D, action_N[place_D] == _ACTIONS.index("flag"), probability_D) if known else None
    return Volume({name: int(count) for name, count in zip(_ACTIONS, counts, strict=True) if count}, figures)
