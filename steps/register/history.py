"""Every move of an alias: decided once, written down first, then made; a crash in between is repaired.

The history is a registered model of its own, `<name>.history`: each of its versions is one move, with
the move as JSON in a tag. MLflow numbers the versions of a model without a gap and writes a version
with its tags in one transaction, on any backend, so the history needs no storage of its own, and two
moves never share a number. A move of `champion` says which champion it replaces; it counts only where
that was the champion when its turn came, so of two that replace the same one, the first wins.

A move is made in this order: history (from here on it is decided), aliases, tags of the version, the
mark that it is done. `sync` finishes what was not, and writes down what was moved by hand. Verdicts of the gate
that move nothing stand in the history too: the tags of a version only show what the history says.

Processes of one machine take turns through a lock file, which a killed process gives back. Machines
that share a tracking server do not share it: their decisions are still ordered by the history, but one
that stalls for the whole of another's move, between reading the history and setting an alias, may set
that alias once more to the older version; the next `sync` sees an alias that is not what was decided
last, and writes it down as moved by hand.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from model.errors import RegistryError
from steps.promote.gate import Decision
from steps.register.moves import DONE, Entry, Move, RegistryState, append, read, worded
from steps.register.names import check_names, log_name
from steps.register.reach import NotAllowedError, answered, turn
from steps.register.registry import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    RegisteredVersion,
    aliases_of,
    fetch,
    get,
    remove,
    set_verdict,
    versions_of,
)

VERDICT, REASON = "agentps.verdict", "agentps.reason"
#: The gate's verdict that leaves a version to a person; the one that a move of `champion` writes.
NEEDS_A_PERSON, PROMOTED = "needs a person", "promoted"
_ALIASES = (CHAMPION, PREVIOUS, CHALLENGER)
_COPY_OF = "agentps.copy_of"


@answered()
def sync(name: str) -> RegistryState:
    """Finish moves that were interrupted and write down those made by hand; then the state is one.

    Raises:
        RegistryError: the registry cannot be reached.
    """
    with turn():
        return _sync(name)


@answered()
def foreseen(name: str) -> RegistryState:
    """The state that `sync` would make, for who may read and not write."""
    state, actual = read(name), aliases_of(name)
    wanted = {alias: actual.get(alias) for alias in _ALIASES} | _due(state, actual)
    return replace(state, aliases={alias: version for alias, version in wanted.items() if version is not None})


def champion_of(name: str) -> RegisteredVersion:
    """Raises: RegistryError where there is none yet."""
    try:
        champion = sync(name).champion
    except NotAllowedError:
        champion = foreseen(name).champion
    if champion is None:
        raise RegistryError(f"model {name}: no champion yet: run the pipeline first")
    return champion


@answered()
def challenge(version: RegisteredVersion) -> None:
    """`challenger` is this version."""
    with turn():
        if _sync(version.name).aliases.get(CHALLENGER) != version.version:
            sets: dict[str, str | None] = {CHALLENGER: version.version}
            move = Move(kind="registered", at=datetime.now(UTC), by=_who(), reason="", expects={}, sets=sets)
            _make(version.name, move)


@answered()
def settle(version: RegisteredVersion, decide: Callable[[RegistryState], Decision]) -> Decision:
    """Decide about `version` and move `champion` accordingly; the verdict goes into the history and the version's tags.

    Args:
        decide: the verdict against the state's champion. It takes its time outside of the lock, and is
            asked again where the champion is another one by then.
    """
    while True:
        seen = sync(version.name)
        decision = decide(seen)
        with turn():
            state = _sync(version.name)
            held = state.aliases.get(CHAMPION)
            if held != seen.aliases.get(CHAMPION):
                continue
            if held == version.version:
                return decision
            tags = {VERDICT: decision.verdict, REASON: decision.reason}
            if not decision.promote:
                _judge(state, version, decision, tags)
                return decision
            if _make(version.name, _champion_move("promoted", version.version, held, "gate", decision.reason, tags)):
                return decision


def _judge(state: RegistryState, version: RegisteredVersion, decision: Decision, tags: dict[str, str]) -> None:
    """Write down a verdict that moves nothing; the same one again is in the history already."""
    if state.verdict(version.version) == (decision.verdict, worded(decision.reason)):
        set_verdict(version, {key: worded(value) for key, value in tags.items()})
        return
    kind: Literal["kept", "needs a person"] = "kept" if decision.verdict == "kept" else "needs a person"
    move = Move(
        kind=kind, at=datetime.now(UTC), by="gate", reason=decision.reason, expects={}, sets={}, tags=tags,
        judged=version.version,
    )  # fmt: skip
    _make(version.name, move)


@answered()
def approve(version: RegisteredVersion, because: str) -> RegistryState:
    """A person makes `version` champion.

    Raises:
        RegistryError: the gate did not leave that to a person, or it is the champion already.
        CheckpointError: its files are not those that were registered.
    """
    fetch(version)
    while True:
        with turn():
            state = _sync(version.name)
            held = state.aliases.get(CHAMPION)
            if held == version.version:
                raise RegistryError(f"model {version.name} version {version.version}: it is the champion already")
            verdict, reason = state.verdict(version.version) or ("nothing yet", "no reason")
            if verdict != NEEDS_A_PERSON and not state.passed(version.version):
                raise RegistryError(
                    f"model {version.name} version {version.version}: the gate said {verdict!r} ({reason}); only "
                    f"{NEEDS_A_PERSON!r}, or a version that was champion, can be promoted by a person: change the "
                    "policy or the version, and run the pipeline"
                )
            now = datetime.now(UTC)
            said = {
                VERDICT: PROMOTED,
                "agentps.approved_by": _who(),
                "agentps.approved_at": now.isoformat(timespec="seconds"),
                "agentps.because": because,
            }
            if _make(version.name, _champion_move("by a person", version.version, held, _who(), because, said)):
                return _sync(version.name)


@answered()
def rollback(name: str, because: str) -> RegistryState:
    """`champion` goes back to `previous`, and `previous` to what was champion: a second call goes forward again.

    Raises:
        RegistryError: there is no previous champion, or it never passed the gate; or an alias moved meanwhile, so that
            going back is no longer what was meant.
        CheckpointError: its files are not those that were registered.
    """
    state = sync(name)
    if state.previous is None:
        raise RegistryError(f"model {name}: no alias `{PREVIOUS}`: there is no champion to go back to")
    if not state.passed(state.previous.version):
        raise RegistryError(
            f"model {name}: `{PREVIOUS}` is version {state.previous.version}, which was moved there by hand and "
            "never passed the gate: `agentps history` shows who did; move `champion` by hand too if that is meant"
        )
    fetch(state.previous)
    with turn():
        held = _sync(name).aliases
        move = _champion_move("rollback", state.previous.version, state.aliases.get(CHAMPION), _who(), because, {})
        unmoved = all(held.get(alias) == state.aliases.get(alias) for alias in (CHAMPION, PREVIOUS))
        if unmoved and _make(name, move):
            return _sync(name)
    raise RegistryError(
        f"model {name}: another command moved `{CHAMPION}` or `{PREVIOUS}` meanwhile: look at `agentps history`, and "
        "roll back again if that is still meant"
    )


@answered()
def publish(name: str, target: str) -> str | None:
    """Copy the champion into the registered model `target` and make it champion there; once per version.

    Returns:
        The copy's version; None where there is no champion.

    Raises:
        ConfigError, RegistryError: `target` is this model, or one with a history of its own.
    """
    check_names(name, target)
    client = MlflowClient()
    with turn():
        version = _sync(name).aliases.get(CHAMPION)
        if version is None:
            return None
        if read(target).entries:
            raise RegistryError(
                f"promote.target {target!r} is a model that a pipeline registers versions of ({log_name(target)}): its "
                "aliases would be moved from two sides: name another target"
            )
        source = f"{name}/{version}"
        if not (copies := _copies(target, source)):
            client.copy_model_version(f"models:/{source}", target)
            copies = _copies(target, source)
        copy, held = copies[0], aliases_of(target).get(CHAMPION)
        for double in copies[1:]:  # MLflow's client asked again, because the first reply was lost
            if str(double.version) not in aliases_of(target).values():
                remove(double)
        if copy.tags.get(_COPY_OF) != source:
            client.set_model_version_tag(target, copy.version, _COPY_OF, source)
        if held != str(copy.version):
            if held is not None:
                client.set_registered_model_alias(target, PREVIOUS, held)
            client.set_registered_model_alias(target, CHAMPION, copy.version)
        return str(copy.version)


def _copies(target: str, source: str) -> list[ModelVersion]:
    """By MLflow's own record of where a copy came from: one that was made and not yet tagged is found too."""
    return [version for version in versions_of(target) if version.source == f"models:/{source}"]


def _champion_move(
    kind: Literal["promoted", "by a person", "rollback"],
    version: str,
    held: str | None,
    by: str,
    reason: str,
    tags: dict[str, str],
) -> Move:
    sets: dict[str, str | None] = {CHAMPION: version} if held is None else {PREVIOUS: held, CHAMPION: version}
    return Move(kind=kind, at=datetime.now(UTC), by=by, reason=reason, expects={CHAMPION: held}, sets=sets, tags=tags)


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


# --- under the lock -----------------------------------------------------------------------------


def _make(name: str, move: Move) -> bool:
    """Write a move into the history and carry it out; False where another was first, on another machine."""
    append(name, move, done=False)
    return next(entry.counts for entry in _sync(name).entries if entry.move.id == move.id)


def _open(state: RegistryState) -> list[Entry]:
    return [entry for entry in state.entries if entry.counts and not entry.done]


def _due(state: RegistryState, actual: dict[str, str]) -> dict[str, str | None]:
    """Where the open moves send their aliases, but those that somebody has moved since: these stay, and the caller
    writes it down.

    Args:
        actual: the aliases as they are.
    """
    due: dict[str, str | None] = {}
    for alias in (PREVIOUS, CHALLENGER, CHAMPION):  # the champion last: `previous` is never missing beside a new one
        moves = [entry for entry in _open(state) if alias in entry.move.sets]
        wanted = state.aliases.get(alias)
        if moves and actual.get(alias) in {wanted, *(entry.before[alias] for entry in moves)}:
            due[alias] = wanted
    return due


def _sync(name: str) -> RegistryState:
    state = read(name)
    if _open(state):
        _finish(MlflowClient(), state)
        state = read(name)
    actual = aliases_of(name)
    moved = {alias: actual.get(alias) for alias in _ALIASES if actual.get(alias) != state.aliases.get(alias)}
    if not moved:
        return state
    reason = "not by this project"
    if (version := moved.get(CHAMPION)) is not None:
        verdict, _ = state.verdict(version) or ("none", "")
        reason += f"; the gate's verdict on this champion: {verdict}"
    move = Move(kind="by hand", at=datetime.now(UTC), by="unknown", reason=reason, expects={}, sets=moved)
    append(name, move, done=True)  # there is nothing to carry out
    return read(name)


def _finish(client: MlflowClient, state: RegistryState) -> None:
    actual = aliases_of(state.name)
    existing = {str(version.version) for version in versions_of(state.name)}
    for alias, wanted in _due(state, actual).items():
        if wanted is None:
            client.delete_registered_model_alias(state.name, alias)
        elif actual.get(alias) != wanted and wanted in existing:  # its version may have been deleted since the crash
            client.set_registered_model_alias(state.name, alias, wanted)
    for entry in _open(state):
        version = entry.move.subject
        if version in existing and entry.move.tags:
            set_verdict(get(state.name, str(version)), entry.move.tags)
        client.set_model_version_tag(log_name(state.name), str(entry.number), DONE, "yes")
