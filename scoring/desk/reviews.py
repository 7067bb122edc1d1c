"""What people say of posts: kept for good, one row after the other; and what the reviews of a post come to."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, exists, insert, select, update

from scoring.desk.people import RefusedError, User, written
from scoring.desk.queue import Claim, release, take
from scoring.desk.work import Desk, drawn
from steps.retrain.reviewed import CLAIMS, LABELS, REVIEWS
from steps.retrain.stored import CURRENT, HISTORY

_NOTE = 2_000
_JUDGING = ("first", "second", "final")


def effective(*columns: Any) -> Select[Any]:
    """Reviews that were not taken back."""
    later = REVIEWS.alias()
    query = select(*columns) if columns else select(REVIEWS)
    return query.where(~exists().where(later.c.undoes == REVIEWS.c.id), REVIEWS.c.kind != "undo")


def decide(
    desk: Desk, user: User, nonce: str, history_id: int, label: int | None, answers: Mapping[str, int], note: str = ""
) -> None:
    """Keep a review of the post that the user has claimed.

    Args:
        nonce: of the claim: a form that is sent twice is kept once.
        history_id: of the record that was shown.
        label: 1: of the positive class; None: skipped.
        answers: class indices of the questions that were answered.

    Raises:
        RefusedError: the claim is gone, the record is no such one, an answer is none, or the note is too long.
    """
    note = written(note, _NOTE)
    sizes = {question.id: len(question.classes) for question in desk.task.questions}
    if label not in (0, 1, None) or any(not 0 <= index < sizes.get(name, 0) for name, index in answers.items()):
        raise RefusedError(400, "A decision or an answer is none that this page has: open the post again.")

    def write(connection: Connection) -> None:
        mine = (CLAIMS.c.user == user.name, CLAIMS.c.nonce == nonce, CLAIMS.c.model_name == desk.model_name)
        claim = connection.execute(select(CLAIMS.c.post_id, CLAIMS.c.kind).where(*mine)).first()
        if claim is None:
            raise RefusedError(
                409, "This form was sent before, or the post was given to another person meanwhile: take the next one."
            )
        shown = select(HISTORY.c.model_version, HISTORY.c.policy_version, HISTORY.c.input_sha256)
        shown = shown.where(HISTORY.c.id == history_id, HISTORY.c.post_id == claim.post_id)
        record = connection.execute(shown.where(HISTORY.c.model_name == desk.model_name)).mappings().first()
        if record is None:
            raise RefusedError(400, "The record of this form is not this post's: open the post again.")
        kind = "skip" if label is None else claim.kind
        said = {"kind": kind, "label": label, "answers": {} if label is None else dict(answers)}
        row = dict(record) | {"history_id": history_id, "note": note}
        _keep(connection, desk, user, claim.post_id, nonce, row | said)
        release(connection, user)
        if kind in _JUDGING:
            _settle(connection, desk, claim.post_id)

    desk.store.do(write, writes=True)


def _keep(connection: Connection, desk: Desk, user: User, post_id: str, nonce: str, row: Mapping[str, Any]) -> None:
    who = {"nonce": nonce, "at": datetime.now(UTC), "reviewer": user.name, "model_name": desk.model_name}
    connection.execute(insert(REVIEWS).values(who | {"post_id": post_id} | dict(row)))


def undo(desk: Desk, user: User) -> Claim:
    """Take back the user's last review, and have its post again.

    Raises:
        RefusedError: there is none of the last minutes, or another person has worked with it.
    """

    def write(connection: Connection) -> str:
        mine = effective().where(REVIEWS.c.reviewer == user.name, REVIEWS.c.model_name == desk.model_name)
        last = connection.execute(mine.order_by(REVIEWS.c.id.desc()).limit(1)).mappings().first()
        if last is None or last["at"] < datetime.now(UTC) - desk.undo:
            raise RefusedError(409, "There is nothing to undo: a review can be taken back for some minutes.")
        post = (REVIEWS.c.model_name == desk.model_name, REVIEWS.c.post_id == last["post_id"])
        later = effective(REVIEWS.c.id).where(*post, REVIEWS.c.id > last["id"], REVIEWS.c.kind.in_(_JUDGING))
        theirs = (
            CLAIMS.c.model_name == desk.model_name,
            CLAIMS.c.user != user.name,
            CLAIMS.c.until > datetime.now(UTC),
        )
        claimed = select(CLAIMS.c.user).where(*theirs, CLAIMS.c.post_id == last["post_id"])
        judging = last["kind"] in _JUDGING
        if judging and (connection.execute(later).first() or connection.execute(claimed).first()):
            raise RefusedError(409, "Another person looks at this post already: it cannot be taken back.")
        copied = ("history_id", "model_version", "policy_version", "input_sha256")
        row = {name: last[name] for name in copied}
        row |= {"kind": "undo", "label": None, "answers": {}, "note": "", "undoes": last["id"]}
        _keep(connection, desk, user, last["post_id"], secrets.token_urlsafe(24), row)
        release(connection, user)
        if judging:
            _settle(connection, desk, last["post_id"])
        kind.append("first" if last["kind"] == "skip" else last["kind"])
        return str(last["post_id"])

    kind: list[str] = []
    post_id = desk.store.do(write, writes=True)
    claim = take(desk, user, post_id, kind[-1])
    if claim is None:
        raise RefusedError(409, "It is taken back; another person has the post now.")
    return claim


def _settle(connection: Connection, desk: Desk, post_id: str) -> None:
    """Write what the reviews of a post come to. Those of the post as it was before a change do not count."""
    here = (REVIEWS.c.model_name == desk.model_name, REVIEWS.c.post_id == post_id)
    rows = connection.execute(effective().where(*here, REVIEWS.c.kind.in_(_JUDGING)).order_by(REVIEWS.c.id))
    reviews = [dict(row) for row in rows.mappings()]
    reviews = [row for row in reviews if row["input_sha256"] == reviews[-1]["input_sha256"]]
    connection.execute(delete(LABELS).where(LABELS.c.model_name == desk.model_name, LABELS.c.post_id == post_id))
    if reviews:
        second = drawn("second", post_id, desk.shares.second)
        row = settled(reviews, second=second) | {"model_name": desk.model_name, "post_id": post_id}
        connection.execute(insert(LABELS).values(row))
    mark_waiting(connection, desk.model_name, post_id)


def mark_waiting(connection: Connection, model_name: str, post_id: str) -> None:
    """Whether the queues have the post: nobody has looked at it as it is."""
    same = LABELS.c.input_sha256.is_not_distinct_from(HISTORY.c.input_sha256)
    looked_at = exists().where(
        LABELS.c.model_name == CURRENT.c.model_name, LABELS.c.post_id == CURRENT.c.post_id,
        HISTORY.c.id == CURRENT.c.history_id, same,
    )  # fmt: skip
    here = (CURRENT.c.model_name == model_name, CURRENT.c.post_id == post_id)
    connection.execute(update(CURRENT).where(*here).values(waiting=~looked_at.correlate(CURRENT)))


def settled(reviews: Sequence[Mapping[str, Any]], *, second: bool) -> dict[str, Any]:
    """The row of LABELS: of two who differ in the decision a third decides; an answer in which they differ is left out.

    Args:
        reviews: of one post, in their order.
        second: whether another person looks at it.
    """
    first, last = reviews[0], reviews[-1]
    others = [review for review in reviews if review["kind"] == "second"]
    found = {"input_sha256": first["input_sha256"], "first_by": first["reviewer"], "at": last["at"]}
    found |= {"second_by": others[0]["reviewer"] if others else None}
    if last["kind"] == "final":
        return found | {"state": "done", "label": last["label"], "answers": last["answers"]}
    if not others:
        state = "second" if second else "done"
        return found | {"state": state, "label": first["label"], "answers": first["answers"]}
    one, two = first["answers"], others[0]["answers"]
    answers = {name: index for name, index in {**one, **two}.items() if one.get(name, index) == two.get(name, index)}
    agreed = first["label"] == others[0]["label"]
    return found | {
        "state": "done" if agreed else "disputed",
        "label": first["label"] if agreed else None,
        "answers": answers,
    }
