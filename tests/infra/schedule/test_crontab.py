from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra.schedule.command import name_of
from infra.schedule.crontab import lines
from infra.schedule.job import Files
from infra.schedule.machine import install, installed_in, remove
from model.errors import ScheduleError
from tests.infra.schedule.stand_ins import Machine, at, job

OTHERS = "# mine\nMAILTO=me@example.org\n5 4 * * * /usr/bin/true % text\n"


def test_the_lines_stand_between_markers_and_others_are_left_alone(machine: Machine) -> None:
    machine.with_cron()
    machine.crontab.write_text(OTHERS)
    assert install(job("0 3 * * *"), machine.home, at(24, 12)) == (
        f"crontab, {name_of(machine.home)}: agentps_training, next at 2026-11-25 03:00"
    )
    install(job("0 4 * * *"), machine.home, at(24, 12))
    lines = machine.crontab.read_text().removeprefix(OTHERS).splitlines()
    name = name_of(machine.home)
    assert lines[0] == f"# {name} begin (agentps schedule)"
    assert lines[-1] == f"# {name} end (agentps schedule)"
    assert [line[:9] for line in lines[1:-1]] == ["0 4 * * *", "37 * * * "], "the second call replaced the first"
    assert machine.crontab.read_text().startswith(OTHERS)
    assert installed_in(machine.home) == f"crontab, {name}"
    assert remove(machine.home)
    assert machine.crontab.read_text() == OTHERS
    assert installed_in(machine.home) is None
    assert not remove(machine.home)


@pytest.mark.parametrize(
    "others",
    [
        b"# windows\r\n5 4 * * * x\r\n",
        b'# caf\xe9 \x0c page\x85\n\n  5  4 * * *\t/usr/bin/true\nMAILTO = "me"\n0 0 * * 7 x # y\nnonsense\n',
        "# Grüße\n#5 4 * * * off\n".encode(),
        b"5 4 * * * /usr/bin/true # no end of line",
    ],
)
def test_the_users_own_lines_stay_byte_for_byte(machine: Machine, others: bytes) -> None:
    machine.with_cron()
    machine.crontab.write_bytes(others)
    install(job(), machine.home, at(24, 12))
    assert machine.crontab.read_bytes().startswith(others.rstrip(b"\n") + b"\n# agentps-")
    remove(machine.home)
    assert machine.crontab.read_bytes().rstrip(b"\n") == others.rstrip(b"\n")


def test_two_clones_stand_beside_each_other(machine: Machine, tmp_path: Path) -> None:
    machine.with_cron()
    other = tmp_path / "other"
    install(job("0 3 * * *"), machine.home, at(24, 12))
    install(job("0 4 * * *"), other, at(24, 12))
    assert name_of(other) != name_of(machine.home)
    assert remove(machine.home)
    assert installed_in(other) is not None
    assert not [line for line in machine.crontab.read_text().splitlines() if line.startswith("0 3")]


def test_what_a_shell_of_cron_gets_to_run_are_the_words_that_were_meant(machine: Machine) -> None:
    machine.script("agentps", 'echo "$AGENTPS_HOME|$*"')
    for line in lines(job(), machine.home):
        command = line.split(maxsplit=5)[5].removesuffix(" >/dev/null").replace("\\%", "%")  # as cron does
        done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout == f"{machine.home}|run-scheduled\n"
    assert "%" not in lines(job(), machine.home)[0].replace("\\%", ""), "cron ends a line there"


def test_a_marker_without_its_other_half_is_refused_before_anything_is_lost(machine: Machine) -> None:
    machine.with_cron()
    broken = f"{OTHERS}# {name_of(machine.home)} begin (agentps schedule)\n6 6 * * * /usr/bin/true\n"
    machine.crontab.write_text(broken)
    with pytest.raises(ScheduleError, match="repair it with `crontab -e`"):
        install(job(), machine.home, at(24, 12))
    assert machine.crontab.read_text() == broken


def test_a_crontab_that_refuses_is_an_error_with_its_words(machine: Machine) -> None:
    machine.script("crontab", 'echo "you are not allowed to use this program" >&2; exit 1')
    with pytest.raises(ScheduleError, match="you are not allowed to use this program"):
        install(job(), machine.home, at(24, 12))
    assert Files(machine.home).read_job() is None


def test_a_machine_without_a_scheduler_is_an_error(machine: Machine) -> None:
    with pytest.raises(ScheduleError, match="neither `systemctl --user` nor `crontab`"):
        install(job(), machine.home, at(24, 12))
