"""The literal command, killed and asked to end: what it says, and what ZenML and MLflow take its runs for."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.pipelines.workspace import Workspace

#: One question at a time: there is time to be killed in.
SLOW: dict[str, Any] = {
    "sample": {"train": 300, "val": 60, "test": 60},
    "annotate": {"concurrency": 1, "retries": 0},
}


def states(workspace: Workspace, table: str) -> list[str]:
    """Of ZenML's runs or steps, in the order in which they began."""
    (database,) = (workspace.root / ".zenml").rglob("zenml.db")
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
        return [row[0] for row in connection.execute(f"SELECT status FROM {table} ORDER BY created")]


def in_mlflow(workspace: Workspace) -> list[str]:
    with closing(sqlite3.connect(f"file:{workspace.home}/mlflow.db?mode=ro", uri=True, timeout=60)) as connection:
        return [row[0] for row in connection.execute("SELECT status FROM runs ORDER BY start_time")]


@pytest.mark.pipeline
def test_a_killed_run_is_closed_by_the_next_one_which_a_signal_ends_in_one_line(workspace: Workspace) -> None:
    workspace.forget_answers()
    config = workspace.config("slow.yaml", SLOW)
    began, begun = len(states(workspace, "pipeline_run")), len(in_mlflow(workspace))

    workspace.start(workspace.command(config)).kill_when(lambda: workspace.answers >= 20)
    killed = workspace.answers
    assert states(workspace, "pipeline_run")[began:] == ["running"]
    assert in_mlflow(workspace)[begun:] == ["RUNNING"]

    second = workspace.start(workspace.command(config))
    second.wait_for(lambda: workspace.answers >= killed + 20)
    second.process.send_signal(signal.SIGTERM)
    ended = second.wait()
    assert ended.exit_code == 128 + signal.SIGTERM
    assert ended.output.splitlines()[-1] == "Ended by SIGTERM: the same command goes on from here"
    assert "Traceback" not in ended.output
    assert "Closed the run agentps_training-" in ended.output
    assert states(workspace, "pipeline_run")[began:] == ["failed", "failed"]
    assert not {"running", "initializing", "provisioning"} & set(states(workspace, "step_run"))
    assert in_mlflow(workspace)[begun:] == ["KILLED", "KILLED"]
    assert workspace.simulated_annotators() == []
    assert list((workspace.home / "locks" / "runs").iterdir()) == []
