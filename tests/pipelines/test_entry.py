from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from model.errors import AnnotationError, ConfigError
from pipelines.console import told_once
from pipelines.entry import CheckedPipeline, check_run_config
from steps.settings import load_settings

PARAMETERS = {"posts", "task", "seed"}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "text",
    [
        "posts: a.jsonl\nseed: 3\n",
        "parameters: {posts: a.jsonl, seed: 3}\n",
        "posts: a.jsonl\nparameters: {seed: 3}\n",
    ],
)
def test_parameters_may_stand_at_the_top_or_under_parameters(file: Callable[[str], Path], text: str) -> None:
    assert check_run_config(file(text), PARAMETERS) == {"parameters": {"posts": "a.jsonl", "seed": 3}}


def test_zenml_s_own_keys_stay_where_they_are(file: Callable[[str], Path]) -> None:
    config = check_run_config(file("seed: 3\nenable_cache: false\nsteps: {ingest: {enable_cache: true}}\n"), PARAMETERS)
    assert config == {
        "enable_cache": False,
        "steps": {"ingest": {"enable_cache": True}},
        "parameters": {"seed": 3},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("post: a.jsonl\n", "post: unknown key: remove it or correct its name; options are posts, seed, task"),
        ("parameters: {post: a.jsonl}\n", r"parameters\.post: unknown key: remove it or correct its name"),
        ("seed: 1\nparameters: {seed: 2}\n", "seed stands at the top level and under parameters: keep one"),
        ("- posts\n", "a mapping of options was expected, found list"),
        ("parameters: [seed]\n", "parameters: a mapping was expected, found list"),
        ("seed: [1\n", "cannot be read as YAML: .*line 2"),
    ],
)
def test_a_config_that_is_wrong_is_named_with_its_key(file: Callable[[str], Path], text: str, message: str) -> None:
    path = file(text)
    with pytest.raises(ConfigError, match=f"(?s)config {path}: {message}"):
        check_run_config(path, PARAMETERS)


def test_a_config_that_is_not_text_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read as YAML"):
        check_run_config(tmp_path / "binary.yaml", PARAMETERS)
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        check_run_config(tmp_path / "gone.yaml", PARAMETERS)


def _training(posts: str | None = None, seed: int | None = None, fine_tune: dict[str, Any] | None = None) -> None:
    """A pipeline without steps."""


def test_a_checked_pipeline_hands_zenml_its_own_form(agentps_home: Path, file: Callable[[str], Path]) -> None:
    pipeline = CheckedPipeline(name="checked", entrypoint=_training, check=load_settings)

    ready = pipeline.with_options(config_path=str(file("seed: 3\nfine_tune: {epochs: 1}\n")))

    written = Path(ready._run_args["config_path"])
    assert written.is_relative_to(agentps_home)
    assert yaml.safe_load(written.read_text()) == {"parameters": {"seed": 3, "fine_tune": {"epochs": 1}}}
    assert ready.configuration.parameters == {"seed": 3, "fine_tune": {"epochs": 1}}
    assert pipeline.configuration.parameters in (None, {}), "the pipeline itself stays as it was"


def test_a_value_out_of_range_ends_in_one_message_that_names_file_and_key(file: Callable[[str], Path]) -> None:
    pipeline = CheckedPipeline(name="checked", entrypoint=_training, check=load_settings)
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
