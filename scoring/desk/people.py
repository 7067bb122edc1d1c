"""Who works at the desk: users with a role, passwords as scrypt's hashes, sessions of which only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from sqlalchemy import Connection, delete, insert, select, update

from model.errors import AgentPSError
from scoring.store import Store
from steps.database import storable
from steps.retrain.reviewed import SESSIONS, USERS

Role = Literal["reviewer", "lead", "owner"]
#: A later role may do all that an earlier one may.
ROLES: tuple[Role, ...] = ("reviewer", "lead", "owner")
#: scrypt's cost: 16 MB and 5 rounds of it, as OWASP's list of 2024 has it.
_COST = {"n": 2**14, "r": 8, "p": 5}
_SHORTEST, _LONGEST = 12, 1_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SESSION, _LINK = timedelta(hours=12), timedelta(days=2)


class RefusedError(AgentPSError):
    """What somebody asked for is not done. status: of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def written(text: str, most: int) -> str:
    """What a person wrote, as it is kept. Raises: RefusedError: it is longer, and would be cut."""
    text = storable(text.replace("\r\n", "\n").strip())  # a browser counts a new line as one character, and sends two
    if len(text) > most:
        raise RefusedError(
            400, f"At most {most:,} characters are kept, and this has {len(text):,}: go back, shorten it."
        )
    return text


@dataclass(frozen=True)
class User:
    """token: of the session that the user came with. hidden: pictures are blurred and grey until asked."""

    name: str
    role: Role
    hidden: bool
    token: str = ""

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)

    @property
    def form_token(self) -> str:
        """Every form of this session carries it; a page of another site cannot know it."""
        return hmac.new(self.token.encode(), b"agentps desk form", hashlib.sha256).hexdigest()


class Limit:
    """So many a minute for each key, after a pause all at once. Of this process."""

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._now = per_minute, now
        self._left: dict[str, tuple[float, float]] = {}
        self._one = threading.Lock()

    def take(self, key: str) -> None:
        """Raises: RefusedError: 429."""
        with self._one:
            now = self._now()
            if len(self._left) > 10_000:  # those that have all again
                self._left = {k: (n, at) for k, (n, at) in self._left.items() if now - at < 60}
            left, at = self._left.get(key, (float(self._most), now))
            left = min(self._most, left + (now - at) * self._most / 60)
            if left < 1:
                wait = math.ceil((1 - left) * 60 / self._most)
                self._left[key] = (left, now)
                raise RefusedError(429, f"Too many of these requests. Try again in {wait} seconds.")
            self._left[key] = (left - 1, now)


# --- passwords ----------------------------------------------------------------------------------------------


def hashed(password: str) -> str:
    salt = secrets.token_bytes(16)
    key = hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, maxmem=2**26, dklen=32, **_COST)
    cost = ",".join(f"{name}={value}" for name, value in _COST.items())
    return f"scrypt${cost}${b64encode(salt).decode()}${b64encode(key).decode()}"


def is_password(password: str, kept: str | None) -> bool:
    """It takes as long where there is no such user, or one without a password."""
    _, cost, salt, key = (kept or _NOBODY).split("$")
    n, r, p = (int(part.partition("=")[2]) for part in cost.split(","))
    found = hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=b64decode(salt), n=n, r=r, p=p, maxmem=2**26, dklen=32
    )
    return hmac.compare_digest(found, b64decode(key)) and kept is not None


_NOBODY = hashed(secrets.token_urlsafe())


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


# --- users and sessions -------------------------------------------------------------------------------------


class People:
    """The users of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[dict[str, object]]:
        columns = (USERS.c.name, USERS.c.role, USERS.c.active, USERS.c.created_at, USERS.c.password.is_not(None))
        query = select(*columns[:-1], columns[-1].label("ready")).order_by(USERS.c.name)
        return [dict(row) for row in self._store.do(lambda c: c.execute(query).mappings().all())]

    def add(self, name: str, role: str) -> str:
        """A new user; returns the secret of a link by which the user comes in once, and chooses a password.

        Raises:
            RefusedError: the name is none or taken, or there is no such role.
        """
        if not _NAME.fullmatch(name) or role not in ROLES:
            raise RefusedError(
                400, f"{name!r:.80}, {role!r:.40}: a name of at most 64 letters, digits, dots, - and _ and one of the "
                f"roles {', '.join(ROLES)} are expected.",
            )  # fmt: skip

        def write(connection: Connection) -> None:
            if connection.execute(select(USERS.c.name).where(USERS.c.name == name)).first():
                raise RefusedError(409, f"There is a user {name} already.")
            row = {"name": name, "role": role, "active": True, "hidden": True, "created_at": datetime.now(UTC)}
            connection.execute(insert(USERS).values(**row))

        self._store.do(write, writes=True)
        return self.link(name)

    def link(self, name: str) -> str:
        """A new link for a user, who may choose a new password with it; the link of before is none any more."""
        secret = secrets.token_urlsafe(32)
        values = {"link_sha256": _sha256(secret), "link_until": datetime.now(UTC) + _LINK}
        self._change(name, values)
        return secret

    def change(self, name: str, *, role: Role | None = None, active: bool | None = None) -> None:
        """Its sessions end. Raises: RefusedError: no such user; the last active owner would be gone."""
        given: dict[str, object] = {"role": role, "active": active}
        values = {key: value for key, value in given.items() if value is not None}

        def write(connection: Connection) -> None:
            self._set(connection, name, values)
            owners = select(USERS.c.name).where(USERS.c.role == "owner", USERS.c.active)
            if connection.execute(owners).first() is None:
                raise RefusedError(409, f"{name} is the only active owner: make another one first.")
            connection.execute(delete(SESSIONS).where(SESSIONS.c.user == name))

        self._store.do(write, writes=True)

    def hide(self, name: str, hidden: bool) -> None:
        self._change(name, {"hidden": hidden})

    def _change(self, name: str, values: dict[str, object]) -> None:
        self._store.do(lambda connection: self._set(connection, name, values), writes=True)

    def _set(self, connection: Connection, name: str, values: dict[str, object]) -> None:
        if not connection.execute(update(USERS).where(USERS.c.name == name).values(**values)).rowcount:
            raise RefusedError(404, f"There is no user {name!r:.80}.")

    def enter(self, name: str, password: str) -> str:
        """A session's token. Raises: RefusedError: 401, the same for a wrong name and a wrong password."""
        query = select(USERS.c.password).where(USERS.c.name == name, USERS.c.active)
        kept = self._store.do(lambda connection: connection.execute(query).scalar())
        if not is_password(password[:_LONGEST], kept):
            raise RefusedError(401, "This name and password do not fit.")
        return self._store.do(lambda connection: self._begin(connection, name), writes=True)

    def invited(self, secret: str) -> str | None:
        """Whose link it is, which stays one."""
        known = (USERS.c.link_sha256 == _sha256(secret), USERS.c.link_until > datetime.now(UTC), USERS.c.active)
        return self._store.do(lambda connection: connection.execute(select(USERS.c.name).where(*known)).scalar())

    def enter_by_link(self, secret: str, password: str | None) -> str:
        """A session's token; the link is used up.

        Args:
            password: that was chosen; None: the user has none, and comes in by links.

        Raises:
            RefusedError: 401: the link is none, or was used; 400: the password is too short.
        """
        if password is not None and not _SHORTEST <= len(password) <= _LONGEST:
            raise RefusedError(400, f"A password of at least {_SHORTEST} characters is needed.")
        values: dict[str, object] = {"link_sha256": None, "link_until": None}
        if password is not None:
            values["password"] = hashed(password)

        def write(connection: Connection) -> str:
            known = (USERS.c.link_sha256 == _sha256(secret), USERS.c.link_until > datetime.now(UTC), USERS.c.active)
            name = connection.execute(select(USERS.c.name).where(*known)).scalar()
            if name is None:
                raise RefusedError(401, "This link was used, or is too old: ask an owner for a new one.")
            self._set(connection, name, values)
            connection.execute(delete(SESSIONS).where(SESSIONS.c.user == name))
            return self._begin(connection, name)

        return self._store.do(write, writes=True)

    def _begin(self, connection: Connection, name: str) -> str:
        token, now = secrets.token_urlsafe(32), datetime.now(UTC)
        connection.execute(delete(SESSIONS).where(SESSIONS.c.until < now))
        connection.execute(insert(SESSIONS).values(token_sha256=_sha256(token), user=name, until=now + _SESSION))
        return token

    def who(self, token: str) -> User | None:
        query = (
            select(USERS.c.name, USERS.c.role, USERS.c.hidden)
            .join(SESSIONS, SESSIONS.c.user == USERS.c.name)
            .where(SESSIONS.c.token_sha256 == _sha256(token), SESSIONS.c.until > datetime.now(UTC), USERS.c.active)
        )
        row = self._store.do(lambda connection: connection.execute(query).first())
        return None if row is None else User(row.name, row.role, row.hidden, token)

    def leave(self, token: str) -> None:
        gone = delete(SESSIONS).where(SESSIONS.c.token_sha256 == _sha256(token))
        self._store.do(lambda connection: connection.execute(gone), writes=True)
