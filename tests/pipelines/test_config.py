"""A run file means the same to every pipeline and to every command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model.errors import ConfigError
from pipelines.config import ZENML_KEYS, RunFile, load_notify, read_options, read_run_file
from steps.paths import REPOSITORY, STUDY_CONFIG
from steps.settings import load_settings

NAMES = {"posts", "task", "seed"}


@pytest.mark.parametrize(
    "text",
    [
        "posts: a.jsonl\nseed: 3\n",
        "parameters: {posts: a.jsonl, seed: 3}\n",
        "posts: a.jsonl\nparameters: {seed: 3}\n",
        "parameters: {options: {posts: a.jsonl, seed: 3}}\n",
        "posts: a.jsonl\nparameters: {options: {seed: 3}}\n",
    ],
)
def test_parameters_may_stand_at_the_top_or_under_parameters(file: Callable[[str], Path], text: str) -> None:
    assert read_run_file(file(text), NAMES) == RunFile({"posts": "a.jsonl", "seed": 3}, {})


def test_zenml_s_own_keys_are_kept_apart(file: Callable[[str], Path]) -> None:
    found = read_run_file(file("seed: 3\nenable_cache: false\nsteps: {ingest: {enable_cache: true}}\n"), NAMES)
    assert found == RunFile({"seed": 3}, {"enable_cache": False, "steps": {"ingest": {"enable_cache": True}}})


def test_an_empty_file_sets_nothing(file: Callable[[str], Path]) -> None:
    assert read_run_file(file("# all as it is\n"), NAMES) == RunFile({}, {})


def test_what_is_zenml_s_own_is_what_zenml_reads() -> None:
    from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

    assert {*ZENML_KEYS, "parameters"} == set(PipelineRunConfiguration.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("post: a.jsonl\n", "post: unknown key: remove it or correct its name; options are posts, seed, task"),
        ("parameters: {post: a.jsonl}\n", r"parameters\.post: unknown key: remove it or correct its name"),
        ("seed: 1\nparameters: {seed: 2}\n", "seed stands at the top level and under parameters: keep one"),
        ("parameters: {options: {post: a.jsonl}}\n", r"parameters\.options\.post: unknown key"),
        ("parameters: {seed: 2, options: {seed: 2}}\n", r"seed stands under parameters and under parameters\.options"),
        ("options: {seed: 2}\n", "options: unknown key"),
        ("- posts\n", "a mapping of options was expected, found list"),
        ("parameters: [seed]\n", "parameters: a mapping was expected, found list"),
        ("seed: [1\n", "cannot be read as YAML: .*line 2"),
    ],
)
def test_a_config_that_is_wrong_is_named_with_its_key(file: Callable[[str], Path], text: str, message: str) -> None:
    path = file(text)
    with pytest.raises(ConfigError, match=f"(?s)config {path}: {message}"):
        read_run_file(path, NAMES)


def test_a_config_that_is_not_text_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read as YAML"):
        read_run_file(tmp_path / "binary.yaml", NAMES)
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        read_run_file(tmp_path / "gone.yaml", NAMES)


def test_a_command_takes_the_file_of_any_pipeline(file: Callable[[str], Path]) -> None:
    assert read_options(None) == {}
    assert read_options(file("parameters: {annotate: {max_cost: 5}}\n")) == {"annotate": {"max_cost": 5}}
    assert read_options(STUDY_CONFIG) == {"sample": {"gold_share": 1.0, "clips": 0}}, (
        "the section study is the study's alone"
    )


def test_a_wrong_option_of_scoring_is_named_by_a_command_too(file: Callable[[str], Path]) -> None:
    assert read_options(file("seed: 1\nscoring: {posts: m.jsonl, engine: ray}\n")) == {"seed": 1}
    with pytest.raises(ConfigError, match=r"run\.yaml: scoring\.engine: .*'local' or 'ray'"):
        read_options(file("scoring: {engine: spark}\n"))


def test_a_wrong_option_of_the_study_is_named_by_a_command_too(file: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: study\.seed: unknown key"):
        read_options(file("study: {seed: 0}\n"))


def test_reading_a_run_file_needs_no_zenml() -> None:
    code = "import sys, pipelines.config; sys.exit('zenml' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_who_is_told_is_read_from_a_config_whose_other_options_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for text in (
        "post: gone.jsonl\nnotify: {command: mail me}\n",
        "parameters: {post: gone.jsonl, notify: {command: mail me}}\n",
        "parameters: {options: {notify: {command: mail me}}}\n",
    ):
        path.write_text(text)
        assert load_notify(path).model_dump() == {"webhook": None, "command": "mail me"}
    path.write_text("posts: mine.jsonl\n")
    assert load_notify(path) == load_notify(None) == load_settings({}).notify


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("notify: {mail: me}", "notify.mail: unknown key"),
        ("notify: {webhook: hooks}", "notify.webhook: "),
        ("notify: me", "notify: "),
        ("- a", "a mapping of options was expected, found list"),
        ("a: [", "cannot be read as YAML"),
        (None, "no such file"),
    ],
)
def test_a_config_that_does_not_say_who_is_told_is_named(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_notify(path)
    assert str(error.value).startswith(f"config {path}: ")
    assert expected in str(error.value)
