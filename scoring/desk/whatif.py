"""What another policy would do: replayed over the stored records, without scoring or changing anything.

What a policy says of a record follows from its answers, its decisions, and on which side of each number in the rules
its score lies. So each such group is decided once, which makes a replay as fast as sorting.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from datetime import date
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from model.schema import POST_ID
from scoring.desk.records import ACTIONS, Columns
from scoring.desk.work import Desk
from scoring.policy import Policy
from scoring.record import Answer, Record
from steps.survey import Figures, estimate

#: Posts that a page lists of each side.
_LISTED = 25
#: Places in ACTIONS.
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
    """since: records of older days are left out; None: none is."""

    posts: int
    since: date | None
    now: Volume
    then: Volume
    moves: list[Move]


def compare(desk: Desk, found: Columns, then: Policy) -> Difference:
    """The policy in effect against another one, over stored records.

    Raises:
        ConfigError: the policy asks for a threshold or an answer that a version lacks.
    """
    before_N, after_N = (_actions(desk, policy, found) for policy in (desk.policy, then))
    moves = []
    for before, after in permutations(range(len(ACTIONS)), 2):
        moved = np.flatnonzero((before_N == before) & (after_N == after))
        if len(moved):
            first = moved[np.argsort(-found.score[moved], kind="stable")][:_LISTED]
            listed = [(found.ids[found.place[i]], float(found.score[i])) for i in first]
            moves.append(Move(ACTIONS[before], ACTIONS[after], len(moved), listed))
    volumes = [_volume(actions, found) for actions in (before_N, after_N)]
    return Difference(len(found.score), found.since, volumes[0], volumes[1], moves)


def _actions(desk: Desk, policy: Policy, found: Columns) -> _Actions:
    numbers = np.unique([value for rule, _ in policy.rules for value in _numbers(rule.when)])
    side_N = np.searchsorted(numbers, found.score, "left") + np.searchsorted(numbers, found.score, "right")
    kind_N = found.group * (2 * len(numbers) + 1) + side_N
    said = np.zeros(int(kind_N.max(initial=-1)) + 1, dtype=np.int8)
    example = np.zeros(len(said), dtype=np.int64)
    example[kind_N] = np.arange(len(kind_N))
    for kind in np.flatnonzero(np.bincount(kind_N, minlength=len(said))):
        row = example[kind]
        said[kind] = _decided(desk, policy, found.said[found.group[row]], float(found.score[row]))
    action_N: _Actions = said[kind_N]
    allowed = [found.places[post_id] for post_id in policy.allowed.get(POST_ID, ()) if post_id in found.places]
    action_N[np.isin(found.place, allowed)] = ACTIONS.index("pass")
    return action_N


def _decided(desk: Desk, policy: Policy, said: tuple[dict[str, Answer], dict[str, bool]], score: float) -> int:
    answers, decisions = said
    record = Record.model_construct(
        post_id="", model_name=desk.model_name, model_version="of a stored record",
        score=score, answers=answers, decisions=decisions, error=None,
    )  # fmt: skip
    return ACTIONS.index(policy.decide(record, {}).action)


def _numbers(text: str) -> list[float]:
    nodes = ast.walk(ast.parse(" ".join(text.split()), mode="eval"))
    return [float(n.value) for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, int | float)]


def _volume(action_N: _Actions, found: Columns) -> Volume:
    counts = np.bincount(action_N, minlength=len(ACTIONS))
    drawn_N = found.probability > 0
    label_D, flagged_D = found.label[drawn_N], action_N[drawn_N] == ACTIONS.index("flag")
    known = bool(np.isfinite(label_D).any())
    figures = estimate(label_D, flagged_D, found.probability[drawn_N]) if known else None
    return Volume({name: int(count) for name, count in zip(ACTIONS, counts, strict=True) if count}, figures)
