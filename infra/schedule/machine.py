"""The schedule of a clone on the scheduler of this machine: systemd where it can be reached, else cron.

Where the machine has neither, or the one it has refuses, that is a ScheduleError.
"""

from __future__ import annotations

import shlex
from datetime import datetime
from pathlib import Path

from infra.schedule import crontab, systemd
from infra.schedule.command import name_of
from infra.schedule.job import Files, Job
from infra.schedule.times import next_due


def install(job: Job, home_dir: Path, now: datetime) -> str:
    """Put the job in place of what this clone had scheduled before.

    Returns:
        Where it stands, and when it runs next, in one line.
    """
    files = Files(home_dir)
    with files.writing(files.job, job):  # a full disk, or a scheduler that refuses, leaves the old job
        if systemd.is_reachable():
            systemd.install(job, home_dir)
            crontab.remove(home_dir)
        else:
            systemd.remove(home_dir)
            crontab.install(job, home_dir)
    files.update_progress(covered=now)
    return f"{installed_in(home_dir)}: {job.pipeline}, next at {next_due(job.cron, now):%Y-%m-%d %H:%M}"


def remove(home_dir: Path) -> bool:
    """Take the schedule away; logs stay, and a run that is going goes on. False where there was none."""
    files = Files(home_dir)
    found = [systemd.remove(home_dir), crontab.remove(home_dir), files.job.exists()]
    files.job.unlink(missing_ok=True)
    files.progress.unlink(missing_ok=True)
    return any(found)


def installed_in(home_dir: Path) -> str | None:
    """Where the schedule stands; None: nowhere, whatever the home says."""
    if systemd.is_installed(home_dir):
        return f"systemd timer {name_of(home_dir)}"
    return f"crontab, {name_of(home_dir)}" if crontab.is_installed(home_dir) else None


def show(home_dir: Path, now: datetime) -> str:
    """The schedule, its next time and its last runs, in lines."""
    files, where = Files(home_dir), installed_in(home_dir)
    job, progress = files.read_job(), files.read_progress()
    if job is None:
        return "there is no schedule" if where is None else f"{where}: left over: run `agentps schedule --remove`"
    shown = [
        where or "installed nowhere: run `agentps schedule --cron …` again",
        f"pipeline  {job.pipeline}" + (f" -c {shlex.quote(job.config)}" if job.config else ""),
        f"cron      {job.cron}, next at {next_due(job.cron, now):%Y-%m-%d %H:%M}",
    ]
    if progress is not None and progress.running is not None:
        shown.append(f"running   log {progress.running}")
    shown += [f"log       {log}" for log in sorted(files.logs.glob("*.log"))[-5:]]
    return "\n".join(shown)
