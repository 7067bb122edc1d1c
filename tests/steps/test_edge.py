from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import yaml
from pydantic import ValidationError
from zenml import step
from zenml.exceptions import StepInterfaceError

from model.errors import ConfigError
from steps.edge import told
from steps.paths import REPOSITORY
from steps.settings import NotifySettings


@pytest.fixture
def zenml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ZenML's folder, which is not there yet."""
    monkeypatch.setenv("ZENML_CONFIG_PATH", str(tmp_path / "zenml"))
    return tmp_path / "zenml"


def test_a_file_that_cannot_be_used_is_told_with_the_variable_that_names_its_place(
    agentps_home: Path, zenml: Path
) -> None:
    for number in (errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST):
        words = os.strerror(number)
        inside, beside = agentps_home / "work" / "x", agentps_home.parent / "others"
        assert told(OSError(number, words, str(inside))) == (
            f"{inside}: {words}: set AGENTPS_HOME, now {agentps_home}, to a folder in which you may write"
        )
        assert "set ZENML_CONFIG_PATH, now" in (told(OSError(number, words, str(zenml / "config.yaml"))) or "")
        is_right = number in (errno.EROFS, errno.EACCES)
        expected = f"{beside}: {words}: give yourself the right to it, or name another place" if is_right else None
        assert told(OSError(number, words, str(beside))) == expected


def test_a_file_of_ours_that_is_missing_is_a_fault_unless_its_whole_folder_is(agentps_home: Path, zenml: Path) -> None:
    def missing(path: Path) -> str | None:
        return told(FileNotFoundError(errno.ENOENT, "No such file or directory", str(path)))

    assert missing(agentps_home / "x") is None
    assert "set ZENML_CONFIG_PATH" in (missing(zenml / "x") or "")


def test_the_error_that_led_to_another_is_told(agentps_home: Path, zenml: Path) -> None:
    outer, cause = RuntimeError("generator didn't yield"), ConfigError("posts: a.jsonl at http://ann:pw@host: no")
    outer.__context__ = cause
    assert told(outer) == "posts: a.jsonl at http://***@host: no"
    assert told(RuntimeError("a fault of ours")) is None


def test_a_server_that_does_not_answer_is_told(agentps_home: Path, zenml: Path) -> None:
    with pytest.raises(requests.ConnectionError) as refused:
        requests.get("http://ann:hunter2-22@127.0.0.1:9/api", timeout=5)
    line = told(refused.value)
    assert line is not None
    assert line.startswith("no answer from a server (ConnectionError): ")
    assert "hunter2-22" not in line
    assert "\n" not in line


def test_settings_of_zenml_that_are_no_yaml_are_named(agentps_home: Path, zenml: Path) -> None:
    zenml.mkdir()
    (zenml / "config.yaml").write_text("version: [")
    line = told(yaml.YAMLError("while parsing"))
    assert line == f"ZenML's settings, {zenml}/config.yaml, are no YAML: correct or remove the file"


def test_debug_shows_everything_but_our_own_errors(
    agentps_home: Path, zenml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZENML_LOGGING_VERBOSITY", "debug")
    assert told(OSError(errno.EROFS, "Read-only file system", str(agentps_home))) is None
    assert told(ConfigError("x")) == "x"


def test_what_the_literal_command_meets_before_our_code_is_one_line_too(zenml: Path, agentps_home: Path) -> None:
    """As in an environment that `make` made, where errors_told.pth is in site-packages."""
    zenml.mkdir()
    (zenml / "config.yaml").write_text("version: [")
    hook = (REPOSITORY / "infra" / "errors_told.pth").read_text(encoding="utf-8").splitlines()[-1]
    code = f"{hook}\nimport sys; sys.argv[0] = 'zenml'\nfrom zenml.cli.cli import cli\ncli()"
    command = [sys.executable, "-c", code, "pipeline", "run", "agentps_training"]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"Error: ZenML's settings, {zenml}/config.yaml, are no YAML: correct or remove the file\n"


def run_hooked(name: str, code: str) -> str:
    """What a command of that name prints on stderr, in an environment that `make` made."""
    hook = (REPOSITORY / "infra" / "errors_told.pth").read_text(encoding="utf-8").splitlines()[-1]
    code = f"{hook}\nimport sys\nsys.argv[0] = '/x/bin/{name}'\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True).stderr


def test_a_fault_of_the_program_keeps_its_traceback_without_secrets() -> None:
    printed = run_hooked("zenml", "raise KeyError('http://ann:' + 'hunter2-22@host')")
    assert printed.startswith("Traceback")
    assert printed.endswith("KeyError: 'http://***@host'\n")


def test_another_program_of_the_environment_keeps_its_traceback() -> None:
    code = "raise PermissionError(13, 'Permission denied', '/x')"
    assert run_hooked("zenml", code).startswith("Error: /x: Permission denied: give yourself the right")
    printed = run_hooked("mine.py", code)
    assert printed.startswith("Traceback")
    assert "give yourself" not in printed


@pytest.mark.parametrize("missing", ["steps.edge", "click", "model.errors"])
def test_an_environment_that_is_installed_by_half_keeps_its_traceback(missing: str) -> None:
    printed = run_hooked(
        "zenml", f"sys.modules['{missing}'] = None\nraise PermissionError(13, 'Permission denied', '/x')"
    )
    assert printed.startswith("Traceback")
    assert printed.endswith("PermissionError: [Errno 13] Permission denied: '/x'\n")
    assert printed.count("Traceback") == 1, "of the error, and of nothing else"


def test_what_our_own_code_gets_wrong_is_not_told_as_zenmls() -> None:
    with pytest.raises(ValidationError) as caught:
        NotifySettings.model_validate({"no such": 1})
    assert told(caught.value) is None
    with pytest.raises(StepInterfaceError) as refused:

        @step
        def _variable(*values: int) -> None:
            """ZenML wants each input named."""

    assert told(refused.value) is None


def test_a_fault_of_ours_in_the_handling_of_an_error_is_not_told_as_that_error(agentps_home: Path, zenml: Path) -> None:
    fault: BaseException | None = None
    try:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", str(agentps_home / "x"))
        except PermissionError:
            raise KeyError("a fault of ours")  # noqa: B904 (the handler itself fails)
    except KeyError as error:
        fault = error
    assert fault is not None
    assert told(fault) is None
