"""Pages of leads and owners: quality, what-if, the audit trail, and posts whose labels are known."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from sqlalchemy import insert, select

from model.errors import ConfigError
from scoring.desk import export, policies, quality, queue, whatif
from scoring.desk.app import Form, Lead, Owner, Signed, Web, asked_of, number_in, web_of
from scoring.desk.memory import SOON
from scoring.desk.people import RefusedError, User, written
from scoring.desk.work import Desk
from scoring.policy import Policy
from steps.retrain.reviewed import GOLD, LABELS, REVIEWS

routes = APIRouter()
_RULES, _PAGE = 12, 50


@routes.get("/quality")
def quality_page(request: Request, user: Lead) -> Response:
    web, given = web_of(request), asked_of(request)
    days = number_in(given, "days") or 28
    days = days if days in (7, 28, 90, 365) else 28
    version = given.get("version") or None
    desk = web.desk
    found, (looks, hits) = desk.records.read(SOON), web.looks.read(SOON)
    return web.page(
        "quality.html",
        user,
        agreement=quality.agreement(looks, desk.task.question_ids),
        gold=quality.on_gold(hits),
        live=quality.live(desk, found, days, version),
        days=days,
        version=version,
        versions=queue.versions(desk),
        shares=desk.shares,
        task=desk.task,
        point=desk.point,
    )


@routes.get("/disputed")
def disputed(request: Request, user: Lead) -> Response:
    """Posts of which two people said different things: a third decides."""
    web = web_of(request)
    query = select(LABELS).where(LABELS.c.model_name == web.desk.model_name, LABELS.c.state == "disputed")
    query = query.order_by(LABELS.c.at).limit(_PAGE)
    rows = [row._mapping for row in web.desk.rows(query)]
    return web.page("disputed.html", user, rows=rows)


@routes.post("/gold")
def gold(request: Request, user: Lead, form: Signed) -> Response:
    """A post whose label is known from now on: it is mixed in among reviewers' posts."""
    web = web_of(request)
    post_id, label, why = form.get("id", ""), form.get("label"), form.get("why", "").strip()
    if label not in ("0", "1") or not why:
        raise RefusedError(400, "A label and the reason why it is known are needed.")
    if post_id not in web.desk.store.current([post_id], web.desk.model_name):
        raise RefusedError(404, "No record is of this post.")
    row = {"model_name": web.desk.model_name, "post_id": post_id, "label": int(label), "answers": {}}
    row |= {"why": written(why, 1_000), "added_by": user.name, "at": datetime.now(UTC)}
    add_gold(web.desk, [row])
    return RedirectResponse("/quality", 303)


def add_gold(desk: Desk, rows: list[dict[str, Any]]) -> None:
    """Raises: RefusedError: a label of the post is known already."""

    def write(connection: Any) -> None:
        for row in rows:
            here = (GOLD.c.model_name == row["model_name"], GOLD.c.post_id == row["post_id"])
            if connection.execute(select(GOLD.c.label).where(*here)).first():
                raise RefusedError(409, "The label of this post is known already.")
            connection.execute(insert(GOLD).values(**row))

    desk.store.do(write, writes=True)


# --- the audit trail ------------------------------------------------------------------------------------------


@routes.get("/trail")
def trail(request: Request, user: Lead) -> Response:
    """The newest reviews. Who may be asked for a second look at a post does not see the first one."""
    web, before = web_of(request), number_in(asked_of(request), "before")
    same = (LABELS.c.model_name == REVIEWS.c.model_name) & (LABELS.c.post_id == REVIEWS.c.post_id)
    query = select(REVIEWS, LABELS.c.state).outerjoin(LABELS, same)
    query = query.where(REVIEWS.c.model_name == web.desk.model_name).order_by(REVIEWS.c.id.desc()).limit(_PAGE + 1)
    query = query.where(REVIEWS.c.id < before) if before else query
    found = [row._mapping for row in web.desk.rows(query)]
    rows = [dict(row) | {"blind": _is_blind(dict(row), user)} for row in found[:_PAGE]]
    more = rows[-1]["id"] if len(found) > _PAGE else None
    return web.page("trail.html", user, rows=rows, more=more, task=web.desk.task)


def _is_blind(row: Mapping[str, Any], user: User) -> bool:
    return row["state"] == "second" and row["reviewer"] != user.name and user.role != "owner"


@routes.get("/trail.csv")
def trail_csv(request: Request, user: Owner) -> Response:
    name = {"Content-Disposition": 'attachment; filename="reviews.csv"', "Cache-Control": "no-store"}
    return StreamingResponse(export.as_csv(web_of(request).desk), media_type="text/csv; charset=utf-8", headers=name)


@routes.get("/trail.parquet")
def trail_parquet(request: Request, user: Owner) -> Response:
    name = {"Content-Disposition": 'attachment; filename="reviews.parquet"', "Cache-Control": "no-store"}
    found = export.as_parquet(web_of(request).desk)
    return StreamingResponse(found, media_type="application/octet-stream", headers=name)


# --- what if --------------------------------------------------------------------------------------------------


@routes.get("/what-if")
def what_if(request: Request, user: Lead) -> Response:
    web = web_of(request)
    return _what_if(web, user, asked_of(request))


def _what_if(web: Web, user: User, given: Form) -> Response:
    desk = web.desk
    points = points_of(desk)
    message, difference, candidate = None, None, None
    try:
        candidate = candidate_of(desk, given, points)
        difference = whatif.compare(desk, desk.records.read(SOON), candidate)
    except ConfigError as error:
        message = str(error).partition(": ")[2]
    shown = [dict(rule) for rule in _rules(given)] if "asked" in given else _rules_of(desk.policy)
    return web.page(
        "what_if.html",
        user,
        400 if message else 200,
        policy=desk.policy,
        candidate=candidate,
        difference=difference,
        message=message,
        points=points,
        precision=_precision(desk, given, points),
        rules=[*shown, *[{"name": "", "when": "", "action": "review"}] * 2][:_RULES],
        task=desk.task,
        nonce=policies.new_nonce(),
        proposals=policies.proposals(desk),
        application=web.application,
    )


def points_of(desk: Desk) -> list[int]:
    """The precision targets, in percent, that the newest version has thresholds for."""
    version = queue.newest_version(desk)
    points = () if version is None else desk.thresholds(version)
    return sorted(int(point[1:]) for point in points if point[1:].isdecimal())


def _precision(desk: Desk, given: Form, points: list[int]) -> int | None:
    if "precision" not in given or not points:
        return desk.policy.file.precision
    wanted = number_in(given, "precision")
    return next((point for point in points if point >= wanted), points[-1])


def _rules(given: Form) -> list[dict[str, str]]:
    rules = []
    for number in range(_RULES):
        when = given.get(f"when {number}", "").strip()
        if when:
            name = given.get(f"name {number}", "").strip() or f"rule {number + 1}"
            rules.append({"name": name, "when": when, "action": given.get(f"action {number}", "")})
    return rules


def _rules_of(policy: Policy) -> list[dict[str, str]]:
    return [rule.model_dump() for rule, _ in policy.rules]


def candidate_of(desk: Desk, given: Form, points: list[int]) -> Policy:
    """The policy that a form describes. Raises: ConfigError."""
    rules = _rules(given) if "asked" in given else _rules_of(desk.policy)
    return policies.changed(desk.policy, _precision(desk, given, points), rules)


@routes.post("/what-if")
def propose(request: Request, user: Lead, form: Signed) -> Response:
    desk = web_of(request).desk
    try:
        candidate = candidate_of(desk, form, points_of(desk))
    except ConfigError as error:
        raise RefusedError(400, str(error)) from error
    policies.propose(desk, user, form.get("nonce", ""), candidate, form.get("why", ""))
    return RedirectResponse("/what-if#versions", 303)


@routes.post("/confirm")
def confirm(request: Request, user: Owner, form: Signed) -> Response:
    web = web_of(request)
    policies.confirm(web.desk, user, number_in(form, "id"))
    web.application.start()
    return RedirectResponse("/what-if#versions", 303)
