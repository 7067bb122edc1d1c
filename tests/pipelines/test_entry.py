from __future__ import annotations

import errno
import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click
import pytest
import yaml
from zenml import environment, step
from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.logger import get_logger

import pipelines
from model.errors import AnnotationError, ConfigError, DiskError
from pipelines import entry
from pipelines.entry import CheckedPipeline
from pipelines.startup import told_once
from steps.edge import told
from steps.paths import REPOSITORY, ledger_url
from steps.secrets import resolved
from steps.settings import NotifySettings, TrainingSettings, load_settings

OPTIONS = {"seed": 3, "fine_tune": {"epochs": 1}}


def _training(options: dict[str, Any] | None = None) -> None:
    """A pipeline without steps."""


@pytest.mark.parametrize("name", ["agentps_training", "agentps_retraining", "agentps_study", "agentps_scheduled"])
def test_every_pipeline_takes_one_mapping_of_options(name: str) -> None:
    assert list(inspect.signature(getattr(pipelines, name).entrypoint).parameters) == ["options"]


def test_a_checked_pipeline_hands_zenml_its_own_form(agentps_home: Path, file: Callable[[str], Path]) -> None:
    pipeline = CheckedPipeline(name="checked", entrypoint=_training, kind=TrainingSettings)

    ready = pipeline.with_options(config_path=str(file("seed: 3\nfine_tune: {epochs: 1}\n")))

    written = Path(ready._run_args["config_path"])
    assert written.is_relative_to(agentps_home)
    assert yaml.safe_load(written.read_text()) == {"parameters": {"options": OPTIONS}}
    assert ready.configuration.parameters == {"options": OPTIONS}
    assert pipeline.configuration.parameters in (None, {}), "the pipeline itself stays as it was"


def test_a_value_out_of_range_ends_in_one_message_that_names_file_and_key(file: Callable[[str], Path]) -> None:
    pipeline = CheckedPipeline(name="checked", entrypoint=_training, kind=TrainingSettings)
    path = file("fine_tune: {epochs: 0}\n")
    with pytest.raises(click.ClickException, match=f"config {path}: fine_tune.epochs: .* \\(found 0\\)"):
        pipeline.with_options(config_path=str(path))


def _record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error else None
    return logging.LogRecord("zenml", logging.ERROR, "", 0, message, arguments, exc_info)


def test_an_error_for_the_user_is_logged_without_traceback_and_told_once() -> None:
    ours, bug = AnnotationError("the endpoint is down"), KeyError("x")

    failed = _record("Step %s failed.", "annotate", error=ours)
    assert told_once(failed)
    assert logging.Formatter().format(failed) == "Step annotate failed."
    assert not told_once(_record("Failed to run step `%s`: %s", "annotate", ours))

    traced = _record("Step %s failed.", "annotate", error=bug)
    assert told_once(traced)
    assert traced.exc_info, "a bug keeps its traceback"
    assert told_once(_record("Failed to run step `%s`: %s", "annotate", bug))


def test_a_full_disk_is_told_once_too_whoever_finds_it(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    failed = _record("Step %s failed.", "annotate", error=full)
    assert told_once(failed)
    assert logging.Formatter().format(failed) == "Step annotate failed."
    assert not told_once(_record("Failed to run step `%s`: %s", "annotate", full))
    database = _record("SQLAlchemy database error.\n%s", full, error=full)
    database.name = "mlflow.store.db.utils"
    assert not told_once(database)
    ours = DiskError("posts.jsonl: cannot be written")
    last = RuntimeError("the run's end: database or disk is full")
    last.__context__ = ours
    assert told(last) == str(ours), "the first that failed has a name"


@step(enable_cache=False)
def leaking(ledger: str, notify: NotifySettings) -> None:
    url = ledger_url(ledger)
    get_logger("leaking").warning("asking %s, %s", url, resolved(str(notify.webhook), "notify.webhook"))
    try:
        raise ValueError(f"{url}: no URL")
    except ValueError as error:
        raise AnnotationError(f"ledger {url}: down") from error


def test_no_secret_reaches_the_terminal_zenml_s_logs_or_its_database(
    own_zenml: Client,
    caplog: pytest.LogCaptureFixture,
    file: Callable[[str], Path],
    agentps_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entry, "require_active", lambda home: None)  # ZenML's default stack is enough for this pipeline
    for variable in ("AGENTPS_LEDGER", "AGENTPS_WEBHOOK"):  # which are put back afterwards
        monkeypatch.setenv(variable, "")

    def entrypoint(options: dict[str, Any] | None = None) -> None:
        settings = load_settings(options or {})
        leaking(settings.annotate.ledger or "", settings.notify)

    pipeline = CheckedPipeline(name="leaking", entrypoint=entrypoint, kind=TrainingSettings)
    path = file(
        "annotate: {ledger: postgresql://ann:hunter2-22@db/x}\n"
        "notify: {webhook: http://127.0.0.1/services/hunter2-22}\n"
    )
    config, database = pipeline.with_options(config_path=str(path)), GlobalConfiguration().config_directory

    with pytest.raises(click.ClickException, match=r"ledger postgresql://\*\*\*@db/x: down"):
        config()

    assert "asking postgresql://***@db/x, ***" in caplog.text
    assert "hunter2-22" not in caplog.text
    kept = [path for folder in (database, agentps_home) for path in Path(folder).rglob("*") if path.is_file()]
    assert any(b"postgresql://***@db/x" in path.read_bytes() for path in kept)
    assert any(b"env:AGENTPS_LEDGER" in path.read_bytes() for path in kept)
    assert [path for path in kept if b"hunter2-22" in path.read_bytes()] == []


def test_a_ledger_without_a_password_stays_in_the_options(agentps_home: Path, file: Callable[[str], Path]) -> None:
    pipeline = CheckedPipeline(name="checked", entrypoint=_training, kind=TrainingSettings)
    ready = pipeline.with_options(config_path=str(file("annotate: {ledger: sqlite:////tmp/a@b.db}\n")))
    assert ready.configuration.parameters == {"options": {"annotate": {"ledger": "sqlite:////tmp/a@b.db"}}}


@pytest.mark.parametrize("reference", ["env:MY_LEDGER", "${MY_LEDGER}"])
def test_an_option_may_name_the_variable_that_holds_it(
    reference: str, agentps_home: Path, file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_LEDGER", "postgresql://ann:hunter2-22@db/x")
    pipeline = CheckedPipeline(name="checked", entrypoint=_training, kind=TrainingSettings)
    ready = pipeline.with_options(config_path=str(file(f"annotate: {{ledger: '{reference}'}}\n")))
    assert ready.configuration.parameters == {"options": {"annotate": {"ledger": "env:MY_LEDGER"}}}
    assert ledger_url(reference) == "postgresql://ann:hunter2-22@db/x"


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(ConfigError, match=r"annotate\.ledger is env:NO_SUCH_LEDGER, and the variable NO_SUCH_LEDGER"):
        ledger_url("env:NO_SUCH_LEDGER")


def test_the_installed_packages_are_asked_for_once_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def pip(command: list[str], **options: Any) -> bytes:
        asked.append(command)
        return b"a==1\nb==2\n"

    monkeypatch.setattr(environment.subprocess, "check_output", pip)
    packages = cast(Any, environment.Environment.get_python_packages)
    packages.cache_clear()
    assert [packages() for _ in range(9)] == [["a==1", "b==2"]] * 9
    packages.cache_clear()
    assert len(asked) == 1


def test_a_failed_run_does_not_wait_for_what_was_begun_ahead(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom functools import partial\nfrom steps.ingest import ahead\n"
        "ahead.begin(partial(time.sleep, 600))\nsys.exit('it failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "it failed\n")
