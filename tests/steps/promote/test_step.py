from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from steps.promote.gate import Decision, Verdict
from steps.promote.step import tell
from steps.register.registry import RegisteredVersion
from steps.settings import NotifySettings


@pytest.mark.parametrize(("verdict", "told"), [("needs a person", True), ("kept", False), ("promoted", False)])
def test_a_person_is_told_of_a_version_that_waits_for_their_word(tmp_path: Path, verdict: Verdict, told: bool) -> None:
    inbox = tmp_path / "inbox"
    code = f"import sys; open({str(inbox)!r}, 'w').write(sys.stdin.read())"
    settings = NotifySettings(webhook=None, command=shlex.join([sys.executable, "-c", code]))
    version = RegisteredVersion.model_construct(name="memes", version="11")
    assert tell(version, Decision(verdict=verdict, reason="it would flag nothing at p80"), settings) == []
    assert inbox.exists() is told
    if told:
        line = inbox.read_text(encoding="utf-8")
        assert line.count("\n") == 1
        assert "memes version 11 needs a person: it would flag nothing at p80. " in line
        assert 'agentps promote 11 --because "…"' in line
