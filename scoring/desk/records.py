"""The current records in memory, as columns: what counts over all of them (quality, what-if) is computed here.

Each record carries the number of the write that changed it last, and reviews are numbered. So what changed since is
found by an index, and reading it costs the same however large the store is. docs/desk.md has the times.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json
from sqlalchemy import ColumnElement, Row, Select, Text, and_, cast, func, select

from scoring.desk.memory import PART, Memory
from scoring.record import Answer
from steps.retrain.reviewed import LABELS, REVIEWS
from steps.retrain.stored import CURRENT, HISTORY

if TYPE_CHECKING:
    from scoring.desk.work import Desk

#: The newest records that are kept, at least; with twice as many the older half is forgotten.
MOST = 200_000
#: Posts of one query.
_POSTS = 500
ACTIONS = ("flag", "pass", "review")
_NAMES = ("score", "group", "version", "day", "action", "probability", "label")
#: Of a record that lost its score.
_GONE = -1


#: The label is of the post as it is now.
_GIVEN = and_(
    LABELS.c.model_name == CURRENT.c.model_name,
    LABELS.c.post_id == CURRENT.c.post_id,
    LABELS.c.input_sha256.is_not_distinct_from(HISTORY.c.input_sha256),
)


@dataclass(frozen=True)
class Columns:
    """Of the records that have a score. place: in `ids`. group: in `said`, the answers and decisions that occur.
    version: in `versions`. day: as `date.toordinal`. action: in ACTIONS, -1: none. probability: with which people look
    at the post; 0: it was not drawn. label: NaN: none. places: the reverse of `ids`. since: older days are left out;
    None: none is.
    """

    ids: list[str]
    places: dict[str, int]
    said: list[tuple[dict[str, Answer], dict[str, bool]]]
    versions: list[str]
    since: date | None
    place: NDArray[np.int64]
    score: NDArray[np.float64]
    group: NDArray[np.int64]
    version: NDArray[np.int64]
    day: NDArray[np.int64]
    action: NDArray[np.int64]
    probability: NDArray[np.float64]
    label: NDArray[np.float64]


class Records(Memory):
    """Its lists only grow, or are made anew: what `read` gave stays right."""

    what = "records"

    def __init__(self, desk: Desk, most: int = MOST) -> None:
        super().__init__(desk)
        self._most = most
        self._forget()

    def _forget(self) -> None:
        self.ids: list[str] = []
        self.said: list[tuple[dict[str, Answer], dict[str, bool]]] = []
        self.versions: list[str] = []
        self.places: dict[str, int] = {}
        self._known: dict[Any, int] = {}
        self._columns: dict[str, array[Any]] = {
            name: array("d" if name in ("score", "probability", "label") else "q") for name in _NAMES
        }
        self.since: date | None = None
        #: The last write and the last review that were read; None: nothing was.
        self._change: int | None = None
        self._review = 0
        self._are_all = True

    def read(self, within: float | None = None) -> Columns:
        """As the store is now.

        Raises:
            BeingReadError: it takes longer than `within` seconds.
        """
        with self._whole(within):
            if self.since is None and not self._are_all and self.ids:
                self.since = date.fromordinal(min(self._columns["day"]))
            # copies: an array whose memory is lent cannot grow
            columns = {name: np.array(column) for name, column in self._columns.items()}
            place_N = np.flatnonzero(columns["group"] != _GONE)
            return Columns(
                ids=self.ids, places=self.places, said=self.said, versions=self.versions, since=self.since,
                place=place_N, **{name: column[place_N] for name, column in columns.items()},
            )  # fmt: skip

    @property
    def _mine(self) -> ColumnElement[bool]:
        return CURRENT.c.model_name == self._desk.model_name

    def _left(self) -> ColumnElement[bool]:
        return and_(self._mine, CURRENT.c.change > (self._change or 0))

    def _part(self) -> tuple[int, bool]:
        if len(self.ids) > 2 * self._most:
            self._forget()
        if self._change is None:
            self._begin()
        reviewed = self._reviewed()
        # whole writes: their rows share a number
        last = select(CURRENT.c.change).where(self._left()).order_by(CURRENT.c.change).offset(PART - 1).limit(1)
        end = self._desk.value(last)
        rows = self._desk.rows(self._changed() if end is None else self._changed().where(CURRENT.c.change <= end))
        for row in rows:
            self._take(*row)
        for post_id, label in self._labels(reviewed):
            if (place := self.places.get(post_id)) is not None:
                self._columns["label"][place] = np.nan if label is None else float(label)
        return len(rows), end is not None

    def _begin(self) -> None:
        """Where the newest records begin, and which reviews they have in them already."""
        reviews = select(func.max(REVIEWS.c.id)).where(REVIEWS.c.model_name == self._desk.model_name)
        self._review = self._desk.value(reviews) or 0
        newest = select(CURRENT.c.change).where(self._mine).order_by(CURRENT.c.change.desc())
        first = self._desk.value(newest.offset(self._most - 1).limit(1))
        self._change, self._are_all = (-1, True) if first is None else (first - 1, False)

    def _changed(self) -> Select[Any]:
        query = select(
            CURRENT.c.change, CURRENT.c.post_id, CURRENT.c.score, CURRENT.c.model_version, CURRENT.c.day,
            CURRENT.c.action, CURRENT.c.audit, HISTORY.c.audit_probability,
            cast(HISTORY.c.answers, Text), cast(HISTORY.c.decisions, Text), LABELS.c.label,
        )  # fmt: skip
        query = query.join(HISTORY, HISTORY.c.id == CURRENT.c.history_id).outerjoin(LABELS, _GIVEN)
        return query.where(self._left()).order_by(CURRENT.c.change)

    def _take(
        self, change: int, post_id: str, score: float | None, version: str, day: date, action: str | None,
        audit: bool | None, probability: float | None, answers: str, decisions: str, label: int | None,
    ) -> None:  # fmt: skip
        self._change = change
        place = self.places.get(post_id)
        if score is None and place is None:
            return
        drawn = bool(audit) or action == "review"
        cells = (  # as _NAMES
            np.nan if score is None else score,
            _GONE if score is None else self._group(answers, decisions),
            self._numbered(version),
            day.toordinal(),
            ACTIONS.index(action) if action in ACTIONS else -1,
            (probability or 0.0) if drawn else 0.0,
            np.nan if label is None else float(label),
        )
        if place is None:
            self.places[post_id] = len(self.ids)
            self.ids.append(post_id)
            for column, cell in zip(self._columns.values(), cells, strict=True):
                column.append(cell)
        else:
            for column, cell in zip(self._columns.values(), cells, strict=True):
                column[place] = cell

    def _group(self, answers: str, decisions: str) -> int:
        said = from_json(answers)
        key = (decisions, *((name, answer["answer"]) for name, answer in said.items()))
        group: int = self._known.setdefault(key, len(self.said))
        if group == len(self.said):
            self.said.append(({name: Answer(**answer) for name, answer in said.items()}, from_json(decisions)))
        return group

    def _numbered(self, version: str) -> int:
        if version not in self.versions:
            self.versions.append(version)
        return self.versions.index(version)

    def _reviewed(self) -> Sequence[str]:
        """Posts that were reviewed since, or whose review was taken back."""
        mine = REVIEWS.c.model_name == self._desk.model_name
        rows = self._desk.rows(select(REVIEWS.c.id, REVIEWS.c.post_id).where(mine, REVIEWS.c.id > self._review))
        self._review = max((row[0] for row in rows), default=self._review)
        return sorted({row[1] for row in rows})

    def _labels(self, posts: Sequence[str]) -> Iterator[Row[Any]]:
        """The label that people gave each post as it is now, None where they gave none."""
        query = select(CURRENT.c.post_id, LABELS.c.label).join(HISTORY, HISTORY.c.id == CURRENT.c.history_id)
        query = query.outerjoin(LABELS, _GIVEN).where(self._mine)
        for start in range(0, len(posts), _POSTS):
            yield from self._desk.rows(query.where(CURRENT.c.post_id.in_(posts[start : start + _POSTS])))
