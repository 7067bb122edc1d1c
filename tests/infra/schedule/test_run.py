from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from infra.schedule import run
from infra.schedule.job import Files
from infra.schedule.machine import install
from infra.schedule.run import run_due
from model.errors import ConfigError, ScheduleError
from steps.paths import REPOSITORY
from tests.infra.schedule.stand_ins import PYTHON, Machine, at, job
from tests.support.disk import files_end_at


def test_a_due_time_runs_the_literal_command_in_the_repository_and_keeps_its_output(scheduled: Machine) -> None:
    outcome = run_due(scheduled.home, at(24, 3))
    assert outcome.code == 0
    assert scheduled.ran.read_text() == f"{REPOSITORY}: pipeline run agentps_training\n"
    assert scheduled.logs == ["$ zenml pipeline run agentps_training\nhello from the run\n"]
    assert "succeeded" in outcome.line


def test_the_config_is_handed_on(machine: Machine, tmp_path: Path) -> None:
    machine.with_cron()
    machine.zenml("true")
    install(job(config=tmp_path / "mine.yaml"), machine.home, at(23, 12))
    assert run_due(machine.home, at(24, 3)).code == 0
    assert machine.ran.read_text().endswith(f"pipeline run agentps_training -c {tmp_path}/mine.yaml\n")


def test_nothing_is_run_before_its_time_nor_twice_for_one(scheduled: Machine) -> None:
    assert "the next time is 2026-11-24 03:00" in run_due(scheduled.home, at(24, 2, 59)).line
    assert scheduled.runs == 0
    for minute in (0, 1, 37, 97):
        assert run_due(scheduled.home, at(24, 3) + timedelta(minutes=minute)).code == 0
    assert scheduled.runs == 1


def test_missed_runs_are_caught_up_once(scheduled: Machine) -> None:
    """The machine was off for three nights: one run at the first look after it, none at the next."""
    run_due(scheduled.home, at(24, 3))
    assert "succeeded" in run_due(scheduled.home, at(27, 10, 37)).line
    assert "nothing is due" in run_due(scheduled.home, at(27, 11, 37)).line
    run_due(scheduled.home, at(28, 3))
    assert scheduled.runs == 3


def install_with_notice(machine: Machine, folder: Path) -> Path:
    """A schedule whose notices go into the file that is returned."""
    told, config = folder / "told", folder / "mine.yaml"
    machine.script("tell", f'cat >> "{told}"')
    config.write_text(yaml.safe_dump({"notify": {"command": str(machine.bin / "tell")}}))
    install(job(config=config), machine.home, at(23, 12))
    return told


def covered(machine: Machine) -> datetime:
    progress = Files(machine.home).read_progress()
    assert progress is not None
    return progress.covered


def test_a_start_of_a_wrong_clock_does_not_end_the_schedule_until_then(scheduled: Machine) -> None:
    """One start dated 2099 kept it from running for 73 years, with exit code 0."""
    run_due(scheduled.home, datetime(2099, 1, 1, tzinfo=UTC))
    assert scheduled.runs == 1
    said = run_due(scheduled.home, at(24, 2, 37))
    assert "the next time is 2026-11-24 03:00" in said.line
    assert said.undelivered == [
        f"{Files(scheduled.home).progress}, how far the schedule has come: 2099-01-01T00:00:00+00:00 is still to come: "
        "its times count from now on"
    ]
    assert covered(scheduled) == at(24, 2, 37)
    assert run_due(scheduled.home, at(24, 3)).undelivered == [], "said once"
    assert scheduled.runs == 2


@pytest.mark.parametrize("state", [None, "", "{", '{"covered": "2026-11-23T12:00:00"}', "a folder"])
def test_a_state_that_cannot_be_read_does_not_end_the_schedule_either(state: str | None, scheduled: Machine) -> None:
    """Each start took all times up to then as done, and kept no word of it."""
    path = Files(scheduled.home).progress
    path.unlink()
    if state == "a folder":
        path.mkdir()
    elif state is not None:
        path.write_text(state)
    assert "it cannot be read: its times count from now on" in run_due(scheduled.home, at(24, 2)).undelivered[0]
    assert run_due(scheduled.home, at(24, 3)).undelivered == []
    assert scheduled.runs == 1


def test_a_clock_that_is_set_back_by_minutes_runs_no_time_twice(scheduled: Machine) -> None:
    run_due(scheduled.home, at(24, 3))
    for minute in (-4, -1, 0, 1):
        assert run_due(scheduled.home, at(24, 3) + timedelta(minutes=minute)).undelivered == []
    assert scheduled.runs == 1


def test_a_full_disk_is_a_failed_run_that_a_person_is_told_of(machine: Machine, tmp_path: Path) -> None:
    machine.with_cron()
    machine.zenml("true")
    install_with_notice(machine, tmp_path)
    with files_end_at(10):
        outcome = run_due(machine.home, at(24, 3))
    assert outcome.code == 127
    assert "state.json: cannot be written: File too large; " in outcome.line
    assert machine.runs == 0
    assert "succeeded" in run_due(machine.home, at(24, 3, 37)).line, "there is room again: the same time is run"


def test_a_state_that_can_neither_be_read_nor_written_is_a_failed_run_too(scheduled: Machine) -> None:
    """Each start counted the times from itself, so that none was ever due."""
    Files(scheduled.home).progress.unlink()
    with files_end_at(10):
        outcome = run_due(scheduled.home, at(24, 2))
    assert (outcome.code, scheduled.runs) == (127, 0)
    assert "state.json: cannot be written: File too large" in outcome.line


def test_variables_that_cannot_be_read_are_a_failed_run_that_names_the_file(scheduled: Machine) -> None:
    variables = scheduled.home / "schedule.env"
    variables.write_bytes(b"OPENAI_API_KEY=\xff\n")
    outcome = run_due(scheduled.home, at(24, 3))
    assert (outcome.code, scheduled.runs) == (127, 0)
    assert f"{variables}: 'utf-8' codec can't decode" in outcome.line
    variables.write_bytes(b"OPENAI_API_KEY=a\0b\n")
    assert run_due(scheduled.home, at(25, 3)).code == 127


@pytest.mark.parametrize("cron", ["61 3 * * *", "0 3 31 2 *"])
def test_a_job_that_was_changed_by_hand_is_one_message(cron: str, scheduled: Machine) -> None:
    path = Files(scheduled.home).job
    path.write_text(path.read_text().replace("0 3 * * *", cron))
    with pytest.raises(ConfigError, match="five fields were expected"):
        run_due(scheduled.home, at(24, 3))
    path.unlink()
    path.mkdir()
    with pytest.raises(ScheduleError, match=r"job\.json: not a schedule of this version \(Is a directory\)"):
        run_due(scheduled.home, at(24, 3))


def test_a_log_that_cannot_be_removed_is_no_failed_run(scheduled: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "KEPT_LOGS", 1)
    (Files(scheduled.home).logs / "20200101.log").mkdir(parents=True)
    assert run_due(scheduled.home, at(24, 3)).code == 0


def test_only_the_user_can_read_the_job_which_may_hold_a_webhooks_secret(scheduled: Machine) -> None:
    files = Files(scheduled.home)
    assert [path.stat().st_mode & 0o777 for path in (files.job, files.progress)] == [0o600, 0o600]


def test_variables_that_others_can_read_are_told_in_the_log(scheduled: Machine) -> None:
    variables = scheduled.home / "schedule.env"
    for day, mode in ((24, 0o644), (25, 0o600)):
        variables.write_text("OPENAI_API_KEY=k\n")
        variables.chmod(mode)
        run_due(scheduled.home, at(day, 3))
    loud, quiet = scheduled.logs
    assert (
        f"warning: other users of this machine may read the keys in {variables}: run `chmod 600 '{variables}'`" in loud
    )
    assert "warning" not in quiet


def test_a_new_schedule_does_not_catch_up_what_was_before_it(scheduled: Machine) -> None:
    install(job("0 11 * * *"), scheduled.home, at(25, 12))
    run_due(scheduled.home, at(25, 12, 37))
    assert scheduled.runs == 0


def test_without_a_schedule_the_command_says_so(machine: Machine) -> None:
    with pytest.raises(ScheduleError, match="make one with `agentps schedule"):
        run_due(machine.home, at(24, 3))


def test_the_run_gets_the_variables_of_the_file_and_the_environments_programs(scheduled: Machine) -> None:
    (scheduled.home / "schedule.env").write_text("OPENAI_API_KEY='a$b'\n")
    scheduled.script("zenml", f'/usr/bin/env > "{scheduled.ran}"')
    text = (scheduled.bin / "zenml").read_text().replace("PATH=/usr/bin:/bin\n", "")
    (scheduled.bin / "zenml").write_text(text)
    assert run_due(scheduled.home, at(24, 3)).code == 0
    found = dict(line.split("=", 1) for line in scheduled.ran.read_text().splitlines() if "=" in line)
    assert (found["OPENAI_API_KEY"], found["AGENTPS_HOME"]) == ("a$b", str(scheduled.home))
    assert found["PATH"].split(":")[0] == str(scheduled.bin)


def test_old_logs_are_pruned(scheduled: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "KEPT_LOGS", 2)
    for day in (24, 25, 26):
        run_due(scheduled.home, at(day, 3))
    kept = sorted(path.stem for path in Files(scheduled.home).logs.iterdir())
    assert kept == [f"{at(day, 3).astimezone(UTC):%Y%m%dT%H%M%SZ}" for day in (25, 26)]


_PROCESS = """
import sys
from datetime import datetime
from pathlib import Path
from infra.schedule.run import run_due
sys.executable = sys.argv[1]
outcome = run_due(Path(sys.argv[2]), datetime.fromisoformat(sys.argv[3]))
print(outcome.line)
sys.exit(outcome.code)
"""


_ENDED_BY_SIGNAL = (
    f"from steps.lifetime import ends_by_signal\nwith ends_by_signal():{_PROCESS.replace(chr(10), chr(10) + '    ')}"
)


def process(machine: Machine, now: datetime, code: str = _PROCESS) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [PYTHON, "-c", code, sys.executable, str(machine.home), now.isoformat()],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def test_two_processes_at_once_make_one_run_and_the_second_ends_at_once(scheduled: Machine, tmp_path: Path) -> None:
    go = tmp_path / "go"
    scheduled.zenml(f'while [ ! -e "{go}" ]; do sleep 0.02; done; exit 7')
    first = process(scheduled, at(24, 3))
    wait_for(lambda: scheduled.runs == 1)
    second = process(scheduled, at(24, 3))
    said, _ = second.communicate(timeout=60)
    assert (second.returncode, said) == (
        0,
        "agentps_training: the run before is still going: nothing was started\n",
    )
    assert first.poll() is None, "the second did not wait for the first"
    progress = Files(scheduled.home).read_progress()
    assert progress is not None
    assert progress.running is not None, "it left alone what the first wrote"
    third = process(scheduled, at(25, 3))  # a whole day long: that time is left out, not put off
    assert third.wait(timeout=60) == 0
    go.touch()
    assert first.wait(timeout=60) == 7, "the pipeline's own code"
    first.communicate()
    third.communicate()
    assert "nothing is due" in run_due(scheduled.home, at(25, 4)).line
    assert scheduled.runs == 1


def test_a_killed_runner_leaves_the_lock_to_its_pipeline_and_the_next_one_tells_of_it(
    machine: Machine, tmp_path: Path
) -> None:
    machine.with_cron()
    told = install_with_notice(machine, tmp_path)
    go, pid = tmp_path / "go", tmp_path / "pid"
    machine.zenml(f'echo "half way"; echo $$ > "{pid}"; while [ ! -e "{go}" ]; do sleep 0.02; done')
    runner = process(machine, at(24, 3))
    wait_for(lambda: pid.exists() and pid.read_text().endswith("\n"))
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    runner.communicate()
    assert "still going" in run_due(machine.home, at(24, 4)).line
    go.touch()

    def ended() -> bool:
        return "still going" not in run_due(machine.home, at(24, 5)).line

    wait_for(ended)
    assert machine.runs == 1, "what began is not run again before its next time"
    lines = told.read_text().splitlines()
    assert len(lines) == 1, "told once"
    assert "agentps_training failed: the run that began at 2026" in lines[0]
    assert "was cut off: half way (log " in lines[0]


def test_a_runner_that_is_asked_to_end_asks_its_pipeline_and_waits_for_it(scheduled: Machine, tmp_path: Path) -> None:
    started, closed = tmp_path / "started", tmp_path / "closed"
    scheduled.zenml(
        # half a second, in which the runner learns that it has started it
        f'trap \'sleep 0.5; touch "{closed}"; exit 143\' TERM; sleep 0.5; touch "{started}"; '
        "while true; do sleep 0.02; done"
    )
    runner = process(scheduled, at(24, 3), _ENDED_BY_SIGNAL)
    wait_for(started.exists)
    runner.send_signal(signal.SIGTERM)
    runner.communicate(timeout=60)
    assert runner.returncode == 143
    assert closed.exists(), "it ended before its pipeline"
