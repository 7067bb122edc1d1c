"""A pipeline on a schedule, on one machine: a systemd user timer, or lines in the user's crontab.

Both start `agentps run-scheduled`, which decides for itself whether a run is due: a time of the cron expression lies
between what was covered before and now. So a missed run is caught up once, however many times were missed, and it does
not matter how often, or by which of the two, it is started. One schedule a clone; its name ends in digits of the home's
path, so that clones of one user do not replace each other's.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from croniter import croniter
from croniter.croniter import CroniterError
from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.local_stack import home_suffix
from model.errors import ConfigError, ScheduleError
from pipelines.config import load_notify
from steps.notify import one_line, send
from steps.paths import REPOSITORY
from steps.settings import NotifySettings

#: The environment that runs this: `agentps`, `zenml` and `python` are its own.
BIN = Path(sys.executable).parent
#: Logs of so many runs are kept.
KEPT_LOGS = 30
#: Seconds that ZenML may take to tell of a failed run; on a busy machine its import alone takes a minute.
ZENML_PATIENCE = 300
#: Characters of a reason in a notice.
REASON = 500
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
#: What systemd does by itself (`Persistent=`) a look each hour does for cron, which forgets what it missed. It also
#: sees what an `@reboot` line would not: a machine that slept.
_HOURLY = "37 * * * *"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Launch(_Strict):
    """What is run, and who is told of a failure."""

    #: As `zenml pipeline run` takes it.
    pipeline: str
    #: Absolute; None: configs/default.yaml.
    config: str | None
    #: As it was when the schedule was made: for a config that later cannot be read.
    notify: NotifySettings


class Job(Launch):
    """What is run, and when."""

    #: Five fields, read in the machine's local time.
    cron: str


class State(_Strict):
    """What became of the schedule's times so far."""

    #: Every time up to this one has been run, or left to a run that was still going.
    covered: datetime
    #: The log of the run that has begun and not ended; None: none.
    running: str | None = None


class Outcome(NamedTuple):
    """What a start of the schedule came to."""

    #: The pipeline's exit code; 0 where nothing was run.
    code: int
    line: str
    #: Notices that reached nobody, each with its reason.
    undelivered: list[str]


class Files:
    """What a schedule keeps under the home."""

    def __init__(self, home_dir: Path) -> None:
        self.folder = home_dir / "schedule"
        self.job = self.folder / "job.json"
        self.state = self.folder / "state.json"
        self.lock = self.folder / "lock"
        self.logs = self.folder / "logs"
        #: NAME=value lines for the run: cron and systemd hand on none of the variables of a shell.
        self.environment = home_dir / "schedule.env"

    def read_job(self) -> Job | None:
        """None: there is no schedule.

        Raises:
            ScheduleError: the file is not one that `install` wrote.
        """
        try:
            return Job.model_validate_json(self.job.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise ScheduleError(
                f"{self.job}: not a schedule of this version ({error.error_count()} faults): "
                "run `agentps schedule --cron …` again"
            ) from error

    def read_state(self) -> State | None:
        """None: there is none, or none that can be read; the times up to now then count as covered."""
        try:
            return State.model_validate_json(self.state.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, path: Path, value: Job | State) -> None:
        """In one step: a killed process leaves the old content or the new. The job may hold a webhook's secret."""
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(value.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(path)

    def update_state(self, **changes: Any) -> None:
        """Change some fields of the state. One process at a time: what a run and one that finds it say is both kept."""
        with (self.folder / "state.lock").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            state = self.read_state() or State(covered=changes.get("covered", datetime.now(UTC)))
            self.write(self.state, state.model_copy(update=changes))


# --- when ---------------------------------------------------------------------------------------


def check_cron(expression: str) -> str:
    """The expression with single spaces.

    Raises:
        ConfigError: cron would not understand it, or its time never comes.
    """
    fields = expression.split()
    expected = 'five fields were expected, minute hour day month weekday, for example "0 3 * * *" for every day at 3:00'
    # croniter knows more than cron does: seconds, L, #, random times
    if len(fields) != 5 or not all(re.fullmatch(r"[0-9*,/-]+", re.sub(r"[a-z]{3}", "0", f.lower())) for f in fields):
        raise ConfigError(f"cron expression {expression!r}: {expected}")
    try:
        croniter(" ".join(fields), datetime(2026, 1, 1)).get_next(datetime)
    except CroniterError as error:
        raise ConfigError(f"cron expression {expression!r}: {error}: {expected}") from error
    return " ".join(fields)


def on_calendar(cron: str) -> list[str]:
    """The values of systemd's `OnCalendar=` that together are the times of a checked cron expression.

    Where day and weekday are both given, cron runs when either fits, systemd when both do: two values then. As in cron,
    a field that begins with `*` (`*/2`) counts as not given.
    """
    minute, hour, day, month, weekday = croniter.expand(cron)[0]
    _, _, day_field, _, weekday_field = cron.split()
    time = f"{_list(hour)}:{_list(minute)}:00"
    days = "" if weekday == ["*"] else ",".join(_WEEKDAYS[number] for number in sorted(weekday)) + " "
    if "*" not in (day_field[0], weekday_field[0]) and days:
        return [f"*-{_list(month)}-{_list(day)} {time}", f"{days}*-{_list(month)}-* {time}"]
    return [f"{days}*-{_list(month)}-{_list(day)} {time}"]


def _list(values: list[int | str]) -> str:
    return ",".join(str(value) for value in values)


def last_due(cron: str, now: datetime) -> datetime:
    """The latest time of the expression at or before `now`; both with a zone, the answer in the machine's.

    A time that the clock shows twice in autumn is its first showing; one that spring leaves out is as long before.
    """
    local = now.astimezone().replace(tzinfo=None)
    next_minute = local.replace(second=0, microsecond=0) + timedelta(minutes=1)
    found: datetime = croniter(cron, next_minute, implement_cron_bug=True).get_prev(datetime)
    # one that would come out later than `now` would be run now and once more then
    return min(found.replace(fold=fold).astimezone() for fold in (0, 1))


def next_due(cron: str, now: datetime) -> datetime:
    """The first time of the expression after `now`, in the machine's zone."""
    local = now.astimezone().replace(tzinfo=None)
    found: datetime = croniter(cron, local, implement_cron_bug=True).get_next(datetime)
    return found.astimezone()


# --- the machine's scheduler --------------------------------------------------------------------


def name_of(home_dir: Path) -> str:
    """The schedule's name in systemd and in the crontab: `agentps-1a2b3c`."""
    return f"agentps-{home_suffix(home_dir)}"


def install(job: Job, home_dir: Path, now: datetime) -> str:
    """Put the job in place of what this clone had scheduled before.

    Returns:
        Where it stands now: `systemd timer NAME` or `crontab, NAME`.

    Raises:
        ScheduleError: the machine has neither scheduler, or refuses.
    """
    files, name = Files(home_dir), name_of(home_dir)
    if _systemd_is_reachable():
        _write_units(name, job, home_dir)
        if shutil.which("crontab"):
            _edit_crontab(name, [])
        where = f"systemd timer {name}"
    else:
        _remove_units(name)
        _edit_crontab(name, crontab_lines(job, home_dir))
        where = f"crontab, {name}"
    files.folder.mkdir(parents=True, exist_ok=True)
    files.write(files.job, job)
    files.update_state(covered=now)
    return where


def remove(home_dir: Path) -> bool:
    """Take the schedule away; logs stay, and a run that is going goes on. False where there was none.

    Raises:
        ScheduleError: the machine's scheduler refuses.
    """
    files, name = Files(home_dir), name_of(home_dir)
    found = _remove_units(name)
    if shutil.which("crontab"):
        found = _edit_crontab(name, []) or found
    found = files.job.exists() or found
    files.job.unlink(missing_ok=True)
    files.state.unlink(missing_ok=True)
    return found


def installed_in(home_dir: Path) -> str | None:
    """Where the schedule stands; None: nowhere, whatever the home says."""
    name = name_of(home_dir)
    if _unit(name, "timer").exists():
        return f"systemd timer {name}"
    if shutil.which("crontab") and _split(_read_crontab(), name)[1]:
        return f"crontab, {name}"
    return None


def _systemd_is_reachable() -> bool:
    if shutil.which("systemctl") is None:
        return False
    return _call("systemctl", "--user", "show-environment").returncode == 0


def _unit(name: str, kind: str) -> Path:
    return Path.home() / ".config" / "systemd" / "user" / f"{name}.{kind}"


def units(name: str, job: Job, home_dir: Path) -> dict[str, str]:
    """The content of the timer and the service, by kind."""
    # `env` takes the path of the command as a word like any other: systemd expands no `$` in the first one
    words = ["/usr/bin/env", *(f'"{_escape(word)}"' for word in _command(home_dir))]
    what = f"Description=AgentPS: zenml pipeline run {job.pipeline}, in {str(REPOSITORY).replace('%', '%%')}"
    service = ["[Unit]", what, "", "[Service]", "Type=oneshot", f"ExecStart={' '.join(words)}"]
    times = [f"OnCalendar={value}" for value in on_calendar(job.cron)]
    timer = ["[Unit]", what, "", "[Timer]", *times, "Persistent=true", "", "[Install]", "WantedBy=timers.target"]
    return {"service": "\n".join(service) + "\n", "timer": "\n".join(timer) + "\n"}


def _escape(word: str) -> str:
    for special, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(special, escaped)
    return word


def _command(home_dir: Path) -> list[str]:
    return [f"AGENTPS_HOME={home_dir}", str(BIN / "agentps"), "run-scheduled"]


def _write_units(name: str, job: Job, home_dir: Path) -> None:
    for kind, text in units(name, job, home_dir).items():
        _unit(name, kind).parent.mkdir(parents=True, exist_ok=True)
        _unit(name, kind).write_text(text, encoding="utf-8")
    _systemctl("daemon-reload")
    _systemctl("enable", f"{name}.timer")
    _systemctl("restart", f"{name}.timer")  # `enable --now` leaves a timer that runs with its old times


def _remove_units(name: str) -> bool:
    found = [kind for kind in ("timer", "service") if _unit(name, kind).exists()]
    if not found:
        return False
    if not _systemd_is_reachable():
        raise ScheduleError(
            f"the timer {_unit(name, 'timer')} is installed, but `systemctl --user` cannot be reached from here: "
            "run this command in a login session of its user"
        )
    _systemctl("disable", "--now", f"{name}.timer")
    for kind in found:
        _unit(name, kind).unlink()
    _systemctl("daemon-reload")
    return True


def _systemctl(*arguments: str) -> None:
    done = _call("systemctl", "--user", *arguments)
    if done.returncode != 0:
        raise ScheduleError(f"systemctl --user {' '.join(arguments)}: {one_line(done.stderr)}")


def crontab_lines(job: Job, home_dir: Path) -> list[str]:
    """The schedule's own time, and the hourly look for a missed one. Cron reads an unescaped `%` as a line's end."""
    command = " ".join(["/usr/bin/env", *(shlex.quote(word) for word in _command(home_dir))]).replace("%", "\\%")
    # cron mails what a command prints: of the hourly look, only what went wrong
    return [f"{job.cron} {command}", f"{_HOURLY} {command} >/dev/null"]


def _edit_crontab(name: str, lines: list[str]) -> bool:
    """Put `lines` in place of those between the markers of `name`; True where there were some."""
    if shutil.which("crontab") is None:
        raise ScheduleError(
            "neither `systemctl --user` nor `crontab` can be used on this machine: install cron, or log in to a "
            "session that systemd manages"
        )
    others, found = _split(_read_crontab(), name)
    block = [_marker(name, "begin"), *lines, _marker(name, "end")] if lines else []
    if not found and not block:
        return False
    text = "".join(f"{line}\n" for line in [*others, *block])
    done = _call("crontab", "-", text=text)
    if done.returncode != 0:
        raise ScheduleError(f"crontab refused the schedule: {one_line(done.stderr)}")
    return bool(found)


def _marker(name: str, edge: str) -> str:
    return f"# {name} {edge} (agentps schedule)"


def _read_crontab() -> list[str]:
    done = _call("crontab", "-l")
    if done.returncode == 0:
        return done.stdout.splitlines()
    if "no crontab" in done.stderr:
        return []
    raise ScheduleError(f"crontab -l: {one_line(done.stderr)}")


def _split(lines: list[str], name: str) -> tuple[list[str], list[str]]:
    """The lines of others, and ours with their markers."""
    edges = [number for number, line in enumerate(lines) if line in (_marker(name, "begin"), _marker(name, "end"))]
    if not edges:
        return lines, []
    if [lines[number] for number in edges] != [_marker(name, "begin"), _marker(name, "end")]:
        raise ScheduleError(
            f"crontab: the markers `{_marker(name, 'begin')}` and `{_marker(name, 'end')}` should stand there once "
            "each, in this order: repair it with `crontab -e`"
        )
    first, last = edges
    return lines[:first] + lines[last + 1 :], lines[first : last + 1]


def _call(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C"}  # the messages are read
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environment)


# --- the run ------------------------------------------------------------------------------------


def run_due(home_dir: Path, now: datetime) -> Outcome:
    """Run the job where one of its times has come and is not covered, and no other run of it is going.

    The lock is also held by what a killed process left running. A time that comes while a run is going is left out.

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
    files = Files(home_dir)
    files.folder.mkdir(parents=True, exist_ok=True)
    return _run_alone(launch, files, now)


def _run_alone(job: Launch, files: Files, now: datetime) -> Outcome:
    with files.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            files.update_state(covered=now)
            return Outcome(0, f"{job.pipeline}: the run before is still going: nothing was started", [])
        state = files.read_state() or State(covered=now)
        undelivered = []
        if state.running is not None:
            undelivered = _tell_of_cut_off(job, state.running)
            files.update_state(running=None)
        if isinstance(job, Job) and last_due(job.cron, now) <= state.covered:
            line = f"{job.pipeline}: nothing is due: the next time is {next_due(job.cron, now):%Y-%m-%d %H:%M}"
            return Outcome(0, line, undelivered)
        outcome = _run(job, files, lock.fileno(), now)
        return outcome._replace(undelivered=undelivered + outcome.undelivered)


def _run(job: Launch, files: Files, lock: int, now: datetime) -> Outcome:
    log = files.logs / f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}.log"
    environment = _environment(files)
    command = ["zenml", "pipeline", "run", job.pipeline, *(["-c", job.config] if job.config else [])]
    failure: str | None = None
    try:
        files.update_state(covered=now, running=str(log))
        files.logs.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            done = subprocess.run(
                [str(BIN / "zenml"), *command[1:]],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
                check=False,
            )
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        if done.returncode < 0:
            failure = f"ended by {signal.Signals(-done.returncode).name}"
        _prune(files.logs)
    except OSError as error:  # no zenml, no room for a log: a failed run like any other
        code, failure = 127, str(error)
    try:
        files.update_state(running=None)
    except OSError as error:
        failure = failure or str(error)
    if code == 0:
        return Outcome(0, f"{job.pipeline}: succeeded; log {log}", [])
    line = notice(job, log, now, code, failure, environment)
    undelivered = send(line, _notify(job))
    _append(log, [f"agentps: {line}", *(f"agentps: {text}" for text in undelivered)])
    return Outcome(code, line, undelivered)


def _environment(files: Files) -> dict[str, str]:
    # zenml and what it starts (torchrun, git) are found where a shell with the environment would find them
    given = dotenv_values(files.environment, interpolate=False)
    environment = os.environ | {name: value for name, value in given.items() if value is not None}
    environment["PATH"] = os.pathsep.join([str(BIN), environment.get("PATH", os.defpath)])
    environment.setdefault("ZENML_LOGGING_COLORS_DISABLED", "true")  # the log is a file
    environment["AGENTPS_HOME"] = str(files.folder.parent)
    return environment


def _prune(logs: Path) -> None:
    for old in sorted(logs.glob("*.log"))[:-KEPT_LOGS]:
        old.unlink()


def _append(log: Path, lines: list[str]) -> None:
    try:
        with log.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError:
        return  # the same lines are in the outcome, which cron mails and systemd keeps


# --- the notice ---------------------------------------------------------------------------------


def notice(job: Launch, log: Path, now: datetime, code: int, failure: str | None, environment: dict[str, str]) -> str:
    """One line: the machine, the pipeline, the run, the step and the reason, as far as each is known.

    `failure` is what is known without the run's own words.
    """
    found = _ask_zenml(job.pipeline, now, environment)
    run = f"run {found['run']}" if found.get("run") else "no run was made"
    step = f", step {found['step']}" if found.get("step") else ""
    reason = failure or found.get("reason") or _last_words(log)
    return one_line(
        f"AgentPS on {socket.gethostname()}: {job.pipeline} failed: {run}{step}: {_short(reason)} "
        f"(exit code {code}, log {log})"
    )


def _tell_of_cut_off(job: Launch, log: str) -> list[str]:
    """About the run before, which never came to its own end: the power went, somebody killed it."""
    line = one_line(
        f"AgentPS on {socket.gethostname()}: {job.pipeline} failed: the run that began at "
        f"{Path(log).stem} was cut off: {_short(_last_words(Path(log)))} (log {log})"
    )
    undelivered = send(line, _notify(job))
    _append(Path(log), [f"agentps: {line}", *(f"agentps: {text}" for text in undelivered)])
    return undelivered


def _notify(job: Launch) -> NotifySettings:
    try:
        return load_notify(Path(job.config) if job.config else None)
    except ConfigError:
        return job.notify  # a broken config is one of the things to tell of


def _ask_zenml(pipeline: str, since: datetime, environment: dict[str, str]) -> dict[str, str]:
    """`run`, `step`, `reason` as far as ZenML knows them. In a process of its own: ZenML may be what is broken."""
    command = [str(BIN / "python"), "-m", "infra.failed_run", pipeline.rpartition(".")[2], since.isoformat()]
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=ZENML_PATIENCE, check=True
        )
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}  # the log's last words say it then
    return found


def _last_words(log: Path) -> str:
    """What the command said last: from its last `Error:` on, else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            text = file.read().decode("utf-8", errors="replace").strip()
    except OSError as error:
        return str(error)
    at = text.rfind("\nError: ")
    return text[at + 1 :].removeprefix("Error: ") if at >= 0 else text.rpartition("\n")[2]


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= REASON else text[: REASON - 1] + "…"
