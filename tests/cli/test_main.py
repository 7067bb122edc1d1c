"""The edge of all commands: a signal ends them as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steps.paths import REPOSITORY

COMMAND = """
import time, click

@click.command()
def wait():
    click.echo("ready")
    time.sleep(600)
"""
RUN = "import cli.main; cli.main.COMMANDS['wait'] = 'waiting:wait'; cli.main.main(['wait'])"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_ends_by_a_signal_with_one_line_and_its_exit_code(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(COMMAND)
    process = subprocess.Popen(
        [sys.executable, "-c", RUN],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=120) == ("", f"\nEnded by {number.name}\n")
    assert process.returncode == 128 + number
