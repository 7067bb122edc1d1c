"""The queues: which posts wait for people, filtered, and the next one for a reviewer, who has it alone for a while.

A page looks at records in the order of their index, part by part, and stops after a while: what it costs does not grow
with the store.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, func, insert, or_, select, true

from scoring.desk.people import RefusedError, User
from scoring.desk.work import Desk, drawn
from scoring.store import Place
from steps.retrain.reviewed import CLAIMS, GOLD, LABELS, REVIEWS
from steps.retrain.stored import CURRENT, HISTORY

Queue = Literal["flagged", "review", "near", "audit"]
QUEUES: dict[Queue, str] = {
    "flagged": "Flagged",
    "review": "Asked for by the policy",
    "near": "Near the threshold",
    "audit": "Random share",
}
#: Records that one query looks at, at first and at most, and seconds after which a page looks no further.
_FIRST, _PART, _PATIENCE = 100, 1_600, 0.12


@dataclass(frozen=True)
class Filters:
    """Each one narrows a queue. answer: (question, class). day: in UTC."""

    queue: Queue = "flagged"
    answer: tuple[str, str] | None = None
    day: date | None = None
    version: str | None = None
    slice: str | None = None


@dataclass(frozen=True)
class Row:
    """A current record, as a queue shows it. id: of the history."""

    id: int
    post_id: str
    version: str
    score: float
    action: str | None
    answers: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Page:
    """looked: at so many records. after: where the next page begins; None: this is the last."""

    rows: list[Row]
    looked: int
    after: Place | None


@dataclass(frozen=True)
class Claim:
    post_id: str
    kind: str
    nonce: str


class Stretch(NamedTuple):
    """Of an index of CURRENT: the records for which `which` holds, of scores from `low` to `high`."""

    which: ColumnElement[bool]
    low: float = -math.inf
    high: float = math.inf

    def part(self, after: Place | None = None, end: Place | None = None) -> ColumnElement[bool]:
        """What lies behind `after`, down to `end`. One bound for each side of the score: an index takes no more."""
        score, id_ = CURRENT.c.score, CURRENT.c.history_id
        found = [self.which, score >= (self.low if end is None else end.score)]
        found.append(score <= (self.high if after is None else after.score))
        found += [] if end is None else [or_(score > end.score, id_ >= end.id)]
        found += [] if after is None else [or_(score < after.score, id_ < after.id)]
        return and_(*found)


def stretch_of(desk: Desk, filters: Filters) -> Stretch | None:
    """None: nothing is in the queue."""
    which = [CURRENT.c.model_name == desk.model_name]
    which += [] if filters.day is None else [CURRENT.c.day == filters.day]
    if filters.queue == "near":
        version = filters.version or newest_version(desk)
        threshold = None if version is None else desk.threshold(version)
        if threshold is None:
            return None
        return Stretch(and_(*which), threshold - desk.near, threshold + desk.near)
    drawn = CURRENT.c.audit == true()
    of_action = {"flagged": CURRENT.c.action == "flag", "review": CURRENT.c.action == "review", "audit": drawn}
    return Stretch(and_(*which, of_action[filters.queue]))


def newest_version(desk: Desk) -> str | None:
    """Of those that the store has records of, the one that scored last. Each is one step in the index."""
    mine = HISTORY.c.model_name == desk.model_name
    last = select(func.max(HISTORY.c.scored_at)).where(mine)
    found = [(desk.value(last.where(HISTORY.c.model_version == version)), version) for version in versions(desk)]
    return max(found)[1] if found else None


def versions(desk: Desk) -> list[str]:
    """Each is one step in the index, however many records it has."""
    found: list[str] = []
    mine = HISTORY.c.model_name == desk.model_name
    while True:
        query = select(func.min(HISTORY.c.model_version)).where(mine)
        query = query.where(HISTORY.c.model_version > found[-1]) if found else query
        if (version := desk.value(query)) is None:
            return sorted(found, key=lambda name: (len(name), name))
        found.append(version)


def _is_free(user: User) -> ColumnElement[bool]:
    """Nobody else has it, and the reviewer has not skipped it."""
    taken = exists().where(
        CLAIMS.c.model_name == CURRENT.c.model_name,
        CLAIMS.c.post_id == CURRENT.c.post_id,
        CLAIMS.c.user != user.name,
        CLAIMS.c.until > datetime.now(UTC),
    )
    return and_(~taken, ~_said(user, "skip"))


def _said(user: User, *kinds: str) -> ColumnElement[bool]:
    mine = (REVIEWS.c.reviewer == user.name, REVIEWS.c.model_name == CURRENT.c.model_name)
    return exists().where(*mine, REVIEWS.c.post_id == CURRENT.c.post_id, REVIEWS.c.kind.in_(kinds))


def _records() -> Select[Any]:
    columns = (CURRENT.c.history_id, CURRENT.c.post_id, CURRENT.c.model_version, CURRENT.c.score, CURRENT.c.action)
    return select(*columns, HISTORY.c.answers).join(HISTORY, HISTORY.c.id == CURRENT.c.history_id)


def _narrowed(query: Select[Any], filters: Filters) -> Select[Any]:
    return query if filters.version is None else query.where(CURRENT.c.model_version == filters.version)


def _fits(desk: Desk, row: Row, filters: Filters) -> bool:
    if filters.answer is not None:
        question, wanted = filters.answer
        if row.answers.get(question, {}).get("answer") != wanted:
            return False
    if filters.slice is not None:
        post = desk.posts.get(row.post_id)
        return post is not None and filters.slice in post.slices
    return True


def _parts(
    desk: Desk, filters: Filters, condition: ColumnElement[bool], after: Place | None
) -> Iterator[tuple[list[Row], int, Place | None]]:
    """Those of each part of a queue that fit; how many were looked at; and where it ended, None: the queue ends."""
    stretch = stretch_of(desk, filters)
    if stretch is None:
        return
    place, waits = (CURRENT.c.score, CURRENT.c.history_id), CURRENT.c.waiting == true()
    order, size = [column.desc() for column in place], min(_FIRST, _PART)
    while True:
        last = select(*place).where(stretch.part(after), waits).order_by(*order).offset(size - 1).limit(1)
        found = next(iter(desk.rows(last)), None)
        end = None if found is None else Place(*found)
        part = and_(stretch.part(after, end), waits)
        query = _narrowed(_records().where(part, condition), filters).order_by(*order)
        rows = [Row(*row) for row in desk.rows(query)]
        yield [row for row in rows if _fits(desk, row, filters)], size if end else len(rows), end
        if end is None:
            return
        after, size = end, min(4 * size, _PART)


def page(desk: Desk, user: User, filters: Filters, after: Place | None = None, limit: int = 25) -> Page:
    """What waits in a queue, the highest scores first."""
    rows: list[Row] = []
    looked, until = 0, time.monotonic() + _PATIENCE
    end: Place | None = None
    for found, seen, ended in _parts(desk, filters, _is_free(user), after):
        rows, looked, end = rows + found, looked + seen, ended
        if len(rows) > limit:
            last = rows[limit - 1]
            return Page(rows[:limit], looked, Place(last.score, last.id))
        if time.monotonic() > until:
            break
    return Page(rows, looked, end)


def failed(desk: Desk, after: int = 0, limit: int = 25) -> tuple[list[tuple[int, str, str]], int | None]:
    """Posts whose current record is an error: (id, post, why), and the id behind which the next page begins."""
    query = select(CURRENT.c.history_id, CURRENT.c.post_id, HISTORY.c.error)
    query = query.join(HISTORY, HISTORY.c.id == CURRENT.c.history_id)
    query = query.where(CURRENT.c.model_name == desk.model_name, CURRENT.c.score.is_(None))
    query = query.where(CURRENT.c.history_id > after).order_by(CURRENT.c.history_id).limit(limit + 1)
    rows = [(row[0], row[1], row[2]) for row in desk.rows(query)]
    return rows[:limit], rows[limit - 1][0] if len(rows) > limit else None


# --- one post for one reviewer --------------------------------------------------------------------------------


def claim_next(desk: Desk, user: User, filters: Filters) -> Claim | None:
    """The reviewer's next post: sometimes one for a second, blind look, or one whose label is known; it looks the same.

    None: nothing waits.
    """
    desk.store.do(lambda connection: release(connection, user), writes=True)
    if user.role != "owner":  # who sees what others said, and which labels are known
        for kind in ("second", "gold"):
            for row in _mixed_in(desk, user, filters, kind):
                if (claim := take(desk, user, row.post_id, kind)) is not None:
                    return claim
    for rows, _, _ in _parts(desk, filters, _is_free(user), None):
        for row in rows:
            if (claim := take(desk, user, row.post_id, "first")) is not None:
                return claim
    return None


def _mixed_in(desk: Desk, user: User, filters: Filters, kind: str) -> list[Row]:
    stretch = stretch_of(desk, filters)
    if stretch is None:
        return []
    condition = _is_free(user)
    if kind == "second":
        here = and_(LABELS.c.model_name == CURRENT.c.model_name, LABELS.c.post_id == CURRENT.c.post_id)
        query = _records().join(LABELS, here).where(LABELS.c.state == "second", LABELS.c.first_by != user.name)
        query = query.where(LABELS.c.input_sha256.is_not_distinct_from(HISTORY.c.input_sha256)).order_by(LABELS.c.at)
    else:
        mine = (REVIEWS.c.reviewer == user.name, REVIEWS.c.model_name == desk.model_name)
        number = select(func.count()).select_from(REVIEWS).where(*mine)
        reviewed = desk.value(number)
        if not drawn("gold", f"{user.name}/{reviewed}", desk.shares.gold):
            return []
        here = and_(GOLD.c.model_name == CURRENT.c.model_name, GOLD.c.post_id == CURRENT.c.post_id)
        query = _records().join(GOLD, here).where(~_said(user, "first", "second", "final", "gold"))
        query = query.order_by(GOLD.c.at, GOLD.c.post_id)
    query = _narrowed(query.where(stretch.part(), condition), filters).limit(_PART)
    rows = desk.rows(query)
    return [row for row in (Row(*found) for found in rows) if _fits(desk, row, filters)]


def claim_post(desk: Desk, user: User, post_id: str) -> Claim:
    """This post, from a list or a link. Raises: RefusedError: there is none, it is another's, or nobody is asked."""
    if desk.value(current(desk, post_id)) is None:
        raise RefusedError(404, "No record is of this post.")
    state = label_of(desk, post_id)
    kind = "first"
    if state is not None:
        kind = "final" if state["state"] == "disputed" and user.may("lead") else "second"
        if state["state"] == "done" or state["first_by"] == user.name or user.name == state["second_by"]:
            raise RefusedError(409, "This post has its label, or waits for another person: take the next one.")
        if kind == "second" and (state["state"] != "second" or user.role == "owner"):
            raise RefusedError(409, "This post waits for another person: take the next one.")
    desk.store.do(lambda connection: release(connection, user), writes=True)
    claim = take(desk, user, post_id, kind)
    if claim is None:
        raise RefusedError(409, "Another person looks at this post now: take the next one.")
    return claim


def current(desk: Desk, post_id: str) -> Select[Any]:
    return select(CURRENT.c.history_id).where(CURRENT.c.model_name == desk.model_name, CURRENT.c.post_id == post_id)


def label_of(desk: Desk, post_id: str) -> Mapping[str, Any] | None:
    """What the reviews of the post, as it is now, come to."""
    row = next(iter(desk.rows(_label(desk, post_id))), None)
    return None if row is None else row._asdict()


def _label(desk: Desk, post_id: str) -> Select[Any]:
    here = (LABELS.c.model_name == desk.model_name, LABELS.c.post_id == post_id)
    same = and_(CURRENT.c.model_name == LABELS.c.model_name, CURRENT.c.post_id == LABELS.c.post_id)
    query = select(LABELS).join(CURRENT, same).join(HISTORY, HISTORY.c.id == CURRENT.c.history_id).where(*here)
    return query.where(LABELS.c.input_sha256.is_not_distinct_from(HISTORY.c.input_sha256))


def claim_of(desk: Desk, user: User) -> Claim | None:
    """The post that a reviewer has now; it stays so until another person takes it."""
    query = select(CLAIMS.c.post_id, CLAIMS.c.kind, CLAIMS.c.nonce)
    query = query.where(CLAIMS.c.model_name == desk.model_name, CLAIMS.c.user == user.name)
    row = next(iter(desk.rows(query)), None)
    return None if row is None else Claim(*row)


def release(connection: Connection, user: User) -> None:
    connection.execute(delete(CLAIMS).where(CLAIMS.c.user == user.name))


def take(desk: Desk, user: User, post_id: str, kind: str) -> Claim | None:
    """None: another person was faster, and has the post, or has decided about it."""
    wanted = {"first": None, "second": "second", "final": "disputed"}
    claim, now = Claim(post_id, kind, secrets.token_urlsafe(24)), datetime.now(UTC)

    def write(connection: Connection) -> bool:
        here = (CLAIMS.c.model_name == desk.model_name, CLAIMS.c.post_id == post_id)
        connection.execute(delete(CLAIMS).where(*here, or_(CLAIMS.c.until <= now, CLAIMS.c.user == user.name)))
        if connection.execute(select(CLAIMS.c.user).where(*here)).first() is not None:
            return False
        label = connection.execute(_label(desk, post_id)).first()
        if kind != "gold" and (None if label is None else label.state) != wanted[kind]:
            return False
        row = {"model_name": desk.model_name, "user": user.name, "until": now + desk.claim}
        connection.execute(insert(CLAIMS).values(row | vars(claim)))
        return True

    return claim if desk.store.do(write, writes=True) else None
