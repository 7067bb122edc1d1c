"""The moves of the registry's aliases, and the history of them as MLflow holds it (see `steps.register.history`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from model.errors import RegistryError
from model.strict import Strict
from steps.register.registry import CHAMPION, PREVIOUS, RegisteredVersion, create_model, get

_MOVE, DONE = "agentps.move", "agentps.done"
#: MLflow wants a source of every version, and its server one with a path; a record has no files. Not `models:/…`: that
#: version may be deleted.
_SOURCE = "agentps-history:/record"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class Move(Strict):
    """One record of the history."""

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
class RegistryState:
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
    def _champions(self) -> list[Entry]:
        """The moves of `champion` that count."""
        return [entry for entry in self.entries if entry.counts and CHAMPION in entry.move.sets]

    @property
    def champion_since(self) -> datetime | None:
        """When the champion became it; None where there is none."""
        return self._champions[-1].move.at if CHAMPION in self.aliases else None

    def passed(self, version: str) -> bool:
        """Whether `version` was made champion by the gate or by a person to whom the gate left it."""
        moves = [entry.move for entry in self._champions if entry.move.kind in ("promoted", "by a person")]
        return any(move.sets[CHAMPION] == version for move in moves)

    def rolled_back(self, version: str) -> Move | None:
        """The rollback that took `champion` from `version`, where it was not champion again since."""
        for entry in reversed(self._champions):
            if entry.move.sets[CHAMPION] == version:
                return None
            if entry.move.kind == "rollback" and entry.before[CHAMPION] == version:
                return entry.move
        return None

    def on(self, moment: datetime) -> str | None:
        """The version that was champion at `moment`."""
        moves = [entry.move for entry in self._champions if entry.move.at <= moment]
        return moves[-1].sets[CHAMPION] if moves else None


def log_name(name: str) -> str:
    return f"{name}.history"


def append(name: str, move: Move, *, done: bool) -> int:
    log = log_name(name)
    shown = ", ".join(f"{alias} -> {version or 'none'}" for alias, version in move.sets.items())
    try:
        create_model(log, description=f"Every move of an alias of {name}, one per version.")
        record = MlflowClient().create_model_version(
            log,
            source=_SOURCE,
            tags={_MOVE: move.model_dump_json(), **({DONE: "yes"} if done else {})},
            description=f"{move.kind}: {shown}" + (f" ({move.reason})" if move.reason else ""),
        )
    except MlflowException as error:
        raise RegistryError(f"model {log}: a move could not be written down: {error}") from error
    return int(record.version)


def versions_of(client: MlflowClient, name: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: int(version.version))


def aliases_of(client: MlflowClient, name: str) -> dict[str, str]:
    try:
        found = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code in _MISSING:
            return {}
        raise RegistryError(f"model {name}: {error}") from error
    return {alias: str(version) for alias, version in found.items()}


def read(client: MlflowClient, name: str) -> RegistryState:
    try:
        records = versions_of(client, log_name(name))
    except MlflowException as error:
        raise RegistryError(f"registry {mlflow.get_registry_uri()}: {error}") from error
    aliases: dict[str, str] = {}
    entries: list[Entry] = []
    for record in records:
        move = Move.model_validate_json(record.tags[_MOVE])
        entry = Entry(
            number=int(record.version),
            move=move,
            done=DONE in record.tags,
            counts=all(aliases.get(alias) == version for alias, version in move.expects.items()),
            before={alias: aliases.get(alias) for alias in move.sets},
        )
        entries.append(entry)
        if entry.counts:
            changed = {**aliases, **move.sets}
            aliases = {alias: version for alias, version in changed.items() if version is not None}
    return RegistryState(name=name, aliases=aliases, entries=tuple(entries))
