"""The desk as an application: who may come in, what every answer carries, and how a refusal is told."""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from model.errors import AgentPSError, plain
from scoring.desk import policies
from scoring.desk.memory import BeingReadError
from scoring.desk.people import Limit, People, RefusedError, Role, User
from scoring.desk.policies import Application
from scoring.desk.quality import Looks
from scoring.desk.work import Desk
from steps.database import storable
from steps.pages import interval, number, share, shortened

logger = logging.getLogger(__name__)

COOKIE = "agentps_desk"
#: Bytes of a form.
_LONGEST = 100_000
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_HERE = Path(__file__).parent
#: A form's fields; of a name that comes twice the first.
Form = dict[str, str]


class NobodyError(Exception):
    """No session: the page is the sign-in."""


class Web:
    """What the routes share: limits of a user's requests, and of tries to sign in, of a name or of an address.

    demo: users have no password, and come in by links that the command prints. wanted: somebody waits for what is read.
    """

    def __init__(self, desk: Desk, *, secure: bool = False, demo: bool = False) -> None:
        self.desk, self.people, self.secure, self.demo = desk, People(desk.store), secure, demo
        self.requests, self.tries = Limit(600), Limit(10)
        self.looks, self.application, self.wanted = Looks(desk), Application(desk), threading.Event()
        self._pages = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._pages.filters.update(share=share, number=number, shortened=shortened)
        self._pages.globals["interval"] = interval

    def page(self, name: str, user: User | None = None, status: int = 200, **given: Any) -> HTMLResponse:
        text = self._pages.get_template(name).render(user=user, model=self.desk.model_name, **given)
        return HTMLResponse(text.encode("utf-8", "replace"), status, {"Cache-Control": "no-store"})

    def come_in(self, token: str) -> Response:
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, token, httponly=True, samesite="lax", secure=self.secure, path="/")
        return answer


def web_of(request: Request) -> Web:
    web: Web = request.app.state.web
    return web


def user_of(request: Request) -> User:
    web = web_of(request)
    user = web.people.who(request.cookies.get(COOKIE, ""))
    if user is None:
        raise NobodyError
    web.requests.take(user.name)
    policies.refresh(web.desk)
    request.state.user = user
    return user


def at_least(role: Role) -> Callable[..., User]:
    def allowed(user: Annotated[User, Depends(user_of)]) -> User:
        if not user.may(role):
            raise RefusedError(403, f"This page is for a {role}; you are a {user.role}.")
        return user

    return allowed


async def read_form(request: Request) -> Form:
    """Raises: RefusedError: it is from another site, too large, or no form."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is not None and urlsplit(origin).netloc != host:
        raise RefusedError(403, "This form is from another site.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST:
            raise RefusedError(413, f"A form of at most {_LONGEST:,} bytes is taken.")
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=500, errors="strict")
    except ValueError:
        raise RefusedError(400, "This is no form of the desk.") from None
    return {name: storable(values[0]) for name, values in fields.items()}


def asked_of(request: Request) -> Form:
    """The fields of the address, each as a database takes it."""
    return {name: storable(value) for name, value in request.query_params.items()}


def signed_form(
    request: Request, user: Annotated[User, Depends(user_of)], form: Annotated[Form, Depends(read_form)]
) -> Form:
    """A form that this session's page made. Raises: RefusedError: 403."""
    if not hmac.compare_digest(form.get("token", "").encode(), user.form_token.encode()):
        raise RefusedError(403, "This form is not from a page of your session: open the page again.")
    return form


def number_in(given: Mapping[str, str], name: str, otherwise: int = 0) -> int:
    """A count or an id of a form or an address; `otherwise` where it is none."""
    value = given.get(name, "")
    return int(value) if value.isdecimal() and len(value) <= 18 else otherwise


Someone = Annotated[User, Depends(user_of)]
Lead = Annotated[User, Depends(at_least("lead"))]
Owner = Annotated[User, Depends(at_least("owner"))]
Signed = Annotated[Form, Depends(signed_form)]


def create_app(
    desk: Desk,
    hosts: Collection[str] = ("127.0.0.1", "localhost"),
    *,
    secure: bool = False,
    demo: bool = False,
) -> FastAPI:
    """
    Args:
        hosts: names under which the desk is reached; a request for another one is refused.
        secure: the cookie goes over https only: a proxy in front speaks it.
    """
    from scoring.desk import accounts, lead, pages

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.web = Web(desk, secure=secure, demo=demo)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    for routes in (pages.routes, lead.routes, accounts.routes):
        app.include_router(routes)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        answer = await call_next(request)
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    @app.exception_handler(NobodyError)
    def sign_in(request: Request, _: Exception) -> Response:
        web = web_of(request)
        if request.method == "GET":
            return RedirectResponse("/sign-in", 303)
        return web.page("refused.html", None, 401, title="Signed out", message="You are signed out: sign in first.")

    @app.exception_handler(BeingReadError)
    def comes_soon(request: Request, error: Exception) -> Response:
        web = web_of(request)
        web.wanted.set()
        user = getattr(request.state, "user", None)
        page = web.page("being_read.html", user, BeingReadError.status, message=str(error))
        page.headers.update({"Refresh": "1", "Retry-After": "1"})
        return page

    @app.exception_handler(AgentPSError)
    def refused(request: Request, error: Exception) -> Response:
        status = getattr(error, "status", 500)
        if status == 500:
            logger.error("%s", plain(str(error)))
        return _told(request, status, str(error))

    @app.exception_handler(StarletteHTTPException)
    def unknown(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, StarletteHTTPException | HTTPException) else 500
        return _told(request, status, "There is no such page." if status == 404 else "This cannot be asked here.")

    return app


def _told(request: Request, status: int, message: str) -> Response:
    user = getattr(request.state, "user", None)
    title = {401: "Not let in", 403: "Not allowed", 404: "Not found", 409: "Not done"}.get(status, "Refused")
    return web_of(request).page("refused.html", user, status, title=title, message=message)
