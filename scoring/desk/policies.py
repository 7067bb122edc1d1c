"""Policy versions: proposed with a reason, in effect only when confirmed, each kept with who and when."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import Connection, insert, select, update

from model.errors import AgentPSError
from model.files import write_whole
from scoring.desk.people import RefusedError, User, written
from scoring.desk.work import Desk
from scoring.policy import Policy
from scoring.store import Place, Store
from steps.retrain.reviewed import POLICIES
from steps.retrain.stored import CURRENT, HISTORY

logger = logging.getLogger(__name__)
_WHY, _PART = 1_000, 500


def changed(policy: Policy, precision: int | None, rules: Sequence[dict[str, str]]) -> Policy:
    """The policy with another target and other rules, as its next version. Raises: ConfigError."""
    raw = policy.file.model_dump(mode="json", by_alias=True)
    raw |= {"version": policy.file.version + 1, "precision": precision, "rules": list(rules)}
    return Policy.parse(raw, policy.source)


def text_of(policy: Policy) -> str:
    return yaml.safe_dump(policy.file.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def in_effect_since(desk: Desk) -> dict[str, datetime]:
    """When each policy that was confirmed here took effect: stored records were decided anew by it then."""
    query = select(POLICIES.c.version, POLICIES.c.confirmed_at).where(POLICIES.c.confirmed_at.is_not(None))
    return dict(row._tuple() for row in desk.rows(query))


def proposals(desk: Desk, limit: int = 50) -> list[dict[str, Any]]:
    """The newest first."""
    query = select(POLICIES).order_by(POLICIES.c.id.desc()).limit(limit)
    return [row._asdict() for row in desk.rows(query)]


def propose(desk: Desk, user: User, nonce: str, policy: Policy, why: str) -> None:
    """Raises: RefusedError: no reason is given, or a long one, nothing changes, or the form was sent before."""
    if not why.strip():
        raise RefusedError(400, "Say why: it is kept with the change.")
    same = {"version": policy.file.version}
    if desk.policy.file.model_copy(update=same) == policy.file:
        raise RefusedError(400, "This is the policy that is in effect: nothing would change.")
    row: dict[str, Any] = {
        "nonce": nonce,
        "version": policy.version,
        "text": text_of(policy),
        "why": written(why, _WHY),
    }
    row |= {"proposed_by": user.name, "proposed_at": datetime.now(UTC)}

    def write(connection: Connection) -> None:
        if not nonce or connection.execute(select(POLICIES.c.id).where(POLICIES.c.nonce == nonce)).first():
            raise RefusedError(409, "This form was sent before.")
        connection.execute(insert(POLICIES).values(**row))

    desk.store.do(write, writes=True)


def confirm(desk: Desk, user: User, id_: int) -> None:
    """The policy takes effect: for this desk, in its file, and for what is stored (`Application`).

    Who is killed between the store and the file leaves a note beside the file: `finish` reads it.

    Raises:
        RefusedError: there is no such proposal, it was confirmed before, or another one was since it was made.
        DiskError: the note cannot be written: nothing is in effect then. Or the file: the next start writes it.
    """

    def write(connection: Connection) -> tuple[Policy, str]:
        row = connection.execute(select(POLICIES).where(POLICIES.c.id == id_)).mappings().first()
        if row is None:
            raise RefusedError(404, "There is no such proposal.")
        in_effect = connection.execute(_confirmed()).mappings().first()
        if row["confirmed_at"] is not None:
            raise RefusedError(409, "This proposal was confirmed before.")
        policy = _parsed(desk, row["text"])
        others = [desk.policy] + ([] if in_effect is None else [_parsed(desk, in_effect["text"])])
        if policy.file.version <= max(other.file.version for other in others):
            raise RefusedError(
                409, "Another policy took effect since this was proposed: look at it again, and propose."
            )
        values = {"confirmed_by": user.name, "confirmed_at": datetime.now(UTC)}
        connection.execute(update(POLICIES).where(POLICIES.c.id == id_).values(**values))
        if desk.policy_file is not None:
            write_whole(_note(desk.policy_file), str(row["text"]))
        return policy, str(row["text"])

    desk.policy, text = desk.store.do(write, writes=True)
    if desk.policy_file is not None:
        write_whole(desk.policy_file, text)
        _note(desk.policy_file).unlink(missing_ok=True)


def _note(file: Path) -> Path:
    return file.with_name(f"{file.name}.confirming")


def finish(store: Store, file: Path) -> None:
    """Before the file is read: what a desk that was killed began in it is done, or dropped where nothing was confirmed.

    Raises:
        DiskError: the file cannot be written.
    """
    note = _note(file)
    if not note.exists():
        return

    def write(connection: Connection) -> None:
        """As the only writer: a desk that confirms at this moment is not disturbed."""
        if not note.exists():
            return
        text = note.read_text(encoding="utf-8")
        row = connection.execute(_confirmed()).mappings().first()
        if row is not None and row["text"] == text:
            write_whole(file, text)
            logger.warning("%s: %s had confirmed policy %s when the desk ended: the file holds it now", file,
                           row["confirmed_by"], row["version"])  # fmt: skip
        else:
            logger.warning(
                "%s: the desk ended while a policy was confirmed: it is not in effect; confirm it again", file
            )
        note.unlink()

    store.do(write, writes=True)


def _confirmed() -> Any:
    done = select(POLICIES).where(POLICIES.c.confirmed_at.is_not(None))
    return done.order_by(POLICIES.c.confirmed_at.desc(), POLICIES.c.id.desc()).limit(1)


def _parsed(desk: Desk, text: str) -> Policy:
    return Policy.parse(yaml.safe_load(text), desk.policy_file or desk.policy.source)


def refresh(desk: Desk) -> None:
    """What another desk of the same store confirmed is in effect here, too."""
    row = next(iter(desk.rows(_confirmed())), None)
    if row is not None and row.version != desk.policy.version:
        policy = _parsed(desk, row.text)
        if policy.file.name == desk.policy.file.name and policy.file.version > desk.policy.file.version:
            desk.policy = policy


class Application:
    """Decides about stored records anew, in a thread of its own; nothing is scored."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._one = desk, threading.Lock()
        self.done, self.running = 0, False
        self.failed: str | None = None

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(self._desk.policy,), daemon=True)
        thread.start()
        return thread

    def go_on(self) -> threading.Thread | None:
        """As `start`, where a desk that ended had not decided about all records of before; None: it had."""
        refresh(self._desk)
        since = in_effect_since(self._desk).get(self._desk.policy.version)
        if since is None:
            return None
        left = select(CURRENT.c.post_id).join(HISTORY, HISTORY.c.id == CURRENT.c.history_id)
        left = left.where(CURRENT.c.model_name == self._desk.model_name, CURRENT.c.score.is_not(None))
        left = left.where(CURRENT.c.scored_at < since)
        left = left.where(HISTORY.c.policy_version.is_distinct_from(self._desk.policy.version)).limit(1)
        return self.start() if self._desk.rows(left) else None

    def _run(self, policy: Policy) -> None:
        with self._one:
            self.done, self.running, self.failed = 0, True, None
            try:
                self.done = self._apply(policy)
            except AgentPSError as error:
                self.failed = str(error)
                logger.error("policy %s: stored records are not decided anew: %s", policy.version, error)
            finally:
                self.running = False

    def _apply(self, policy: Policy) -> int:
        if policy.file.allow.fields:
            raise RefusedError(409, "its allow-lists look at fields of a stream's messages, which are not stored")
        place: Place | None = None
        done = 0
        while policy is self._desk.policy:  # another one was confirmed meanwhile: its own thread goes on
            said, place = self._desk.store.page(self._desk.model_name, after=place, limit=_PART)
            old = [record for record, _ in said if record.policy_version != policy.version]
            self._desk.store.put([(record, policy.decide(record)) for record in old])
            done += len(old)
            self.done = done
            if place is None:
                break
        return done


def new_nonce() -> str:
    return secrets.token_urlsafe(24)
