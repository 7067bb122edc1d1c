"""The line that tells a person of a scheduled run that failed."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from infra.schedule.command import program
from infra.schedule.job import Launch
from model.errors import ConfigError, cut
from pipelines.config import load_notify
from steps.notify import from_here, one_line, send
from steps.paths import REPOSITORY
from steps.secrets import masked

#: Seconds that ZenML may take to tell of a failed run; on a busy machine its import alone takes a minute.
ZENML_PATIENCE = 300
#: Characters of a reason in a notice.
REASON = 500


def tell_of_failure(
    launch: Launch, log: Path, began: datetime, code: int, failure: str | None, environment: dict[str, str]
) -> tuple[str, list[str]]:
    """Name the run, the step and the reason, as far as each is known.

    Args:
        failure: what is known without the run's own words.

    Returns:
        As `_tell`.
    """
    found = _ask_zenml(launch.pipeline, began, environment)
    run = f"run {found['run']}" if found.get("run") else "no run was made"
    step = f", step {found['step']}" if found.get("step") else ""
    reason = failure or found.get("reason") or _last_words(log)
    return _tell(launch, log, f"{run}{step}: {_short(reason)} (exit code {code}, log {log})")


def tell_of_cut_off(launch: Launch, log: Path) -> list[str]:
    """About the run before, which never came to its own end: the power went, somebody killed it.

    Returns:
        What could not be delivered and why.
    """
    reason = _short(_last_words(log))
    return _tell(launch, log, f"the run that began at {log.stem} was cut off: {reason} (log {log})")[1]


def _tell(launch: Launch, log: Path, what: str) -> tuple[str, list[str]]:
    """Send one line, and write it into the run's log.

    Returns:
        The line; what could not be delivered and why.
    """
    line = from_here(f"{launch.pipeline} failed: {what}")
    try:
        settings = load_notify(Path(launch.config) if launch.config else None)
    except ConfigError:
        settings = launch.notify  # a broken config is one of the things to tell of
    undelivered = send(line, settings)
    # the same lines are in the outcome, which cron mails and systemd keeps
    with suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.writelines(f"agentps: {text}\n" for text in [line, *undelivered])
    return line, undelivered


def _ask_zenml(pipeline: str, since: datetime, environment: dict[str, str]) -> dict[str, str]:
    """`run`, `step`, `reason` as far as ZenML knows them. In a process of its own: ZenML may be what is broken."""
    command = [program("python"), "-m", "infra.schedule.failed_run", pipeline.rpartition(".")[2], since.isoformat()]
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
    return cut(masked(one_line(text)), REASON)  # masked before it is cut: half a secret is told by nothing
