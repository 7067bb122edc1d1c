"""How far people agree with each other and with known labels, and what that says of the model that is live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score
from sqlalchemy import ColumnElement, Select, and_, select

from scoring.desk.memory import PART, Memory
from scoring.desk.records import ACTIONS, Columns
from scoring.desk.reviews import effective
from scoring.desk.work import Desk
from steps.retrain.reviewed import GOLD, LABELS, REVIEWS
from steps.survey import Figures, estimate

Pair = tuple[int, int]
#: Posts of one query.
_POSTS = 500


@dataclass(frozen=True)
class Agreement:
    """Of two people who looked at the same posts; None: not defined, as there is no post or only one class."""

    what: str
    posts: int
    same: float | None
    kappa: float | None
    alpha: float | None


@dataclass(frozen=True)
class Accuracy:
    """Of a reviewer on posts whose label is known: hits of n, with Wilson's interval, 95 %."""

    reviewer: str
    hits: int
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Live:
    """figures: of the posts of a version or slice. drawn: posts that were drawn for people; labelled: of these."""

    what: str
    drawn: int
    labelled: int
    figures: Figures


def kappa(pairs: Sequence[Pair]) -> float | None:
    """Cohen's: the first against the second look."""
    if len({value for pair in pairs for value in pair}) < 2:
        return None
    counted = Counter(pairs)  # a few kinds of pairs, however many there are
    one, two = zip(*counted, strict=True)
    return float(cohen_kappa_score(one, two, sample_weight=list(counted.values())))


def alpha(pairs: Sequence[Pair]) -> float | None:
    """Krippendorff's, of classes without an order (2011, "Computing Krippendorff's Alpha-Reliability", part B)."""
    values = Counter(value for pair in pairs for value in pair)
    if len(values) < 2:
        return None
    n = values.total()
    expected = (n * n - sum(count * count for count in values.values())) / (n - 1)
    observed = 2 * sum(one != two for one, two in pairs)
    return float(1 - observed / expected)


class Looks(Memory):
    """What people said of the same posts, and of posts with known labels: read anew where one was reviewed since."""

    what = "reviews"

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._review = 0
        self._known: set[str] = set()
        self._pairs: dict[str, tuple[dict[str, int], dict[str, int]]] = {}
        self._hits: dict[str, dict[str, bool]] = {}

    def read(
        self, within: float | None = None
    ) -> tuple[list[tuple[dict[str, int], dict[str, int]]], list[tuple[str, bool]]]:
        """First and second looks: the decision ("") and each answer. And each reviewer's last decision on each post
        with a known label: whether it was right.

        Raises:
            BeingReadError: it takes longer than `within` seconds.
        """
        with self._whole(within):
            hits = [hit for of_post in self._hits.values() for hit in of_post.items()]
            return list(self._pairs.values()), hits

    def _left(self) -> ColumnElement[bool]:
        return and_(REVIEWS.c.model_name == self._desk.model_name, REVIEWS.c.id > self._review)

    def _part(self) -> tuple[int, bool]:
        new = select(REVIEWS.c.id, REVIEWS.c.post_id).where(self._left()).order_by(REVIEWS.c.id).limit(PART)
        rows = self._desk.rows(new)
        known = select(GOLD.c.post_id).where(GOLD.c.model_name == self._desk.model_name)
        before, self._known = self._known, {row[0] for row in self._desk.rows(known)}
        posts = sorted({row[1] for row in rows} | (self._known - before))
        for start in range(0, len(posts), _POSTS):
            part = posts[start : start + _POSTS]
            for post_id in part:
                self._pairs.pop(post_id, None)
                self._hits.pop(post_id, None)
            mine = and_(LABELS.c.model_name == self._desk.model_name, LABELS.c.post_id.in_(part))
            twice = select(LABELS.c.post_id).where(mine, LABELS.c.second_by.is_not(None))
            self._read_pairs([row[0] for row in self._desk.rows(twice)])
            self._read_hits(sorted(self._known.intersection(part)))
        self._review = rows[-1][0] if rows else self._review
        return len(rows), len(rows) == PART

    def _read_pairs(self, posts: Sequence[str]) -> None:
        if not posts:  # most are looked at once
            return
        both = and_(LABELS.c.model_name == REVIEWS.c.model_name, LABELS.c.post_id == REVIEWS.c.post_id)
        query = effective(REVIEWS.c.post_id, REVIEWS.c.kind, REVIEWS.c.label, REVIEWS.c.answers).join(LABELS, both)
        query = query.where(REVIEWS.c.kind.in_(("first", "second")))
        query = query.where(REVIEWS.c.input_sha256.is_not_distinct_from(LABELS.c.input_sha256))
        looks: dict[str, dict[str, Any]] = {}
        for post_id, kind, label, answers in self._desk.rows(self._of(query, posts)):
            looks.setdefault(post_id, {})[kind] = {"": label} | answers
        self._pairs |= {post_id: (look["first"], look["second"]) for post_id, look in looks.items() if len(look) == 2}

    def _read_hits(self, posts: Sequence[str]) -> None:
        if not posts:
            return
        same = and_(GOLD.c.model_name == REVIEWS.c.model_name, GOLD.c.post_id == REVIEWS.c.post_id)
        query = effective(REVIEWS.c.reviewer, REVIEWS.c.post_id, REVIEWS.c.label, GOLD.c.label.label("known"))
        query = query.join(GOLD, same).where(REVIEWS.c.label.is_not(None))
        for reviewer, post_id, label, known in self._desk.rows(self._of(query, posts)):
            self._hits.setdefault(post_id, {})[reviewer] = label == known

    def _of(self, query: Select[Any], posts: Sequence[str]) -> Select[Any]:
        mine = and_(REVIEWS.c.model_name == self._desk.model_name, REVIEWS.c.post_id.in_(posts))
        return query.where(mine).order_by(REVIEWS.c.id)


def agreement(looks: Sequence[tuple[dict[str, int], dict[str, int]]], questions: Iterable[str]) -> list[Agreement]:
    """The first against the second look, of the decision and of each question that both answered."""
    return [
        _agreement(what, [(one[what], two[what]) for one, two in looks if what in one and what in two])
        for what in ("", *questions)
    ]


def _agreement(what: str, pairs: list[Pair]) -> Agreement:
    same = sum(one == two for one, two in pairs) / len(pairs) if pairs else None
    return Agreement(what, len(pairs), same, kappa(pairs), alpha(pairs))


def accuracy(reviewer: str, hits: int, n: int) -> Accuracy:
    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Accuracy(reviewer, hits, n, float(interval.low), float(interval.high))


def on_gold(hits: Iterable[tuple[str, bool]]) -> list[Accuracy]:
    """Each reviewer's decisions on posts whose label is known."""
    found: dict[str, list[bool]] = {}
    for reviewer, hit in hits:
        found.setdefault(reviewer, []).append(hit)
    return [accuracy(name, sum(these), len(these)) for name, these in sorted(found.items())]


@dataclass(frozen=True)
class Drawn:
    """Posts that people look at without choosing, as columns. label: NaN: nobody has yet."""

    post_id: NDArray[np.object_]
    version: NDArray[np.object_]
    flagged: NDArray[np.bool_]
    probability: NDArray[np.float64]
    label: NDArray[np.float64]

    def those(self, chosen: NDArray[Any]) -> Drawn:
        """chosen: a mask, or places."""
        return Drawn(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def drawn_posts(desk: Desk, found: Columns, days: int) -> Drawn:
    """Of the newest `days`: the random share, and what the policy asks people for; each with its probability."""
    point = desk.point
    chosen = np.flatnonzero((found.probability > 0) & (found.day > datetime.now(UTC).toordinal() - days))
    said = [decisions.get(point) if point else None for _, decisions in found.said]
    decided = np.array([-1 if one is None else int(one) for one in said], dtype=np.int64)[found.group[chosen]]
    return Drawn(
        post_id=np.array([found.ids[place] for place in found.place[chosen]], dtype=object),
        version=np.array(found.versions, dtype=object)[found.version[chosen]],
        flagged=np.where(decided == -1, found.action[chosen] == ACTIONS.index("flag"), decided == 1),
        probability=found.probability[chosen],
        label=found.label[chosen],
    )


def figures(what: str, posts: Drawn) -> Live:
    found = estimate(posts.label, posts.flagged, posts.probability)
    return Live(what, len(posts.label), int(np.isfinite(posts.label).sum()), found)


def live(desk: Desk, found: Columns, days: int, version: str | None = None) -> list[Live]:
    """By version; of one version by slice."""
    posts = drawn_posts(desk, found, days)
    if version is None:
        names = sorted(set(posts.version), key=lambda name: (len(name), name), reverse=True)[:5]
        return [figures(f"version {name}", posts.those(posts.version == name)) for name in names]
    posts = posts.those(posts.version == version)
    members: dict[str, list[int]] = {}
    for place, post_id in enumerate(posts.post_id):
        cells = desk.posts.get(post_id)
        for name in cells.slices if cells else ():
            members.setdefault(name, []).append(place)
    return [figures(name, posts.those(np.array(places))) for name, places in sorted(members.items())[:12]]
