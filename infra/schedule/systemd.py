"""The schedule as a timer of the user's systemd. What systemd refuses is a ScheduleError with its words."""

from __future__ import annotations

import shutil
from pathlib import Path

from croniter import croniter

from infra.schedule.command import call, name_of, words
from infra.schedule.job import Job
from model.errors import ScheduleError
from model.files import write_whole
from steps.paths import REPOSITORY

_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
_TIMER = """\
[Unit]
Description={what}

[Timer]
{times}
Persistent=true

[Install]
WantedBy=timers.target
"""
_SERVICE = """\
[Unit]
Description={what}

[Service]
Type=oneshot
ExecStart={command}
"""


def is_reachable() -> bool:
    return shutil.which("systemctl") is not None and call("systemctl", "--user", "show-environment").code == 0


def is_installed(home_dir: Path) -> bool:
    return _unit(home_dir, "timer").exists()


def install(job: Job, home_dir: Path) -> None:
    """Start the timer, or give the one that runs its new times."""
    for kind, text in units(job, home_dir).items():
        write_whole(_unit(home_dir, kind), text)
    timer = f"{name_of(home_dir)}.timer"
    _systemctl("daemon-reload")
    _systemctl("enable", timer)
    _systemctl("restart", timer)  # `enable --now` leaves a timer that runs with its old times


def remove(home_dir: Path) -> bool:
    """False where there was none."""
    found = [unit for kind in ("timer", "service") if (unit := _unit(home_dir, kind)).exists()]
    if not found:
        return False
    if not is_reachable():
        raise ScheduleError(
            f"the timer {_unit(home_dir, 'timer')} is installed, but `systemctl --user` cannot be reached from here: "
            "run this command in a login session of its user"
        )
    _systemctl("disable", "--now", f"{name_of(home_dir)}.timer")
    for unit in found:
        unit.unlink()
    _systemctl("daemon-reload")
    return True


def units(job: Job, home_dir: Path) -> dict[str, str]:
    """The content of the timer and the service, by kind."""
    # `env` takes the path of the command as a word like any other: systemd expands no `$` in the first one
    env, *rest = words(home_dir)
    command = " ".join([env, *(f'"{_escape(word)}"' for word in rest)])
    what = f"AgentPS: zenml pipeline run {job.pipeline}, in {str(REPOSITORY).replace('%', '%%')}"
    times = "\n".join(f"OnCalendar={value}" for value in on_calendar(job.cron))
    return {"timer": _TIMER.format(what=what, times=times), "service": _SERVICE.format(what=what, command=command)}


def on_calendar(cron: str) -> list[str]:
    """The values of systemd's `OnCalendar=` that together are the times of a checked cron expression.

    Where day and weekday are both given, cron runs when either fits, systemd when both do: two values then. As in cron,
    a field that begins with `*` (`*/2`) counts as not given.
    """
    fields = croniter.expand(cron)[0]
    minute, hour, day, month, _ = (",".join(map(str, field)) for field in fields)
    days = "" if fields[4] == ["*"] else ",".join(_WEEKDAYS[number] for number in sorted(fields[4])) + " "
    time = f"{hour}:{minute}:00"
    _, _, day_field, _, weekday_field = cron.split()
    if "*" not in (day_field[0], weekday_field[0]) and days:
        return [f"*-{month}-{day} {time}", f"{days}*-{month}-* {time}"]
    return [f"{days}*-{month}-{day} {time}"]


def _unit(home_dir: Path, kind: str) -> Path:
    return Path.home() / ".config" / "systemd" / "user" / f"{name_of(home_dir)}.{kind}"


def _escape(word: str) -> str:
    for special, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(special, escaped)
    return word


def _systemctl(*arguments: str) -> None:
    code, _, error = call("systemctl", "--user", *arguments)
    if code != 0:
        raise ScheduleError(f"systemctl --user {' '.join(arguments)}: {error}")
