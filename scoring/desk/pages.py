"""Pages of reviewers: the queues, a post, and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from model.errors import ImageError
from scoring.desk import policies, queue, reviews
from scoring.desk.app import Form, Signed, Someone, asked_of, number_in, web_of
from scoring.desk.people import RefusedError, User
from scoring.desk.queue import QUEUES, Filters
from scoring.desk.work import Desk
from scoring.policy import Outcome
from scoring.record import Record
from scoring.store import Place, Scored
from steps.retrain.reviewed import REVIEWS

routes = APIRouter()
_PLACE = re.compile(r"([0-9.e+-]{1,40})_([0-9]{1,18})")
#: Characters of a text that a page shows; what is longer is cut, with a word.
_SHOWN = 20_000


def filters_of(given: Form, desk: Desk) -> Filters:
    """Raises: RefusedError: there is no such queue, question, class or day."""
    name = given.get("queue") or "flagged"
    if name not in QUEUES:
        raise RefusedError(404, "There is no such queue.")
    answer = None
    if given.get("answer"):
        question, _, wanted = given["answer"].partition(":")
        classes = {each.id: each.classes for each in desk.task.questions}
        if wanted not in classes.get(question, ()):
            raise RefusedError(400, "There is no such answer: choose one of the list.")
        answer = (question, wanted)
    try:
        day = date.fromisoformat(given["day"]) if given.get("day") else None
    except ValueError:
        raise RefusedError(400, "A day as 2026-03-01 is expected.") from None
    return Filters(name, answer, day, given.get("version") or None, given.get("slice") or None)  # type: ignore[arg-type]


def query_of(filters: Filters) -> dict[str, str]:
    """The reverse of `filters_of`."""
    answer = ":".join(filters.answer) if filters.answer else None
    day = filters.day.isoformat() if filters.day else None
    found = {"queue": filters.queue, "answer": answer, "day": day, "version": filters.version, "slice": filters.slice}
    return {name: value for name, value in found.items() if value}


@routes.get("/")
def home(request: Request, user: Someone) -> Response:
    return queue_page(request, user)


@routes.get("/queue")
def queue_page(request: Request, user: Someone) -> Response:
    web, given = web_of(request), asked_of(request)
    desk, filters = web.desk, filters_of(given, web.desk)
    found = _PLACE.fullmatch(given.get("after", ""))
    try:
        after = Place(float(found[1]), int(found[2])) if found else None
    except ValueError:
        after = None
    page = queue.page(desk, user, filters, after)
    more = page.after and urlencode(query_of(filters) | {"after": f"{page.after.score!r}_{page.after.id}"})
    return web.page(
        "queue.html",
        user,
        page=page,
        more=more,
        filters=filters,
        query=query_of(filters),
        queues=QUEUES,
        blind=filters.queue == "audit" and not desk.shows_scores,
        task=desk.task,
        versions=queue.versions(desk),
        slices=desk.posts.slices(),
        titles={row.post_id: _title(desk, row.post_id) for row in page.rows},
        claim=queue.claim_of(desk, user),
    )


def _title(desk: Desk, post_id: str) -> str | None:
    post = desk.posts.get(post_id)
    return None if post is None else post.title or post.text


@routes.get("/errors")
def errors(request: Request, user: Someone) -> Response:
    """What has no score: messages that became no record, and posts that could not be scored."""
    web = web_of(request)
    letters = web.desk.store.dead_letters(after=number_in(request.query_params, "after"), limit=26)
    failed, rest = queue.failed(web.desk, number_in(request.query_params, "rest"))
    return web.page("errors.html", user, letters=letters[:25], more=len(letters) > 25, failed=failed, rest=rest)


@routes.post("/errors")
def resolve(request: Request, user: Someone, form: Signed) -> Response:
    if not user.may("lead"):
        raise RefusedError(403, f"Giving a message up is for a lead; you are a {user.role}.")
    store, letter = web_of(request).desk.store, number_in(form, "id")
    if not store.dead_letters(ids=[letter]):
        raise RefusedError(404, "No message of this number waits: another person has given it up, or it was replayed.")
    store.resolve([letter])
    return RedirectResponse("/errors", 303)


# --- one post -------------------------------------------------------------------------------------------------


@routes.post("/next")
def next_post(request: Request, user: Someone, form: Signed) -> Response:
    web = web_of(request)
    return _next(web.desk, user, filters_of(form, web.desk))


def _next(desk: Desk, user: User, filters: Filters) -> Response:
    claim = queue.claim_next(desk, user, filters)
    query = query_of(filters)
    if claim is None:
        return RedirectResponse(f"/queue?{urlencode(query | {'done': '1'})}", 303)
    return RedirectResponse(f"/post?{urlencode(query | {'id': claim.post_id})}", 303)


@routes.post("/claim")
def claim(request: Request, user: Someone, form: Signed) -> Response:
    web = web_of(request)
    claim = queue.claim_post(web.desk, user, form.get("id", ""))
    return RedirectResponse(f"/post?{urlencode(query_of(filters_of(form, web.desk)) | {'id': claim.post_id})}", 303)


@routes.get("/post")
def post(request: Request, user: Someone) -> Response:
    web, given = web_of(request), asked_of(request)
    desk, post_id = web.desk, given.get("id", "")
    history = desk.store.history(post_id, desk.model_name)
    shown = desk.value(queue.current(desk, post_id))
    if shown is None:
        raise RefusedError(404, "No record is of this post.")
    record, outcome = desk.store.current([post_id], desk.model_name)[post_id]
    mine = queue.claim_of(desk, user)
    mine = mine if mine is not None and mine.post_id == post_id else None
    cells = desk.posts.get(post_id)
    blind = _is_blind(desk, user, post_id, outcome, mine)
    return web.page(
        "post.html",
        user,
        record=record,
        outcome=outcome,
        shown=shown,
        post=cells,
        text=None if cells is None else cells.text[:_SHOWN],
        cut=cells is not None and len(cells.text) > _SHOWN,
        task=desk.task,
        point=desk.point,
        threshold=desk.threshold(record.model_version),
        blind=blind,
        flagged=None if blind else _flagged(desk, record),
        others=[said for said, _ in history if said.model_version != record.model_version and not blind],
        history=[] if blind else _days(desk, history),
        claim=mine,
        reviews=_reviews(desk, user, post_id, mine),
        query=query_of(filters_of(given, desk)),
        positive=desk.task.final.positive,
    )


def _is_blind(desk: Desk, user: User, post_id: str, outcome: Outcome | None, claim: queue.Claim | None) -> bool:
    """What the model said is hidden: people who see it agree more often, and their labels are to measure it."""
    if desk.shows_scores or outcome is None or not outcome.audit:
        return False
    if claim is None:
        return user.role == "reviewer" and queue.label_of(desk, post_id) is None
    return claim.kind != "final"


def _days(desk: Desk, history: Sequence[Scored]) -> list[tuple[datetime, Record, Outcome | None, float | None]]:
    """What was decided about a post, from when on, and the threshold that decided."""
    since = policies.in_effect_since(desk)
    return [
        (
            max(said.scored_at, since.get(said.policy_version or "", said.scored_at)),
            said,
            decided,
            desk.decided_at(said.model_version, decided.reasons if decided else ()),
        )
        for said, decided in history
    ]


def _flagged(desk: Desk, record: Any) -> bool | None:
    return None if desk.point is None else record.decisions.get(desk.point)


def _reviews(desk: Desk, user: User, post_id: str, claim: queue.Claim | None) -> list[Any]:
    """What people said of it, for leads: who is or may be asked for a second look sees none."""
    label = queue.label_of(desk, post_id)
    blind = label is None or (label["state"] == "second" and label["first_by"] != user.name)
    if not user.may("lead") or (user.role != "owner" and (blind or (claim is not None and claim.kind != "final"))):
        return []
    query = reviews.effective().where(REVIEWS.c.model_name == desk.model_name, REVIEWS.c.post_id == post_id)
    return list(desk.rows(query.order_by(REVIEWS.c.id)))


@routes.post("/decide")
def decide(request: Request, user: Someone, form: Signed) -> Response:
    web = web_of(request)
    desk = web.desk
    label = {"positive": 1, "negative": 0, "skip": None}.get(form.get("what", ""), -1)
    fields = {question: f"answer {question}" for question in desk.task.question_ids}
    answers = {question: number_in(form, field, -1) for question, field in fields.items() if form.get(field)}
    note, shown = form.get("note", ""), number_in(form, "shown")
    reviews.decide(desk, user, form.get("nonce", ""), shown, label, answers, note)
    return _next(desk, user, filters_of(form, desk))


@routes.post("/undo")
def undo(request: Request, user: Someone, form: Signed) -> Response:
    web = web_of(request)
    claim = reviews.undo(web.desk, user)
    return RedirectResponse(f"/post?{urlencode(query_of(filters_of(form, web.desk)) | {'id': claim.post_id})}", 303)


@routes.get("/picture")
def picture(request: Request, user: Someone) -> Response:
    given = asked_of(request)
    try:
        data = web_of(request).desk.posts.picture(given.get("id", ""), number_in(given, "n", -1))
    except ImageError as error:
        raise RefusedError(404, f"This picture cannot be shown: {error}") from error
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})
