"""What a scheduler starts, and under which name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from infra.local_stack import home_suffix


def program(name: str) -> str:
    """The path of a command of the environment that runs this: `agentps`, `zenml`, `python`."""
    return str(Path(sys.executable).with_name(name))


def words(home_dir: Path) -> list[str]:
    """What a scheduler of the machine starts."""
    return ["/usr/bin/env", f"AGENTPS_HOME={home_dir}", program("agentps"), "run-scheduled"]


def name_of(home_dir: Path) -> str:
    """The schedule's name, whatever scheduler has it: `agentps-1a2b3c`."""
    return f"agentps-{home_suffix(home_dir)}"


def call(*command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Ask the machine's scheduler; in English, because some of its messages are read."""
    return subprocess.run(
        command,
        input=text,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",  # a user's crontab may hold any bytes
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )
