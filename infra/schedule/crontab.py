"""The schedule as lines of the user's crontab, between two markers. All other lines stay as they are, byte for byte.

What cron refuses, and damaged markers, are a ScheduleError. No library does it: python-crontab 3.4 writes the lines of
others anew, too (`0 0 * * 7` becomes `@weekly`, `MAILTO = "me"` is lost, a line that it cannot read is switched off).
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from infra.schedule.command import call, name_of, words
from infra.schedule.job import Job
from model.errors import ScheduleError

#: What systemd does by itself (`Persistent=`) a look each hour does for cron, which forgets what it missed. It also
#: sees what an `@reboot` line would not: a machine that slept.
_HOURLY = "37 * * * *"


def is_reachable() -> bool:
    return shutil.which("crontab") is not None


def is_installed(home_dir: Path) -> bool:
    return is_reachable() and _split(home_dir)[1]


def install(job: Job, home_dir: Path) -> None:
    """Put the lines in place of those between the markers."""
    if not is_reachable():
        raise ScheduleError(
            "neither `systemctl --user` nor `crontab` can be used on this machine: install cron, or log in to a "
            "session that systemd manages"
        )
    others, _ = _split(home_dir)
    if others and not others.endswith("\n"):
        others += "\n"
    begin, end = _markers(home_dir)
    _write(others + begin + "".join(f"{line}\n" for line in lines(job, home_dir)) + end)


def remove(home_dir: Path) -> bool:
    """False where there was nothing to remove."""
    if not is_installed(home_dir):
        return False
    _write(_split(home_dir)[0])
    return True


def lines(job: Job, home_dir: Path) -> list[str]:
    """The schedule's own time, and the hourly look for a missed one. Cron reads an unescaped `%` as a line's end."""
    command = shlex.join(words(home_dir)).replace("%", "\\%")
    # cron mails what a command prints: of the hourly look, only what went wrong
    return [f"{job.cron} {command}", f"{_HOURLY} {command} >/dev/null"]


def _markers(home_dir: Path) -> list[str]:
    return [f"# {name_of(home_dir)} {edge} (agentps schedule)\n" for edge in ("begin", "end")]


def _split(home_dir: Path) -> tuple[str, bool]:
    """The table without our lines and their markers, and whether there were any."""
    code, table, error = call("crontab", "-l")
    if code != 0 and "no crontab" not in error:
        raise ScheduleError(f"crontab -l: {error}")
    begin, end = _markers(home_dir)
    block = f"^{re.escape(begin)}.*?^{re.escape(end)}"
    others, found = re.subn(block, "", table, flags=re.MULTILINE | re.DOTALL)
    if found > 1 or not found == table.count(begin) == table.count(end):
        raise ScheduleError(
            f"crontab: the markers `{begin.strip()}` and `{end.strip()}` should stand there once each, in this order: "
            "repair it with `crontab -e`"
        )
    return others, found == 1


def _write(table: str) -> None:
    code, _, error = call("crontab", "-", text=table)
    if code != 0:
        raise ScheduleError(f"crontab refused the schedule: {error}")
