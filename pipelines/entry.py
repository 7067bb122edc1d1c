"""What stands between `zenml pipeline run` and a pipeline: the config file is checked, errors become one message."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml
from zenml.config.pipeline_run_configuration import PipelineRunConfiguration
from zenml.enums import ExecutionMode
from zenml.integrations.integration import Integration
from zenml.integrations.pytorch import PytorchIntegration
from zenml.integrations.sklearn import SklearnIntegration
from zenml.pipelines.pipeline_definition import Pipeline

from model.errors import AgentPSError, ConfigError
from pipelines import importing
from pipelines.console import quieten
from steps.paths import home

quieten()
# ZenML asks which package a table's class is from whenever a step returns one, and this reads the file lists of all
# packages: half a second, with the same answer.
importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)


def _activate_if_imported(integration: type[Integration], library: str) -> None:
    """Have ZenML activate an integration, whose materializers import its library, only where a step has imported it.

    ZenML activates whatever is installed when it compiles a pipeline. A step that returns the library's objects names
    their class in its signature, and so has imported it by then.
    """
    is_installed = integration.check_installation
    integration.check_installation = lambda: library in sys.modules and is_installed()  # type: ignore[method-assign]


_activate_if_imported(PytorchIntegration, "torch")
_activate_if_imported(SklearnIntegration, "sklearn")

_PARAMETERS = "parameters"


class CheckedPipeline(Pipeline):
    """A pipeline whose config file may name parameters at its top level, and no unknown keys.

    ZenML reads parameters from under `parameters:` and silently ignores any other unknown key of the
    file. Here `posts: my/posts.jsonl` alone is enough, and a typing mistake is an error.
    """

    def __init__(
        self,
        *,
        name: str,
        entrypoint: Callable[..., None],
        check: Callable[[dict[str, Any], str], object],
        idle: Callable[[dict[str, Any]], str | None] = lambda parameters: None,
    ):
        """
        Args:
            check: gets the file's parameters and its name; it raises an AgentPSError where a value is wrong.
            idle: gets the parameters; the line that says why there is nothing to do, before any step is imported.
        """

        @functools.wraps(entrypoint)
        def importing_steps(*args: Any, **kwargs: Any) -> None:
            with importing():
                entrypoint(*args, **kwargs)

        # ZenML's default goes on after a failure, and forgets the error that was raised
        super().__init__(name=name, entrypoint=importing_steps, execution_mode=ExecutionMode.FAIL_FAST)
        self._check, self._idle = check, idle

    def with_options(self, *args: Any, **kwargs: Any) -> Pipeline:
        parameters: dict[str, Any] = {}
        try:
            if kwargs.get("config_path"):
                path = Path(kwargs["config_path"])
                config = check_run_config(path, set(self._parameter_names()))
                parameters = config[_PARAMETERS]
                self._check(parameters, f"config {path}")
                kwargs["config_path"] = str(_write(config))
            if (line := self._idle(parameters)) is not None:
                click.echo(f"{self.name}: {line}")
                raise click.exceptions.Exit(0)
        except AgentPSError as error:
            raise click.ClickException(str(error)) from error
        return super().with_options(*args, **kwargs)

    def _parameter_names(self) -> list[str]:
        return list(inspect.signature(self.entrypoint).parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except AgentPSError as error:  # the edge: a message and an exit code instead of a traceback
            raise click.ClickException(str(error)) from error


def check_run_config(path: Path, parameters: set[str]) -> dict[str, Any]:
    """The content of a config file in ZenML's own form: our parameters moved under `parameters:`.

    Raises:
        ConfigError: the file is missing, no YAML mapping, or has an unknown key.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"config {path}: no such file: give a path relative to the working directory, or absolute"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config {path}: cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"config {path}: a mapping of options was expected, found {type(raw).__name__}")
    nested = raw.get(_PARAMETERS) or {}
    if not isinstance(nested, dict):
        raise ConfigError(f"config {path}: {_PARAMETERS}: a mapping was expected, found {type(nested).__name__}")
    ours = {key: value for key, value in raw.items() if key in parameters}
    for key in raw:
        if key not in parameters and key not in PipelineRunConfiguration.model_fields:
            raise ConfigError(_unknown(path, str(key), parameters))
    for key in nested:
        if key not in parameters:
            raise ConfigError(_unknown(path, f"{_PARAMETERS}.{key}", parameters))
        if key in ours:
            raise ConfigError(f"config {path}: {key} stands at the top level and under {_PARAMETERS}: keep one")
    return {key: value for key, value in raw.items() if key not in parameters} | {_PARAMETERS: {**nested, **ours}}


def _unknown(path: Path, key: str, parameters: set[str]) -> str:
    options = ", ".join(sorted(parameters))
    return f"config {path}: {key}: unknown key: remove it or correct its name; options are {options}"


def _write(config: dict[str, Any]) -> Path:
    text = yaml.safe_dump(config, sort_keys=True, allow_unicode=True)
    target = home() / "work" / "configs" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target
