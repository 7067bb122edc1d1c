"""What stands between `zenml pipeline run` and a pipeline: the run file is checked, errors become one message."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import yaml
from zenml.enums import ExecutionMode
from zenml.orchestrators import signal_handler
from zenml.pipelines.pipeline_definition import Pipeline
from zenml.stack import Stack

from infra.local_stack import require_active
from model.errors import ImageError
from model.files import write_whole
from pipelines import importing, lost, runs, startup
from pipelines.config import OPTIONS, PARAMETERS, RunFile, read_run_file
from steps.edge import in_one_message
from steps.lifetime import ends_by_signal
from steps.paths import home
from steps.secrets import set_apart
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
        self._locks = ExitStack()
        #: The run that has begun, and whether it goes in this process.
        self._begun: tuple[UUID, bool] | None = None

    @ends_by_signal()
    @in_one_message()
    def with_options(self, *args: Any, **kwargs: Any) -> Pipeline:
        options: dict[str, Any] = {}
        if kwargs.get("config_path") is not None:  # an empty variable of a shell must not start the default
            path = Path(kwargs["config_path"])
            file = read_run_file(path, self._kind.names())
            options = file.options
            load_options(self._kind, options, f"config {path}")
            kwargs["config_path"] = str(_write(RunFile(set_apart(options), file.zenml)))
        if (line := self._idle(options)) is not None:
            click.echo(f"{self.name}: {line}")
            raise click.exceptions.Exit(0)
        return super().with_options(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # ZenML's own handler raises an Exception, which a library takes for its own
        signal_handler._SIGNALS = ()  # type: ignore[assignment]
        with self._locks, ends_by_signal(self._last_words, self._close), in_one_message():
            try:
                require_active(home())
                runs.close_killed(home())
                return super().__call__(*args, **kwargs)
            except ImageError:
                lost.forget_ingest(self.name)
                raise

    def _get_pipeline_analytics_metadata(self, snapshot: Any, stack: Stack, run_id: UUID | None = None) -> Any:
        """ZenML calls this when it has made the run and before it starts it: nothing else is called there."""
        if run_id is not None:
            here = stack.orchestrator.flavor == "local"
            self._begun = (run_id, here)
            if here:
                self._locks.enter_context(runs.going(run_id, home()))
        return super()._get_pipeline_analytics_metadata(snapshot, stack, run_id)

    def _last_words(self) -> str:
        if self._begun is None:
            return ": no run had begun"
        run_id, here = self._begun
        return (
            ": the same command goes on from here"
            if here
            else f": the run goes on where it is. `zenml pipeline runs stop {run_id}` stops it"
        )

    def _close(self) -> None:
        if self._begun is not None and self._begun[1]:
            runs.close(self._begun[0])
            self._locks.close()


def _write(file: RunFile) -> Path:
    """The run file in ZenML's own form, under a name that follows from its content."""
    config = {**file.zenml, PARAMETERS: {OPTIONS: file.options}}
    text = yaml.safe_dump(config, sort_keys=True, allow_unicode=True)
    target = home() / "work" / "configs" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    write_whole(target, text)
    return target
