from __future__ import annotations

import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from croniter import croniter

from infra.schedule.command import name_of
from infra.schedule.machine import install, remove
from infra.schedule.systemd import on_calendar, units
from model.errors import ScheduleError
from tests.infra.schedule.stand_ins import Machine, at, job


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 3 * * *", ["*-*-* 3:0:00"]),
        ("0 3 * * 7", ["Sun *-*-* 3:0:00"]),
        ("*/20 1-3 1 feb *", ["*-2-1 1,2,3:0,20,40:00"]),
        ("0 3 1 * mon", ["*-*-1 3:0:00", "Mon *-*-* 3:0:00"]),  # either: the first, and every Monday
    ],
)
def test_a_cron_expression_as_systemd_writes_it(cron: str, expected: list[str]) -> None:
    assert on_calendar(cron) == expected


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd reads its own times")
@pytest.mark.parametrize(
    "cron",
    [
        "0 3 * * *",
        "*/7 1-5/2 * * *",
        "0 3 1,15 * mon-fri",
        "0 3 */2 * 1",
        "30 0 29 2 *",
        "0 6 * jan-mar 0",
        "5 4 1 * *",
    ],
)
def test_systemd_reads_the_times_that_croniter_does(cron: str) -> None:
    """The next ten of both, from one base time, in UTC."""
    base = datetime(2026, 11, 24, 12, 0)
    found = set()
    for value in on_calendar(cron):
        command = ["systemd-analyze", "calendar", "--iterations=10", f"--base-time={base}", value]
        done = subprocess.run(command, env={"TZ": "UTC", "LC_ALL": "C"}, capture_output=True, text=True, check=True)
        stamps = [line.split(": ")[1] for line in done.stdout.splitlines() if "elapse:" in line or "Iter." in line]
        found |= {datetime.strptime(stamp[4:], "%Y-%m-%d %H:%M:%S UTC") for stamp in stamps}
    times = croniter(cron, base, implement_cron_bug=True)
    assert sorted(found)[:10] == [times.get_next(datetime) for _ in range(10)]


def test_where_systemd_answers_it_gets_a_timer_and_cron_nothing(machine: Machine) -> None:
    machine.with_cron()
    install(job("0 3 * * *"), machine.home, at(24, 12))
    machine.with_systemd()
    name = name_of(machine.home)
    assert install(job("0 4 * * *"), machine.home, at(24, 12)) == (
        f"systemd timer {name}: agentps_training, next at 2026-11-25 04:00"
    )
    assert machine.crontab.read_text() == "", "moved, not doubled"
    install(job("0 5 * * *"), machine.home, at(24, 12))
    assert "OnCalendar=*-*-* 5:0:00\nPersistent=true\n" in machine.unit("timer").read_text()
    assert sorted(path.name for path in machine.unit("timer").parent.iterdir()) == [f"{name}.service", f"{name}.timer"]
    assert machine.calls.read_text().splitlines()[-3:] == [
        "--user daemon-reload",
        f"--user enable {name}.timer",
        f"--user restart {name}.timer",
    ]
    assert remove(machine.home)
    assert list(machine.unit("timer").parent.iterdir()) == []
    assert f"--user disable --now {name}.timer" in machine.calls.read_text().splitlines()


def test_a_timer_that_cannot_be_reached_is_not_doubled_by_cron(machine: Machine) -> None:
    machine.with_cron()
    machine.with_systemd()
    install(job(), machine.home, at(24, 12))
    machine.with_systemd(reachable=False)
    for action in (lambda: install(job(), machine.home, at(24, 12)), lambda: remove(machine.home)):
        with pytest.raises(ScheduleError, match="in a login session of its user"):
            action()
    assert machine.unit("timer").exists()
    assert not machine.crontab.exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd verifies its own units")
def test_systemd_accepts_the_units(machine: Machine, tmp_path: Path) -> None:
    machine.script("agentps", "true")
    for kind, text in units(job("0 3 1 * mon"), machine.home).items():
        (tmp_path / f"agentps-test.{kind}").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "agentps-test.timer")]
    done = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "SYSTEMD_LOG_LEVEL": "warning"}, capture_output=True, text=True
    )
    ours = [line for line in done.stderr.splitlines() if "agentps-test" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_service_hands_on_the_home_as_it_is(machine: Machine) -> None:
    text = units(job(), machine.home)["service"]
    home = str(machine.home).replace("%", "%%").replace("$", "$$")
    assert f'ExecStart=/usr/bin/env "AGENTPS_HOME={home}" "{machine.bin}/agentps" "run-scheduled"\n' in text
