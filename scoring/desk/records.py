"""The current records in memory, as columns: what counts over all of them (quality, what-if) is computed here.

Each record carries the number of the write that changed it last, and reviews are numbered. So what changed since is
found by an index, and reading it costs the same however large the store is. docs/desk.md has the times.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, and_, func, select

from scoring.record import Answer
from steps.retrain.reviewed import LABELS, REVIEWS
from steps.retrain.stored import CURRENT, HISTORY

if TYPE_CHECKING:
    from scoring.desk.work import Desk

#: The newest records that are kept, at least; with twice as many the older half is forgotten.
MOST = 200_000
#: Posts of one query.
_PART = 500
ACTIONS = ("flag", "pass", "review")
_NAMES = ("score", "group", "version", "day", "action", "probability", "label")
#: Of a record that lost its score.
_GONE = -1


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


class Records:
    """Its lists only grow, or are made anew: what `read` gave stays right."""

    def __init__(self, desk: Desk, most: int = MOST) -> None:
        self._desk, self._most, self._one = desk, most, threading.Lock()
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
        self._change = self._review = 0
        self.since: date | None = None

    def read(self) -> Columns:
        """As the store is now."""
        with self._one:
            self._refresh()
            if len(self.ids) > 2 * self._most:
                self._forget()
                self._refresh()
            # copies: an array whose memory is lent cannot grow
            columns = {name: np.array(column) for name, column in self._columns.items()}
            place_N = np.flatnonzero(columns["group"] != _GONE)
            return Columns(
                ids=self.ids, places=self.places, said=self.said, versions=self.versions, since=self.since,
                place=place_N, **{name: column[place_N] for name, column in columns.items()},
            )  # fmt: skip

    def _refresh(self) -> None:
        first = not self.ids
        reviewed = self._reviewed()
        changed = [self._take(*row) for row in self._desk.rows(self._changed())]
        if first and len(changed) >= self._most:
            self.since = date.fromordinal(min(self._columns["day"]))
        posts = None if first else {*reviewed, *changed}
        for post_id, label in self._labels(posts):
            if (place := self.places.get(post_id)) is not None:
                self._columns["label"][place] = np.nan if label is None else float(label)

    def _changed(self) -> Select[Any]:
        query = select(
            CURRENT.c.change, CURRENT.c.post_id, CURRENT.c.score, CURRENT.c.model_version, CURRENT.c.day,
            CURRENT.c.action, CURRENT.c.audit, HISTORY.c.audit_probability, HISTORY.c.answers, HISTORY.c.decisions,
        )  # fmt: skip
        query = query.join(HISTORY, HISTORY.c.id == CURRENT.c.history_id)
        query = query.where(CURRENT.c.model_name == self._desk.model_name, CURRENT.c.change > self._change)
        if not self.ids:
            query = query.where(CURRENT.c.score.is_not(None))
        return query.order_by(CURRENT.c.change.desc()).limit(self._most)

    def _take(
        self, change: int, post_id: str, score: float | None, version: str, day: date, action: str | None,
        audit: bool | None, probability: float | None, answers: dict[str, Any], decisions: dict[str, bool],
    ) -> str:  # fmt: skip
        self._change = max(self._change, change)
        place = self.places.get(post_id)
        if score is None and place is None:
            return post_id
        drawn = bool(audit) or action == "review"
        cells = {
            "score": np.nan if score is None else score,
            "group": _GONE if score is None else self._group(answers, decisions),
            "version": self._numbered(version),
            "day": day.toordinal(),
            "action": ACTIONS.index(action) if action in ACTIONS else -1,
            "probability": (probability or 0.0) if drawn else 0.0,
            "label": np.nan,
        }
        if place is None:
            self.places[post_id] = len(self.ids)
            self.ids.append(post_id)
            for name, cell in cells.items():
                self._columns[name].append(cell)
        else:
            for name, cell in cells.items():
                self._columns[name][place] = cell
        return post_id

    def _group(self, answers: dict[str, Any], decisions: dict[str, bool]) -> int:
        key = (tuple((name, said["answer"]) for name, said in answers.items()), tuple(decisions.items()))
        group: int = self._known.setdefault(key, len(self.said))
        if group == len(self.said):
            self.said.append(({name: Answer(**said) for name, said in answers.items()}, decisions))
        return group

    def _numbered(self, version: str) -> int:
        if version not in self.versions:
            self.versions.append(version)
        return self.versions.index(version)

    def _reviewed(self) -> set[str]:
        """Posts that were reviewed since, or whose review was taken back."""
        mine = REVIEWS.c.model_name == self._desk.model_name
        if not self.ids:
            self._review = self._desk.value(select(func.max(REVIEWS.c.id)).where(mine)) or 0
            return set()
        rows = self._desk.rows(select(REVIEWS.c.id, REVIEWS.c.post_id).where(mine, REVIEWS.c.id > self._review))
        self._review = max((row[0] for row in rows), default=self._review)
        return {row[1] for row in rows}

    def _labels(self, posts: Collection[str] | None) -> Iterator[tuple[str, int | None]]:
        """The label that people gave each post as it is now, None where they gave none. posts: None: all."""
        given = and_(
            LABELS.c.model_name == CURRENT.c.model_name,
            LABELS.c.post_id == CURRENT.c.post_id,
            LABELS.c.input_sha256.is_not_distinct_from(HISTORY.c.input_sha256),
        )
        query = select(CURRENT.c.post_id, LABELS.c.label)
        query = query.join(HISTORY, HISTORY.c.id == CURRENT.c.history_id).where(
            CURRENT.c.model_name == self._desk.model_name
        )
        if posts is None:
            yield from (row._tuple() for row in self._desk.rows(query.join(LABELS, given)))
            return
        wanted = sorted(posts)
        for start in range(0, len(wanted), _PART):
            part = CURRENT.c.post_id.in_(wanted[start : start + _PART])
            yield from (row._tuple() for row in self._desk.rows(query.outerjoin(LABELS, given).where(part)))
