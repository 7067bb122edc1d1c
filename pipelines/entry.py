"""What stands between `zenml pipeline run` and a pipeline: the run file is checked, errors become one message."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml
from zenml.enums import ExecutionMode
from zenml.pipelines.pipeline_definition import Pipeline

from model.errors import AgentPSError, ImageError
from model.files import write_whole
from pipelines import importing, lost, startup
from pipelines.config import OPTIONS, PARAMETERS, RunFile, read_run_file
from steps.paths import home
from steps.settings import RunOptions, load_options

startup.prepare()
lost.prepare()


class CheckedPipeline(Pipeline):
    """A pipeline whose run file may name its options at the top level, and no unknown keys.

    ZenML reads a pipeline's parameters from under `parameters:` and silently ignores any other unknown key of the
    file. Here `posts: my/posts.jsonl` alone is enough, and a typing mistake is an error.
    """

    def __init__(
        self,
        *,
        name: str,
        entrypoint: Callable[[dict[str, Any] | None], None],
        kind: type[RunOptions],
        idle: Callable[[dict[str, Any]], str | None] = lambda options: None,
    ):
        """
        Args:
            entrypoint: gets the options, a mapping.
            kind: what they are checked against, before any step is imported.
            idle: gets the options; the line that says why there is nothing to do, before any step is imported.
        """

        @functools.wraps(entrypoint)
        def importing_steps(options: dict[str, Any] | None = None) -> None:
            with importing():
                entrypoint(options)

        # ZenML's default goes on after a failure, and forgets the error that was raised
        super().__init__(name=name, entrypoint=importing_steps, execution_mode=ExecutionMode.FAIL_FAST)
        self._kind, self._idle = kind, idle

    def with_options(self, *args: Any, **kwargs: Any) -> Pipeline:
        options: dict[str, Any] = {}
        try:
            if kwargs.get("config_path"):
                path = Path(kwargs["config_path"])
                file = read_run_file(path, self._kind.names())
                options = file.options
                load_options(self._kind, options, f"config {path}")
                kwargs["config_path"] = str(_write(file))
            if (line := self._idle(options)) is not None:
                click.echo(f"{self.name}: {line}")
                raise click.exceptions.Exit(0)
        except AgentPSError as error:
            raise click.ClickException(str(error)) from error
        return super().with_options(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except AgentPSError as error:  # the edge: a message and an exit code instead of a traceback
            if isinstance(error, ImageError):
                lost.forget_ingest(self.name)
            raise click.ClickException(str(error)) from error


def _write(file: RunFile) -> Path:
    """The run file in ZenML's own form, under a name that follows from its content."""
    config = {**file.zenml, PARAMETERS: {OPTIONS: file.options}}
    text = yaml.safe_dump(config, sort_keys=True, allow_unicode=True)
    target = home() / "work" / "configs" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    write_whole(target, text)
    return target
