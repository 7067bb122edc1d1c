"""A line to a person: the webhook and the command of the section `notify`."""

from __future__ import annotations

import shlex
import socket
import subprocess

from model.errors import ConfigError, plain
from steps.secrets import masked, resolved
from steps.settings import NotifySettings

#: Seconds that a webhook or a command may take.
PATIENCE = 60


def one_line(text: str) -> str:
    return plain(" ".join(text.split()))


def from_here(text: str) -> str:
    """The line that says which machine speaks, without secrets."""
    return masked(one_line(f"AgentPS on {socket.gethostname()}: {text}"))


def send(line: str, settings: NotifySettings) -> list[str]:
    """Hand a line to the webhook and to the command, whichever are named.

    Returns:
        What could not be delivered and why, without secrets: a webhook's path is one.
    """
    line = masked(line)
    return [
        masked(f"the notice was not delivered: {reason}")
        for reason in (_post(line, settings.webhook), _pipe(line, settings.command))
        if reason is not None
    ]


def _post(line: str, webhook: str | None) -> str | None:
    if webhook is None:
        return None
    import httpx2

    try:
        answer = httpx2.post(resolved(webhook, "notify.webhook"), json={"text": line}, timeout=PATIENCE)
    except (httpx2.HTTPError, httpx2.InvalidURL, ConfigError) as error:
        return f"webhook: {type(error).__name__}: {error}"
    if not answer.is_success:
        return f"webhook: {answer.url.host} answered {answer.status_code} {answer.reason_phrase}"
    return None


def _pipe(line: str, command: str | None) -> str | None:
    if command is None:
        return None
    try:
        done = subprocess.run(
            shlex.split(command), input=f"{line}\n", capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"command {command}: {error}"
    if done.returncode != 0:
        return f"command {command}: exit code {done.returncode}: {one_line(done.stderr)}"
    return None
