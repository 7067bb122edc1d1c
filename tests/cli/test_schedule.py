"""The commands of the schedule, with a stand-in for `crontab` (see tests/infra/schedule/stand_ins.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from cli.main import main
from infra.schedule.job import Files


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
