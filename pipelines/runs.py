"""Which runs this home has going, and the end of those whose process was killed.

A run holds a lock while it goes. Whoever finds such a lock free knows that its process is gone, also after the machine
was switched off, and by no number of a process that may be another's by now.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from zenml.client import Client
from zenml.logger import get_logger
from zenml.models import PipelineRunResponse
from zenml.orchestrators.publish_utils import publish_failed_pipeline_run, publish_failed_step_run
from zenml.stack import Stack

from steps.locks import Timeout, holder, locked

logger = get_logger(__name__)

#: A run's lock; a file system adds files of its own (.nfs…).
_RUN = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _folder(home: Path) -> Path:
    return home / "locks" / "runs"


@contextmanager
def going(run: UUID, home: Path) -> Iterator[None]:
    """Around a run that goes in this process."""
    path = _folder(home) / str(run)
    fresh = path.with_suffix(".new")
    with locked(fresh):
        fresh.rename(path)  # whoever finds it finds it held
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def close_killed(home: Path) -> None:
    """Close the runs of this home that were started on this machine and whose process is gone."""
    for path in sorted(_folder(home).glob("*")):
        if not _RUN.fullmatch(path.name) or not path.is_file():
            continue
        who = holder(path)
        if who is not None and not who.is_of_this_machine:
            continue  # whether a lock reaches over machines, nobody knows
        try:
            with locked(path, wait=False):
                run = _find(UUID(path.name))
                if run is not None and not run.status.is_finished:
                    close(run.id)
                    logger.warning("Closed the run %s: %s is gone", run.name, who or "its process")
                path.unlink()
        except Timeout:
            continue  # it goes


def _find(run_id: UUID) -> PipelineRunResponse | None:
    try:
        return Client().get_pipeline_run(run_id)
    except KeyError:  # somebody deleted it
        return None


def close(run_id: UUID) -> None:
    """Say in ZenML and MLflow that a run was cut off."""
    run = _find(run_id)
    if run is None or run.status.is_successful:
        return
    client = Client()
    for step in client.list_run_steps(pipeline_run_id=run_id, size=100).items:
        if not step.status.is_finished:
            publish_failed_step_run(step.id)
    if not client.get_pipeline_run(run_id).status.is_finished:
        publish_failed_pipeline_run(run_id)
    _close_in_mlflow(run)


def _close_in_mlflow(run: PipelineRunResponse) -> None:
    """Between two steps of a run MLflow takes it for finished: ZenML ends it after each, and opens it again."""
    tracker: Any = Stack.from_model(run.stack).experiment_tracker if run.stack else None
    if tracker is None or tracker.flavor != "mlflow" or run.pipeline is None:
        return
    import mlflow

    while mlflow.active_run() is not None:
        mlflow.end_run("KILLED")
    found = tracker.get_run_id(experiment_name=run.pipeline.name, run_name=run.name)
    if found is not None:
        mlflow.start_run(run_id=found)
        mlflow.end_run("KILLED")
