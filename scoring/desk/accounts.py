"""Pages of people: signing in and out, one-time links, and the users of the desk."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from scoring.desk.app import COOKIE, Form, Owner, Signed, Someone, read_form, web_of
from scoring.desk.people import ROLES, RefusedError

routes = APIRouter()


@routes.get("/sign-in")
def sign_in(request: Request) -> Response:
    return web_of(request).page("sign_in.html", message=None)


@routes.post("/sign-in")
def signed_in(request: Request, form: Annotated[Form, Depends(read_form)]) -> Response:
    web, name = web_of(request), form.get("name", "")[:64]
    for key in (f"name {name}", f"address {request.client.host if request.client else ''}"):
        web.tries.take(key)
    try:
        return web.come_in(web.people.enter(name, form.get("password", "")))
    except RefusedError as error:
        return web.page("sign_in.html", None, error.status, message=str(error))


@routes.post("/sign-out")
def sign_out(request: Request, user: Someone, form: Signed) -> Response:
    web_of(request).people.leave(user.token)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(COOKIE, path="/")
    return answer


@routes.get("/link/{secret}")
def link(request: Request, secret: str) -> Response:
    """It changes nothing: a program that looks at links in messages must not use it up."""
    web = web_of(request)
    web.tries.take(f"address {request.client.host if request.client else ''}")
    name = web.people.invited(secret)
    if name is None:
        raise RefusedError(401, "This link was used, or is too old: ask an owner for a new one.")
    return web.page("link.html", None, whose=name, secret=secret, message=None, demo=web.demo)


@routes.post("/link/{secret}")
def by_link(request: Request, secret: str, form: Annotated[Form, Depends(read_form)]) -> Response:
    web = web_of(request)
    web.tries.take(f"address {request.client.host if request.client else ''}")
    try:
        return web.come_in(web.people.enter_by_link(secret, None if web.demo else form.get("password", "")))
    except RefusedError as error:
        if error.status != 400:
            raise
        name = web.people.invited(secret)
        return web.page("link.html", None, 400, whose=name, secret=secret, message=str(error), demo=web.demo)


@routes.post("/hide")
def hide(request: Request, user: Someone, form: Signed) -> Response:
    """Whether pictures are blurred and grey until asked, for this user."""
    web_of(request).people.hide(user.name, form.get("hidden") == "yes")
    return RedirectResponse("/settings", 303)


@routes.get("/settings")
def settings(request: Request, user: Someone) -> Response:
    return web_of(request).page("settings.html", user)


@routes.get("/users")
def users(request: Request, user: Owner) -> Response:
    web = web_of(request)
    return web.page("users.html", user, users=web.people.all(), roles=ROLES, link=None)


@routes.post("/users")
def change_users(request: Request, user: Owner, form: Signed) -> Response:
    web, name, what = web_of(request), form.get("name", ""), form.get("what", "")
    secret = None
    if what == "add":
        secret = web.people.add(name, form.get("role", ""))
    elif what == "link":
        secret = web.people.link(name)
    elif what == "role" and form.get("role") in ROLES:
        web.people.change(name, role=form["role"])  # type: ignore[arg-type]  # one of ROLES
    elif what in ("leave", "return"):
        web.people.change(name, active=what == "return")
    else:
        raise RefusedError(400, "This is nothing that can be done with a user.")
    made = None if secret is None else (name, f"{request.url.scheme}://{request.url.netloc}/link/{secret}")
    return web.page("users.html", user, users=web.people.all(), roles=ROLES, link=made)
