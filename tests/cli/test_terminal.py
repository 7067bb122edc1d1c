"""What others wrote begins no line of the terminal."""

from __future__ import annotations

from datetime import UTC, datetime

import click
from click.testing import CliRunner

from cli.main import LazyGroup
from cli.registry import _line
from model.errors import ManifestError
from steps.register.moves import Entry, Move


def test_a_reason_begins_no_line_of_the_history() -> None:
    forged = "fine\n   9  2026-01-01 00:00:00Z  promoted (gate): champion 1 > 2\x1b[1A\x1b[2K\u202e"
    move = Move(
        kind="by a person",
        at=datetime(2026, 1, 2, tzinfo=UTC),
        by="me\r\x1b[31m",
        reason=forged,
        expects={},
        sets={"champion": "2"},
    )
    lines = _line(
        "m", Entry(number=1, move=move, done=True, counts=True, before={"champion": "1"}, at=move.at)
    ).splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert r"fine\n   9  2026-01-01" in lines[1]


def test_an_error_s_message_does_nothing_to_the_terminal() -> None:
    @click.group(cls=LazyGroup)
    def group() -> None: ...

    def fail() -> None:
        raise ManifestError("row 1: \x1b[2Jall is well\r\x07")

    group.get_command = lambda ctx, name: click.Command(name, callback=fail)  # type: ignore[method-assign]
    said = CliRunner().invoke(group, ["fail"]).output
    assert said == "Error: row 1: \\x1b[2Jall is well\\r\\x07\n"
