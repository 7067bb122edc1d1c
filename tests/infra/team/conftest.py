"""A whole team's stack for the tests marked `team`, and accounts on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.team.__main__ import missing
from infra.team.servers import clean
from infra.team.state import State, load
from steps.paths import REPOSITORY

PATIENCE = 1800.0


@dataclass(frozen=True)
class Team:
    folder: Path

    @property
    def state(self) -> State:
        return load(self.folder)

    def command(self, *words: str) -> str:
        """What `python -m infra.team` says; it must end well."""
        done = self.call(*words)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = clean({"AGENTPS_TEAM": str(self.folder)})
        return run([sys.executable, "-m", "infra.team", *words], environment)

    def variables(self, name: str) -> dict[str, str]:
        lines = (self.folder / "users" / f"{name}.env").read_text().splitlines()
        pairs = (line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
        return {variable: value.strip("'") for variable, value in pairs}


def run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def team() -> Iterator[Team]:
    """A stack that was made from nothing, with `alice` who trains and `bob` who reads."""
    if lines := missing():
        pytest.skip("; ".join(lines))
    # Debian's users of the databases must be able to enter it: pytest's own folders are closed to them
    folder = Path(tempfile.mkdtemp(prefix="agentps-team-", dir="/var/tmp"))
    made = Team(folder / "team")
    folder.chmod(0o711)
    made.folder.mkdir(mode=0o711)
    (made.folder / "team.yaml").write_text("models: [agentps-ucc, agentps-stored]\n")
    try:
        made.command("start")
        made.command("user", "alice", "--train")
        made.command("user", "bob")
        yield made
    finally:
        made.command("stop")
        shutil.rmtree(folder)
