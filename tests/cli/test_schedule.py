"""The commands of the schedule, with a stand-in for `crontab` (see tests/infra/schedule/stand_ins.py)."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cli.main import main
from infra.schedule.job import Files
from tests.support.disk import files_end_at


@pytest.fixture
def crontab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agentps_home: Path) -> Path:
    """The file that the stand-in keeps."""
    folder, table = tmp_path / "bin", tmp_path / "crontab"
    folder.mkdir()
    body = f'[ "$1" = -l ] && exec /bin/cat "{table}"\n[ "$1" = - ] && exec /bin/cat > "{table}"\nexit 2\n'
    (folder / "crontab").write_text(f"#!/bin/sh\n{body}")
    (folder / "crontab").chmod(0o755)
    table.write_text("")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return table


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_made_shown_replaced_and_removed(crontab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("schedule", "--show").output == "there is no schedule\n"
    made = call("schedule", "--cron", "0  3 * * *")
    assert made.exit_code == 0, made.output
    assert made.output.startswith("crontab, agentps-")
    assert "03:00\nnote: the config names neither notify.webhook nor notify.command" in made.output

    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"notify": {"command": "mail me"}}))
    monkeypatch.chdir(tmp_path)
    again = call("schedule", "--cron", "0 4 * * *", "--pipeline", "pipelines.agentps_study", "-c", "mine.yaml")
    assert again.exit_code == 0, again.output
    assert "note:" not in again.output
    shown = call("schedule", "--show").output
    assert shown.startswith("crontab, agentps-")
    assert f"pipeline  pipelines.agentps_study -c {tmp_path}/mine.yaml\n" in shown
    assert "cron      0 4 * * *, next at " in shown
    assert crontab.read_text().count("run-scheduled") == 2, "its time, and the hourly look"

    crontab.write_text("")
    assert call("schedule", "--show").output.startswith("installed nowhere: run `agentps schedule --cron")
    assert call("schedule", "--remove").output == "the schedule is removed\n"
    assert call("schedule", "--remove").output == "there was no schedule\n"


def test_variables_that_others_can_read_are_told_when_a_schedule_is_made_or_shown(
    crontab: Path, agentps_home: Path
) -> None:
    (agentps_home / "schedule.env").touch(0o644)
    for arguments in (("--cron", "0 3 * * *"), ("--show",)):
        assert f"chmod 600 {agentps_home}/schedule.env" in call("schedule", *arguments).output
    assert "chmod" not in call("schedule", "--remove").output


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ((), 2, "give one of --cron, --show, --remove"),
        (("--show", "--remove"), 2, "give one of --cron, --show, --remove"),
        (("--cron", "61 * * * *"), 1, "Error: cron expression '61 * * * *': "),
        (("--cron", "0 3 * * *", "-c", "nowhere.yaml"), 1, "Error: config nowhere.yaml: "),
    ],
)
def test_what_cannot_be_scheduled_is_one_error_and_changes_nothing(
    crontab: Path, arguments: tuple[str, ...], code: int, expected: str
) -> None:
    result = call("schedule", *arguments)
    assert result.exit_code == code
    assert expected in result.output
    assert crontab.read_text() == ""


def test_a_schedule_that_finds_no_room_changes_nothing(crontab: Path, agentps_home: Path) -> None:
    call("schedule", "--cron", "0 3 * * *")
    before, job = crontab.read_text(), Files(agentps_home).job
    with files_end_at(20):
        result = call("schedule", "--cron", "0 4 * * *")
    assert result.exit_code == 1
    assert f"Error: {job}: cannot be written: File too large; " in result.output
    assert crontab.read_text() == before
    assert "cron      0 3 * * *" in call("schedule", "--show").output


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Exception("... (os error 28)")])
def test_a_full_disk_under_a_library_is_one_message(
    error: Exception, crontab: Path, agentps_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of MLflow, say, whose files have no name here."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("infra.schedule.machine.show", fail)
    result = call("schedule", "--show")
    assert result.exit_code == 1
    assert result.output.startswith("Error: a file cannot be written: ")
    assert f"bytes are free in {agentps_home}, " in result.output
    monkeypatch.setattr("infra.schedule.machine.show", lambda *_: 1 // 0)
    assert isinstance(call("schedule", "--show").exception, ZeroDivisionError), "a fault of ours stays one"


def test_what_the_schedule_starts_exits_with_the_pipelines_code(crontab: Path, agentps_home: Path) -> None:
    refused = call("run-scheduled")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "no schedule: make one with" in refused.stderr
    call("schedule", "--cron", "* * * * *")
    files, zenml = Files(agentps_home), Path(sys.executable).with_name("zenml")
    progress = files.read_progress()
    assert progress is not None
    early = progress.covered.replace(year=progress.covered.year - 1)
    for code in (0, 5):
        files.update_progress(covered=early)
        zenml.write_text(f"#!/bin/sh\nexit {code}\n")
        zenml.chmod(0o755)
        done = call("run-scheduled")
        assert done.exit_code == code, done.output
        assert ("agentps_training: succeeded" in done.stdout) == (code == 0)
        assert ("agentps_training failed: " in done.stderr) == (code == 5)
