"""Every move of an alias: decided once, written down first, then made; a crash in between is repaired.

The history is a registered model of its own, `<name>.history`: each of its versions is one move, with
the move as JSON in a tag. MLflow numbers the versions of a model without a gap and writes a version
with its tags in one transaction, on any backend, so the history needs no storage of its own, and two
moves never share a number. A move of `champion` says which champion it replaces; it counts only where
that was the champion when its turn came, so of two that replace the same one, the first wins.

A move is made in this order: history (from here on it is decided), aliases, tags of the version, the
mark that it is done. `sync` finishes what was not, and writes down what was moved by hand.

Processes of one machine take turns through a lock file, which a killed process gives back. Machines
that share a tracking server do not share it: their decisions are still ordered by the history, but one
that stalls for the whole of another's move, between reading the history and setting an alias, may set
that alias once more to the older version; the next `sync` sees an alias that is not what was decided
last, and writes it down as moved by hand.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import BaseModel, ConfigDict
from sqlalchemy.engine import make_url

from model.errors import RegistryError
from steps.paths import home
from steps.register.registry import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    RegisteredVersion,
    fetch,
    get,
    set_verdict,
    tags_of,
)

VERDICT, REASON = "agentps.verdict", "agentps.reason"
#: The gate's verdict that leaves a version to a person; the one that a move of `champion` writes.
NEEDS_A_PERSON, PROMOTED = "needs a person", "promoted"
_ALIASES = (CHAMPION, PREVIOUS, CHALLENGER)
_MOVE, _DONE, _COPY_OF = "agentps.move", "agentps.done", "agentps.copy_of"
#: MLflow wants a source of every version; a record has no files. Not `models:/…`: that version may be deleted.
_SOURCE = "agentps-history:/record"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class Move(BaseModel):
    """One record of the history."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["registered", "promoted", "by a person", "rollback", "by hand"]
    #: UTC, ISO 8601.
    at: datetime
    #: The gate, or the person's user name.
    by: str
    reason: str
    #: What these aliases must hold for the move to count; None: the alias is not there.
    expects: dict[str, str | None]
    #: Alias -> version; None removes it.
    sets: dict[str, str | None]
    #: Tags for the version that `sets` makes champion.
    tags: dict[str, str] = {}


@dataclass(frozen=True)
class Entry:
    """A move at its place in the history."""

    number: int
    move: Move
    #: The aliases and tags were set.
    done: bool
    #: What `move.expects` was so; False: another was first, and this one changed nothing.
    counts: bool
    #: The aliases that it moved, as they were before.
    before: Mapping[str, str | None]


@dataclass(frozen=True)
class State:
    """The aliases as the history says, and the history."""

    name: str
    aliases: Mapping[str, str]
    entries: tuple[Entry, ...]

    @property
    def champion(self) -> RegisteredVersion | None:
        return self._version(CHAMPION)

    @property
    def previous(self) -> RegisteredVersion | None:
        return self._version(PREVIOUS)

    def _version(self, alias: str) -> RegisteredVersion | None:
        return get(self.name, self.aliases[alias]) if alias in self.aliases else None

    @property
    def champion_since(self) -> datetime | None:
        """When the champion became it; None where there is none."""
        moves = [entry.move for entry in self.entries if entry.counts and CHAMPION in entry.move.sets]
        return moves[-1].at if moves and CHAMPION in self.aliases else None

    def passed(self, version: str) -> bool:
        """Whether `version` was made champion by the gate or by a person to whom the gate left it."""
        moves = [entry.move for entry in self.entries if entry.counts]
        return any(m.kind in ("promoted", "by a person") and m.sets.get(CHAMPION) == version for m in moves)

    def rolled_back(self, version: str) -> Move | None:
        """The rollback that took `champion` from `version`, where it was not champion again since."""
        for entry in reversed(self.entries):
            if entry.counts and CHAMPION in entry.move.sets:
                if entry.move.sets[CHAMPION] == version:
                    return None
                if entry.move.kind == "rollback" and entry.before[CHAMPION] == version:
                    return entry.move
        return None

    def on(self, moment: datetime) -> str | None:
        """The version that was champion at `moment`."""
        moves = [e.move for e in self.entries if e.counts and CHAMPION in e.move.sets and e.move.at <= moment]
        return moves[-1].sets[CHAMPION] if moves else None


class Verdict(Protocol):
    """What `settle` reads of a decision."""

    @property
    def promote(self) -> bool: ...
    @property
    def verdict(self) -> str: ...
    @property
    def reason(self) -> str: ...


D = TypeVar("D", bound=Verdict)


def _now() -> datetime:
    return datetime.now(UTC)


def sync(name: str) -> State:
    """Finish moves that were interrupted and write down those made by hand; then the state is one.

    Raises:
        RegistryError: the registry cannot be reached.
    """
    with _lock():
        return _sync(name)


def challenge(version: RegisteredVersion) -> None:
    """`challenger` is this version."""
    with _lock():
        if _sync(version.name).aliases.get(CHALLENGER) != version.version:
            sets: dict[str, str | None] = {CHALLENGER: version.version}
            _make(version.name, Move(kind="registered", at=_now(), by=_who(), reason="", expects={}, sets=sets))


def settle(version: RegisteredVersion, decide: Callable[[State], D]) -> D:
    """Decide about `version` and move `champion` accordingly; the verdict goes into the version's tags.

    Args:
        decide: the verdict against the state's champion. It takes its time outside of the lock, and is
            asked again where the champion is another one by then.
    """
    while True:
        seen = sync(version.name)
        decision = decide(seen)
        with _lock():
            held = _sync(version.name).aliases.get(CHAMPION)
            if held != seen.aliases.get(CHAMPION):
                continue
            if held == version.version:
                return decision
            tags = {VERDICT: decision.verdict, REASON: decision.reason}
            if not decision.promote:
                set_verdict(version, tags)
                return decision
            if _make(version.name, _champion_move("promoted", version.version, held, "gate", decision.reason, tags)):
                return decision


def approve(version: RegisteredVersion, because: str) -> State:
    """A person makes `version` champion.

    Raises:
        RegistryError: the gate did not leave that to a person, or it is the champion already.
        CheckpointError: its files are not those that were registered.
    """
    fetch(version)
    while True:
        with _lock():
            state = _sync(version.name)
            held = state.aliases.get(CHAMPION)
            if held == version.version:
                raise RegistryError(f"model {version.name} version {version.version}: it is the champion already")
            tags = tags_of(version)
            verdict, reason = tags.get(VERDICT, "nothing yet"), tags.get(REASON, "no reason")
            if verdict != NEEDS_A_PERSON and not state.passed(version.version):
                raise RegistryError(
                    f"model {version.name} version {version.version}: the gate said {verdict!r} ({reason}); only "
                    f"{NEEDS_A_PERSON!r}, or a version that was champion, can be promoted by a person: change the "
                    "policy or the version, and run the pipeline"
                )
            now = _now()
            said = {
                VERDICT: PROMOTED,
                "agentps.approved_by": _who(),
                "agentps.approved_at": now.isoformat(timespec="seconds"),
                "agentps.because": because,
            }
            if _make(version.name, _champion_move("by a person", version.version, held, _who(), because, said)):
                return _sync(version.name)


def rollback(name: str, because: str) -> State:
    """`champion` goes back to `previous`, and `previous` to what was champion: a second call goes forward again.

    Raises:
        RegistryError: there is no previous champion, or it never passed the gate.
        CheckpointError: its files are not those that were registered.
    """
    while True:
        state = sync(name)
        if state.previous is None:
            raise RegistryError(f"model {name}: no alias `{PREVIOUS}`: there is no champion to go back to")
        if not state.passed(state.previous.version):
            raise RegistryError(
                f"model {name}: `{PREVIOUS}` is version {state.previous.version}, which was moved there by hand and "
                "never passed the gate: `agentps history` shows who did; move `champion` by hand too if that is meant"
            )
        fetch(state.previous)
        with _lock():
            held = _sync(name).aliases
            if held != state.aliases:
                continue
            move = _champion_move("rollback", held[PREVIOUS], held.get(CHAMPION), _who(), because, {})
            if _make(name, move):
                return _sync(name)


def publish(name: str, target: str) -> str | None:
    """Copy the champion into the registered model `target` and make it champion there; once a version.

    Returns:
        The copy's version; None where there is no champion.
    """
    client = MlflowClient()
    with _lock():
        version = _sync(name).aliases.get(CHAMPION)
        if version is None:
            return None
        source = f"{name}/{version}"
        # By MLflow's own record of where a copy came from: a copy that was made and not yet tagged is found too.
        copies = [v for v in _versions(client, target) if v.source == f"models:/{source}"]
        copy = copies[0] if copies else client.copy_model_version(f"models:/{source}", target)
        client.set_model_version_tag(target, copy.version, _COPY_OF, source)
        held = _aliases(client, target).get(CHAMPION)
        if held != str(copy.version):
            if held is not None:
                client.set_registered_model_alias(target, PREVIOUS, held)
            client.set_registered_model_alias(target, CHAMPION, copy.version)
        return str(copy.version)


def _champion_move(
    kind: Literal["promoted", "by a person", "rollback"],
    version: str,
    held: str | None,
    by: str,
    reason: str,
    tags: dict[str, str],
) -> Move:
    sets: dict[str, str | None] = {CHAMPION: version} if held is None else {PREVIOUS: held, CHAMPION: version}
    return Move(kind=kind, at=_now(), by=by, reason=reason, expects={CHAMPION: held}, sets=sets, tags=tags)


def _who() -> str:
    return getpass.getuser()


# --- under the lock -----------------------------------------------------------------------------


@contextmanager
def _lock() -> Iterator[None]:
    """One process of this machine at a time, for all models of the registry in use."""
    uri = mlflow.get_registry_uri()
    if uri.startswith("sqlite:"):
        path = Path(f"{make_url(uri).database}.lock")
    else:
        path = home() / "locks" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(name: str, move: Move) -> bool:
    """Write a move into the history and carry it out; False where another was first, on another machine."""
    number = _append(name, move, done=False)
    state = _sync(name)
    return next(entry.counts for entry in state.entries if entry.number == number)


def _sync(name: str) -> State:
    client = MlflowClient()
    state = _read(client, name)
    open_ = [entry for entry in state.entries if entry.counts and not entry.done]
    if open_:
        _finish(client, state, open_)
        state = _read(client, name)
    actual = _aliases(client, name)
    moved = {alias: actual.get(alias) for alias in _ALIASES if actual.get(alias) != state.aliases.get(alias)}
    if not moved:
        return state
    verdict = None
    if (version := moved.get(CHAMPION)) is not None:
        verdict = tags_of(get(name, version)).get(VERDICT, "none")
    reason = "not by this project" + (f"; the gate's verdict on this champion: {verdict}" if verdict else "")
    move = Move(kind="by hand", at=_now(), by="unknown", reason=reason, expects={}, sets=moved)
    _append(name, move, done=True)  # there is nothing to carry out
    return _read(client, name)


def _finish(client: MlflowClient, state: State, open_: list[Entry]) -> None:
    actual = _aliases(client, state.name)
    existing = {str(version.version) for version in _versions(client, state.name)}
    for alias in (PREVIOUS, CHALLENGER, CHAMPION):  # the champion last: `previous` is never missing beside a new one
        moves = [entry for entry in open_ if alias in entry.move.sets]
        wanted = state.aliases.get(alias)
        # Somebody may have moved it, or deleted its version, since the crash: that stays, and the caller writes it down
        if not moves or actual.get(alias) not in {wanted, *(entry.before[alias] for entry in moves)}:
            continue
        if wanted is None:
            client.delete_registered_model_alias(state.name, alias)
        elif actual.get(alias) != wanted and wanted in existing:
            client.set_registered_model_alias(state.name, alias, wanted)
    for entry in open_:
        version = entry.move.sets.get(CHAMPION)
        if version in existing and entry.move.tags:
            set_verdict(get(state.name, str(version)), entry.move.tags)
        client.set_model_version_tag(_log_name(state.name), str(entry.number), _DONE, "yes")


# --- the history as MLflow holds it ---------------------------------------------------------------


def _log_name(name: str) -> str:
    return f"{name}.history"


def _append(name: str, move: Move, *, done: bool) -> int:
    client = MlflowClient()
    log = _log_name(name)
    shown = ", ".join(f"{alias} -> {version or 'none'}" for alias, version in move.sets.items())
    create = partial(
        client.create_model_version,
        log,
        source=_SOURCE,
        tags={_MOVE: move.model_dump_json(), **({_DONE: "yes"} if done else {})},
        description=f"{move.kind}: {shown}" + (f" ({move.reason})" if move.reason else ""),
    )
    try:
        try:
            return int(create().version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            _create_log(client, name)
            return int(create().version)
    except MlflowException as error:
        raise RegistryError(f"model {log}: a move could not be written down: {error}") from error


def _create_log(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(_log_name(name), description=f"Every move of an alias of {name}, one a version.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    try:
        found = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code in _MISSING:
            return {}
        raise RegistryError(f"model {name}: {error}") from error
    return {alias: str(version) for alias, version in found.items()}


def _read(client: MlflowClient, name: str) -> State:
    try:
        records = _versions(client, _log_name(name))
    except MlflowException as error:
        raise RegistryError(f"registry {mlflow.get_registry_uri()}: {error}") from error
    aliases: dict[str, str] = {}
    entries: list[Entry] = []
    for record in records:
        move = Move.model_validate_json(record.tags[_MOVE])
        entry = Entry(
            number=int(record.version),
            move=move,
            done=_DONE in record.tags,
            counts=all(aliases.get(alias) == version for alias, version in move.expects.items()),
            before={alias: aliases.get(alias) for alias in move.sets},
        )
        entries.append(entry)
        if entry.counts:
            changed = {**aliases, **move.sets}
            aliases = {alias: version for alias, version in changed.items() if version is not None}
    return State(name=name, aliases=aliases, entries=tuple(entries))
