"""One start of the schedule: whether a run is due, and the run with its lock and its log."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from dotenv import dotenv_values

from infra.schedule import notice
from infra.schedule.command import program
from infra.schedule.job import Files, Job, Launch, Progress
from infra.schedule.times import last_due, next_due
from model.errors import DiskError, ScheduleError
from steps.locks import Timeout, locked
from steps.paths import REPOSITORY

#: The logs of the newest runs are kept: this many.
KEPT_LOGS = 30
#: So far a clock may be set back, as NTP does, without a time being run twice.
_SKEW = timedelta(minutes=5)


class Outcome(NamedTuple):
    """What a start of the schedule came to."""

    #: The pipeline's exit code; 0 where nothing was run.
    code: int
    line: str
    #: What was wrong with the state; notices that reached nobody, each with its reason.
    undelivered: list[str]


def run_due(home_dir: Path, now: datetime) -> Outcome:
    """Run the job where one of its times has come and is not covered, and no other run of it is going.

    A time that comes while a run is going is left out.

    Raises:
        ScheduleError: there is no schedule.
    """
    files = Files(home_dir)
    job = files.read_job()
    if job is None:
        raise ScheduleError(f"{files.job}: no schedule: make one with `agentps schedule --cron …`")
    return _run_alone(job, files, now)


def run_now(launch: Launch, home_dir: Path, now: datetime) -> Outcome:
    """Run it at once, unless a run of this home is going: what a stack's own scheduler starts."""
    return _run_alone(launch, Files(home_dir), now)


def _run_alone(launch: Launch, files: Files, now: datetime) -> Outcome:
    try:
        with locked(files.lock, wait=False) as lock:
            progress, undelivered = _progress(launch, files, now)
            if progress.running is not None:
                undelivered += notice.tell_of_cut_off(launch, Path(progress.running))
                with suppress(DiskError):  # then the next start tells of it once more
                    files.update_progress(running=None)
            if isinstance(launch, Job) and last_due(launch.cron, now) <= progress.covered:
                next_time = f"{next_due(launch.cron, now):%Y-%m-%d %H:%M}"
                return Outcome(0, f"{launch.pipeline}: nothing is due: the next time is {next_time}", undelivered)
            outcome = _run(launch, files, lock, now)
            return outcome._replace(undelivered=undelivered + outcome.undelivered)
    except Timeout:
        files.update_progress(covered=now)
        return Outcome(0, f"{launch.pipeline}: the run before is still going: nothing was started", [])


def _progress(launch: Launch, files: Files, now: datetime) -> tuple[Progress, list[str]]:
    """How far the schedule has come, and what is wrong with what the home says of it.

    A time that is still to come, from a clock that was wrong, would end the schedule until then, and so would a state
    that cannot be read: times count from now on instead.
    """
    found = files.read_progress()
    if found is not None and found.covered <= now + _SKEW:
        return found, []
    if found is None and not isinstance(launch, Job):  # a stack's own scheduler says when
        return Progress(covered=now), []
    covered = now
    try:
        files.update_progress(covered=now)
    except DiskError:  # every start would count from itself, and none would run: the run that is tried now tells of it
        covered = datetime.min.replace(tzinfo=UTC)
    wrong = f"{found.covered.isoformat()} is still to come" if found else "it cannot be read"
    said = f"{files.progress}, how far the schedule has come: {wrong}: its times count from now on"
    return Progress(covered=covered, running=found.running if found else None), [said]


def _run(launch: Launch, files: Files, lock: int, now: datetime) -> Outcome:
    log = files.logs / f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}.log"
    environment: dict[str, str] = dict(os.environ)
    failure = None
    try:
        environment = _environment(files)
        files.update_progress(covered=now, running=str(log))
        code = _execute(launch, log, environment, lock)
        if code < 0:
            code, failure = 128 - code, f"ended by {signal.Signals(-code).name}"
        files.update_progress(running=None)
    except (OSError, ValueError, DiskError) as error:  # no zenml, no room for a log, variables that are no text
        code, failure = 127, str(error)
        with suppress(OSError, DiskError):  # where this fails too, the next start tells of the run once more
            files.update_progress(running=None)
    if code == 0:
        return Outcome(0, f"{launch.pipeline}: succeeded; log {log}", [])
    return Outcome(code, *notice.tell_of_failure(launch, log, now, code, failure, environment))


def _execute(launch: Launch, log: Path, environment: dict[str, str], lock: int) -> int:
    """Run the literal command in the repository. It holds the lock too: also where this process is killed."""
    arguments = ["pipeline", "run", launch.pipeline, *(["-c", launch.config] if launch.config else [])]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        output.write(f"$ {shlex.join(['zenml', *arguments])}\n".encode())
        if warning := Files(Path(environment["AGENTPS_HOME"])).warning():
            output.write(f"{warning}\n".encode())
        output.flush()
        with subprocess.Popen(
            [program("zenml"), *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
        ) as process:
            try:
                code = process.wait()
            except BaseException:
                process.terminate()  # it closes its run, and is waited for
                raise
    with suppress(OSError):  # a log that cannot be removed is no failed run
        for old in sorted(log.parent.glob("*.log"))[:-KEPT_LOGS]:
            old.unlink()
    return code


def _environment(files: Files) -> dict[str, str]:
    # zenml and what it starts (torchrun, git) are found where a shell with the environment would find them
    try:
        given = dotenv_values(files.environment, interpolate=False)
    except UnicodeDecodeError as error:
        raise ValueError(f"{files.environment}: {error}: lines NAME=value in UTF-8 are expected") from error
    environment = os.environ | {name: value for name, value in given.items() if value is not None}
    environment["PATH"] = os.pathsep.join([str(Path(program("zenml")).parent), environment.get("PATH", os.defpath)])
    environment.setdefault("ZENML_LOGGING_COLORS_DISABLED", "true")  # the log is a file
    environment["AGENTPS_HOME"] = str(files.folder.parent)
    return environment
