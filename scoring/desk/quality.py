"""How far people agree with each other and with known labels, and what that says of the model that is live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import and_, or_, select, true

from scoring.desk.reviews import effective
from scoring.desk.work import Desk
from steps.retrain.reviewed import GOLD, LABELS, REVIEWS
from steps.retrain.stored import CURRENT, HISTORY
from steps.survey import Figures, estimate

Pair = tuple[int, int]


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
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(*zip(*pairs, strict=True)))


def alpha(pairs: Sequence[Pair]) -> float | None:
    """Krippendorff's, of classes without an order (2011, "Computing Krippendorff's Alpha-Reliability", part B)."""
    values = Counter(value for pair in pairs for value in pair)
    if len(values) < 2:
        return None
    n = values.total()
    expected = (n * n - sum(count * count for count in values.values())) / (n - 1)
    observed = 2 * sum(one != two for one, two in pairs)
    return float(1 - observed / expected)


def agreement(desk: Desk) -> list[Agreement]:
    """The first against the second look, of the decision and of each question that both answered."""
    both = and_(LABELS.c.model_name == REVIEWS.c.model_name, LABELS.c.post_id == REVIEWS.c.post_id)
    query = effective(REVIEWS.c.post_id, REVIEWS.c.kind, REVIEWS.c.label, REVIEWS.c.answers).join(LABELS, both)
    query = query.where(REVIEWS.c.model_name == desk.model_name, LABELS.c.second_by.is_not(None))
    query = query.where(REVIEWS.c.kind.in_(("first", "second")), REVIEWS.c.input_sha256 == LABELS.c.input_sha256)
    looks: dict[str, dict[str, Any]] = {}
    for post_id, kind, label, answers in desk.rows(query.order_by(REVIEWS.c.id)):
        looks.setdefault(post_id, {})[kind] = {"": label} | answers
    found = [(look["first"], look["second"]) for look in looks.values() if len(look) == 2]
    return [
        _agreement(what, [(one[what], two[what]) for one, two in found if what in one and what in two])
        for what in ("", *desk.task.question_ids)
    ]


def _agreement(what: str, pairs: list[Pair]) -> Agreement:
    same = sum(one == two for one, two in pairs) / len(pairs) if pairs else None
    return Agreement(what, len(pairs), same, kappa(pairs), alpha(pairs))


def accuracy(reviewer: str, hits: int, n: int) -> Accuracy:
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Accuracy(reviewer, hits, n, float(interval.low), float(interval.high))


def on_gold(desk: Desk) -> list[Accuracy]:
    """Each reviewer's last decision on each post whose label is known."""
    same = and_(GOLD.c.model_name == REVIEWS.c.model_name, GOLD.c.post_id == REVIEWS.c.post_id)
    query = effective(REVIEWS.c.reviewer, REVIEWS.c.post_id, REVIEWS.c.label, GOLD.c.label.label("known"))
    query = query.join(GOLD, same).where(REVIEWS.c.model_name == desk.model_name, REVIEWS.c.label.is_not(None))
    last = {
        (reviewer, post_id): label == known
        for reviewer, post_id, label, known in desk.rows(query.order_by(REVIEWS.c.id))
    }
    found: dict[str, list[bool]] = {}
    for (reviewer, _), hit in last.items():
        found.setdefault(reviewer, []).append(hit)
    return [accuracy(name, sum(hits), len(hits)) for name, hits in sorted(found.items())]


@dataclass(frozen=True)
class Drawn:
    """A post that people look at without choosing. label: NaN: nobody has yet."""

    post_id: str
    version: str
    flagged: bool
    probability: float
    label: float


def drawn_posts(desk: Desk, days: int) -> list[Drawn]:
    """Of the newest `days`: the random share, and what the policy asks people for; each with its probability."""
    label = and_(
        LABELS.c.model_name == CURRENT.c.model_name,
        LABELS.c.post_id == CURRENT.c.post_id,
        LABELS.c.input_sha256.is_not_distinct_from(HISTORY.c.input_sha256),
    )
    columns = (CURRENT.c.post_id, CURRENT.c.model_version, CURRENT.c.action, HISTORY.c.decisions)
    query = select(*columns, HISTORY.c.audit_probability, LABELS.c.label)
    query = query.join(HISTORY, HISTORY.c.id == CURRENT.c.history_id).outerjoin(LABELS, label)
    query = query.where(CURRENT.c.model_name == desk.model_name, CURRENT.c.score.is_not(None))
    query = query.where(or_(CURRENT.c.audit == true(), CURRENT.c.action == "review"), HISTORY.c.audit_probability > 0)
    query = query.where(CURRENT.c.day > (datetime.now(UTC) - timedelta(days=days)).date())
    point = desk.point
    return [
        Drawn(
            post_id,
            version,
            bool(decisions.get(point)) if point in decisions else action == "flag",
            probability,
            np.nan if given is None else float(given),
        )
        for post_id, version, action, decisions, probability, given in desk.rows(query)
    ]


def figures(what: str, posts: Iterable[Drawn]) -> Live:
    given = list(posts)
    labels = [post.label for post in given]
    found = estimate(labels, [post.flagged for post in given], [post.probability for post in given])
    return Live(what, len(given), int(np.isfinite(labels).sum()), found)


def live(desk: Desk, days: int, version: str | None = None) -> list[Live]:
    """By version; of one version by slice."""
    posts = drawn_posts(desk, days)
    if version is None:
        names = sorted({post.version for post in posts}, key=lambda name: (len(name), name), reverse=True)[:5]
        return [figures(f"version {name}", [post for post in posts if post.version == name]) for name in names]
    posts = [post for post in posts if post.version == version]
    members: dict[str, list[Drawn]] = {}
    for post in posts:
        cells = desk.posts.get(post.post_id)
        for name in cells.slices if cells else ():
            members.setdefault(name, []).append(post)
    return [figures(name, found) for name, found in sorted(members.items())[:12]]
