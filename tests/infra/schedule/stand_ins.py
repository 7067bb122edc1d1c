"""A machine for the tests of the schedule: real files, locks and processes, and stand-ins for its programs.

All stand-ins are executables in a folder of the test: `crontab` (keeps one file: the user's own is never touched, also
where there is one), `systemctl` (writes down its arguments), and `zenml`, since what a run does is not the schedule's
concern.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from infra.schedule.command import name_of
from infra.schedule.job import Files, Job
from steps.settings import NotifySettings

#: The test's own Python; `sys.executable` is the machine's while the fixture `machine` is used.
PYTHON = sys.executable
NOBODY = NotifySettings(webhook=None, command=None)


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 11, day, hour, minute).astimezone()


def job(cron: str = "0 3 * * *", config: Path | None = None, notify: NotifySettings = NOBODY) -> Job:
    return Job(cron=cron, pipeline="agentps_training", config=str(config) if config else None, notify=notify)


class Machine:
    """The executables that the schedule finds, the user's folder and the clone's home."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.user, self.home = folder / "bin", folder / "user", folder / "100% my $home" / ".agentps"
        for path in (self.bin, self.user, self.home):
            path.mkdir(parents=True)
        self.crontab, self.calls, self.ran = folder / "crontab", folder / "systemctl.calls", folder / "ran"

    def script(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n")
        path.chmod(0o755)

    def with_cron(self) -> None:
        self.script(
            "crontab",
            f'file="{self.crontab}"\n'
            '[ "$1" = -l ] && { [ -e "$file" ] || { echo "no crontab for me" >&2; exit 1; }; cat "$file"; exit; }\n'
            '[ "$1" = - ] && exec cat > "$file"\n'
            "exit 2",
        )

    def with_systemd(self, reachable: bool = True) -> None:
        self.script("systemctl", f'echo "$*" >> "{self.calls}"\nexit {0 if reachable else 1}')

    def zenml(self, body: str) -> None:
        self.script("zenml", f'echo "$PWD: $*" >> "{self.ran}"\n{body}')

    @property
    def runs(self) -> int:
        return len(self.ran.read_text().splitlines()) if self.ran.exists() else 0

    @property
    def logs(self) -> list[str]:
        return [path.read_text() for path in sorted(Files(self.home).logs.glob("*.log"))]

    def unit(self, kind: str) -> Path:
        return self.user / ".config" / "systemd" / "user" / f"{name_of(self.home)}.{kind}"
