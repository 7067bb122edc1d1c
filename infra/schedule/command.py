"""What a scheduler starts, and under which name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from infra.local_stack import home_suffix
from steps.notify import one_line


def program(name: str) -> str:
    """The path of a command of the environment that runs this: `agentps`, `zenml`, `python`."""
    return str(Path(sys.executable).with_name(name))


def words(home_dir: Path) -> list[str]:
    """What a scheduler of the machine starts."""
    return ["/usr/bin/env", f"AGENTPS_HOME={home_dir}", program("agentps"), "run-scheduled"]


def name_of(home_dir: Path) -> str:
    """The schedule's name, whatever scheduler has it: `agentps-1a2b3c`."""
    return f"agentps-{home_suffix(home_dir)}"


class Answer(NamedTuple):
    code: int
    said: str
    #: In one line.
    error: str


def call(*command: str, text: str = "") -> Answer:
    """Ask the machine's scheduler: in English, because some messages are read; bytes that are no text are kept."""
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(command, input=os.fsencode(text), capture_output=True, env=environment, check=False)
    return Answer(done.returncode, os.fsdecode(done.stdout), one_line(os.fsdecode(done.stderr)))
