from __future__ import annotations

import sys
from pathlib import Path

import pytest

from infra.schedule.machine import install
from tests.infra.schedule.stand_ins import Machine, at, job


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(machine.bin))  # no scheduler of the machine that tests
    monkeypatch.setenv("HOME", str(machine.user))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sys, "executable", str(machine.bin / "python"))
    machine.script("python", "exit 1")  # ZenML knows nothing
    return machine


@pytest.fixture
def scheduled(machine: Machine) -> Machine:
    """At noon of the 23rd, for every day at three."""
    machine.with_cron()
    machine.zenml('echo "hello from the run"')
    install(job(), machine.home, at(23, 12))
    return machine
