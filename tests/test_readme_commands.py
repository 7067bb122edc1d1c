"""CI runs the README's commands: what is extracted is what a reader would type."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "readme_commands.py"
script: Callable[[str, str], str] = runpy.run_path(str(SCRIPT))["script"]


def bash(markdown: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script(markdown, "README.md")], capture_output=True, text=True, check=False)


def test_blocks_run_in_order_in_one_shell_and_are_announced_with_their_line() -> None:
    result = bash("# Title\n\n```sh\nx='a  b'\n```\ntext\n\n```sh\necho \"<$x>\"  # quoted\n```\n")
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        "=== README.md:4",
        "x='a  b'",
        "=== README.md:9",
        'echo "<$x>"  # quoted',
        "<a  b>",
    ]


def test_other_fences_are_not_run() -> None:
    result = bash("```console\nexit 1\n```\n```sh\ntrue\n```\n```yaml\nexit 1\n```\n```\nexit 1\n```\n")
    assert result.returncode == 0


def test_the_first_failing_command_ends_the_script() -> None:
    result = bash("```sh\nfalse | cat\necho unreached-1\n```\n```sh\necho unreached-2\n```\n")
    assert result.returncode == 1
    assert "unreached-2" not in result.stdout


def test_a_block_inside_a_list_loses_its_indent() -> None:
    result = bash("1. first\n   ```sh\n   cat <<END\n     two\n   END\n   ```\n")
    assert result.stdout.splitlines()[-1] == "  two"


def test_a_text_without_commands_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"README\.md: no block"):
        script("# Title\n", "README.md")
