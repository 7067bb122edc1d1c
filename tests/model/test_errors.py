"""What others wrote stands in a message, a log and a terminal as one line that does nothing."""

from __future__ import annotations

import pytest

from model.errors import AgentPSError, ManifestError, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 今天 é 🙂 \\n 'q'", "plain text, 今天 é 🙂 \\n 'q'"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\nroot: all is well\r\n\tb", r"a\nroot: all is well\r\n\tb"),
        ("a\x85b\u2028c\u2029d\x0b\x0c", r"a\x85b\u2028c\u2029d\x0b\x0c"),
        ("\u202egnp.exe\u2066\u200b\ufeff", r"\u202egnp.exe\u2066\u200b\ufeff"),
        ("\ud83d\0\x7f\x9b31m", r"\ud83d\x00\x7f\x9b31m"),
    ],
)
def test_what_does_not_print_is_escaped_and_all_else_stays(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(text).isprintable()


def test_every_message_is_plain_but_keeps_its_own_lines() -> None:
    error = ManifestError("row 1: \x1b[31mred\r\u202e\nAll rejected rows: rejects.csv")
    assert str(error) == f"{error}" == "row 1: \\x1b[31mred\\r\\u202e\nAll rejected rows: rejects.csv"
    assert str(AgentPSError()) == ""
