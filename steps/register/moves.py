"""The moves of the registry's aliases, and the history of them as MLflow holds it (see `steps.register.history`)."""

from __future__ import annotations

import hashlib
import logging
import uuid
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Literal

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient
from pydantic import AfterValidator, AwareDatetime, Field, ValidationError

from model.errors import cut, plain
from model.strict import Strict
from steps.register.names import log_name
from steps.register.reach import answered
from steps.register.registry import CHAMPION, PREVIOUS, RegisteredVersion, create_model, get, versions_of

logger = logging.getLogger(__name__)

_MOVE, DONE = "agentps.move", "agentps.done"
#: MLflow wants a source of every version, and its server one with a path; a record has no files. Not `models:/…`: that
#: version may be deleted. The sha256 of the move follows: tags can be changed, a source cannot.
_SOURCE = "agentps-history:/record"
#: No record is older: a machine that says so has lost its clock.
_FIRST = datetime(2025, 1, 1, tzinfo=UTC)
#: Of a text in a record; MLflow's databases take 5,000 characters for the sentence that is made of it.
_LONGEST = 2000
#: Of the records that are left out, in the warning.
_NAMED = 5


def worded(text: str) -> str:
    """Words of others, which may come from a post, as every database takes them and a terminal can show them."""
    return cut(plain(text), _LONGEST)


_Words = Annotated[str, AfterValidator(worded)]
_Alias = Annotated[str, Field(pattern="^(champion|previous|challenger)$")]
_Version = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
_Tag = Annotated[str, Field(pattern=r"^agentps\.[a-z_]+$")]


class Move(Strict):
    """One record of the history."""

    kind: Literal["registered", "promoted", "by a person", "rollback", "by hand", "kept", "needs a person"]
    #: By the clock of the machine that wrote it; UTC, ISO 8601.
    at: AwareDatetime
    #: The gate, or the person's user name.
    by: _Words
    reason: _Words
    #: What these aliases must hold for the move to count; None: the alias is not there.
    expects: dict[_Alias, _Version | None]
    #: Alias -> version; None removes it.
    sets: dict[_Alias, _Version | None]
    #: Tags for the version that `sets` makes champion, or that was judged.
    tags: dict[_Tag, _Words] = {}
    #: The version that the gate did not promote: `kind` is its verdict, and no alias moves.
    judged: _Version | None = None
    #: Two records of one id are one move: the reply to the first was lost, and MLflow's client asked again.
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def subject(self) -> str | None:
        """The version that it makes champion or judges."""
        return self.judged if self.judged is not None else self.sets.get(CHAMPION)


@dataclass(frozen=True)
class Entry:
    """A move at its place in the history."""

    number: int
    move: Move
    #: When it was written, as far as its neighbours bear out what `move.at` says (see `_times`).
    at: datetime
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
        return self._champions[-1].at if CHAMPION in self.aliases else None

    def verdict(self, version: str) -> tuple[str, str] | None:
        """The last word on `version`, of the gate or of the person to whom it left that, and the reason; None: none."""
        for entry in reversed(self.entries):
            kind = entry.move.kind
            if entry.counts and entry.move.subject == version and kind not in ("by hand", "rollback"):
                return "promoted" if kind == "by a person" else kind, entry.move.reason
        return None

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
        moves = [entry.move for entry in self._champions if entry.at <= moment]
        return moves[-1].sets[CHAMPION] if moves else None


@answered()
def append(name: str, move: Move, *, done: bool) -> None:
    log, content = log_name(name), move.model_dump_json()
    shown = ", ".join(f"{alias} -> {version or 'none'}" for alias, version in move.sets.items())
    sentence = f"{move.kind}: {shown or f'version {move.judged}'}" + (f" ({move.reason})" if move.reason else "")
    create_model(log, description=f"Every move of an alias of {name}, and every verdict of the gate, one per version.")
    MlflowClient().create_model_version(
        log,
        source=f"{_SOURCE}/{_sha256(content)}",
        tags={_MOVE: content, **({DONE: "yes"} if done else {})},
        description=sentence,
        await_creation_for=0,  # it has no files, and is ready at once
    )


def _sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@answered()
def read(name: str) -> RegistryState:
    """What no move of this project is, or was changed after it was written, is left out, with a warning."""
    records = _records(name)
    # MLflow's own time, where that is earlier: a record is not younger than its entry in the database
    said = [min(move.at, datetime.fromtimestamp(record.creation_timestamp / 1000, UTC)) for record, move in records]
    times = _times(said, datetime.now(UTC))
    aliases: dict[str, str] = {}
    entries: list[Entry] = []
    for (record, move), at in zip(records, times, strict=True):
        entry = Entry(
            number=int(record.version),
            move=move,
            at=at,
            done=DONE in record.tags,
            counts=all(aliases.get(alias) == version for alias, version in move.expects.items()),
            before={alias: aliases.get(alias) for alias in move.sets},
        )
        entries.append(entry)
        if entry.counts:
            changed = {**aliases, **move.sets}
            aliases = {alias: version for alias, version in changed.items() if version is not None}
    return RegistryState(name=name, aliases=aliases, entries=tuple(entries))


def _records(name: str) -> list[tuple[ModelVersion, Move]]:
    found: dict[str, tuple[ModelVersion, Move]] = {}
    left_out: list[str] = []
    for record in versions_of(log_name(name)):
        move = _move_of(record)
        if isinstance(move, Move):
            # a record without an id, from before they had one, gets a new one each time that it is read
            found.setdefault(move.id, (record, move))
        else:
            left_out.append(f"version {record.version}, {move}")
    if left_out:
        more = f"; and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        _tell_once(
            f"the history {log_name(name)}: left out: {'; '.join(left_out[:_NAMED])}{more}: find out who may write "
            "there, and delete these versions in MLflow"
        )
    return list(found.values())


def _move_of(record: ModelVersion) -> Move | str:
    """The move, or why the record holds none."""
    content = record.tags.get(_MOVE)
    if content is None:
        return f"which this project did not write (no tag {_MOVE})"
    if record.source not in (_SOURCE, f"{_SOURCE}/{_sha256(content)}"):  # the first: before records had a hash
        return f"whose tag {_MOVE} was changed after it was written"
    try:
        return Move.model_validate_json(content)
    except ValidationError as error:
        return f"whose tag {_MOVE} is no move ({error.errors()[0]['msg']})"


@cache
def _tell_once(line: str) -> None:
    logger.warning(line)


def _times(said: Sequence[datetime], now: datetime) -> list[datetime]:
    """When each record was written, in the order of their numbers, where some clocks were wrong.

    The most that can be right together are believed: none of them in the future, none before one with a lower number.
    Another has the time of the next that is believed, or `now`.
    """
    lasts: list[tuple[datetime, int]] = []  # the earliest last time of a believed sequence of each length
    before: list[int | None] = []
    for index, moment in enumerate(said):
        place = bisect_right(lasts, moment, key=lambda last: last[0])
        before.append(lasts[place - 1][1] if place else None)
        if _FIRST <= moment <= now:
            lasts[place : place + 1] = [(moment, index)]
    believed = set()
    index_ = lasts[-1][1] if lasts else None
    while index_ is not None:
        believed.add(index_)
        index_ = before[index_]
    times: list[datetime] = []
    for index in reversed(range(len(said))):
        now = said[index] if index in believed else now
        times.append(now)
    return times[::-1]
