"""The literal `zenml pipeline run agentps_training -c FILE` on a small sample: killed, asked to end, finished,
repeated, changed; what it says, and what ZenML and MLflow take its runs for.
"""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing
from typing import Any

import pytest

from model.task import load_task
from tests.pipelines.workspace import STEPS, Workspace

pytestmark = pytest.mark.pipeline

POSTS = 200
SMALL: dict[str, Any] = {
    "sample": {"train": POSTS, "val": 60, "test": 60},
    # one at a time, and once: an attempt a post
    "annotate": {"concurrency": 1, "retries": 0},
    "fine_tune": {"epochs": 2},
    "evaluate": {"bootstrap": 20, "examples": 1},
    "promote": {"floor": 0.0},
}
MODEL = "agentps-ucc"


def states(workspace: Workspace, table: str) -> list[str]:
    """Of ZenML's runs or steps, in the order in which they began."""
    (database,) = (workspace.root / ".zenml").rglob("zenml.db")
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
        return [row[0] for row in connection.execute(f"SELECT status FROM {table} ORDER BY created")]


def in_mlflow(workspace: Workspace) -> list[str]:
    with closing(sqlite3.connect(f"file:{workspace.home}/mlflow.db?mode=ro", uri=True, timeout=60)) as connection:
        return [row[0] for row in connection.execute("SELECT status FROM runs ORDER BY start_time")]


# One test: each part goes on from what the one before left, and every start of the command takes seconds.
def test_a_run_that_was_ended_is_finished_by_the_same_command_then_cached_then_only_trained_again(
    workspace: Workspace,
) -> None:
    workspace.forget_answers()
    config = workspace.config("small.yaml", SMALL)
    began, begun = len(states(workspace, "pipeline_run")), len(in_mlflow(workspace))

    # Killed in annotate: the annotator ends too, what was answered is kept.
    workspace.start(workspace.command(config)).kill_when(lambda: workspace.answers >= 20)
    killed = workspace.answers
    assert 20 <= killed < POSTS
    assert states(workspace, "pipeline_run")[began:] == ["running"]
    assert in_mlflow(workspace)[begun:] == ["RUNNING"]
    deadline = time.monotonic() + 10
    while workspace.simulated_annotators():
        assert time.monotonic() < deadline, "the simulated annotator outlived the run that started it"
        time.sleep(0.1)

    # The same command closes that run. A signal ends it in one line, and it is closed, too.
    second = workspace.start(workspace.command(config))
    second.wait_for(lambda: workspace.answers >= killed + 20)
    second.process.send_signal(signal.SIGTERM)
    ended = second.wait()
    answered = workspace.answers
    assert answered < POSTS, "it was to end in annotate"
    assert ended.exit_code == 128 + signal.SIGTERM
    assert ended.output.splitlines()[-1] == "Ended by SIGTERM: the same command goes on from here"
    assert "Traceback" not in ended.output
    assert "Closed the run agentps_training-" in ended.output
    assert states(workspace, "pipeline_run")[began:] == ["failed", "failed"]
    assert not {"running", "initializing", "provisioning"} & set(states(workspace, "step_run"))
    assert in_mlflow(workspace)[begun:] == ["KILLED", "KILLED"]
    assert workspace.simulated_annotators() == []
    assert list((workspace.home / "locks" / "runs").iterdir()) == []

    # Killed in preprocess: the rest was asked before.
    work = workspace.home / "work"
    workspace.start(workspace.command(config)).kill_when(lambda: any(work.glob("shards-*")))
    assert workspace.answers == POSTS, "one attempt a post, over the three runs"
    assert workspace.last_metrics()["annotate_asked"] == POSTS - answered

    # The same command finishes, and ends in a promotion.
    whole = workspace.train(config)
    assert whole.exit_code == 0, whole.output
    assert whole.cached == ["ingest", "annotate", "validate"]
    assert whole.finished == ["preprocess", "fine_tune", "evaluate", "register", "promote"]
    assert workspace.answers == POSTS
    assert not list(work.glob("shards-*")), "what the killed run left is removed"
    summary = whole.output[whole.output.index("precision  recall on test") :]
    assert all(f"{target}%" in summary for target in (60, 65, 70, 75, 80))
    assert f"{MODEL} version 1 is @champion (promoted: " in summary
    assert "Next: mlflow ui " in summary
    report = workspace.home / "reports" / "evaluation.html"
    assert f"Report: {report}\n" in summary
    page = report.read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html")
    expected = {f"test_recall_at_p{target}" for target in (60, 65, 70, 75, 80)}
    expected |= {"test_f1", "test_average_precision", "test_roc_auc"}
    expected |= {f"test_accuracy_{id_}" for id_ in load_task("ucc").question_ids}
    assert expected <= workspace.last_metrics().keys()
    assert workspace.versions(MODEL) == 1
    assert workspace.aliases(MODEL) == {"champion": "1", "challenger": "1"}

    # Unchanged: every step but promote, which looks at the registry, is cached.
    report.unlink()
    again = workspace.train(config)
    assert again.exit_code == 0, again.output
    assert again.cached == list(STEPS[:-1])
    assert again.finished == ["promote"]
    assert "already champion" in again.output
    assert report.read_text(encoding="utf-8") == page, "the summary names this run's report"
    assert workspace.answers == POSTS
    assert workspace.versions(MODEL) == 1

    # A training option: only training and what follows from it. Killed in the middle of it.
    config = workspace.config("other.yaml", SMALL | {"fine_tune": {"epochs": 3, "learning_rate": 5.0e-4}})
    checkpoints = "fine_tune/*/trainer/checkpoint-*/trainer_state.json"
    before = set(work.glob(checkpoints))
    # a file that is there may be empty for a moment
    workspace.start(workspace.command(config)).kill_when(
        lambda: any(path.stat().st_size for path in set(work.glob(checkpoints)) - before)
    )

    # Training is resumed. Killed in register: there is a logged model, but no version of it.
    logged = workspace.rows("mlflow.db", "logged_models")
    register = workspace.start(workspace.command(config))
    register.kill_when(lambda: workspace.rows("mlflow.db", "logged_models") > logged)
    assert register.wait().cached == ["ingest", "annotate", "validate", "preprocess"]
    assert workspace.last_metrics()["resumed_from_step"] >= 2
    assert workspace.versions(MODEL) == 1

    last = workspace.train(config)
    assert last.exit_code == 0, last.output
    assert last.cached == list(STEPS[:6])
    assert last.finished == ["register", "promote"]
    assert workspace.versions(MODEL) == 2, "exactly one version of the run that was killed twice"
    assert workspace.aliases(MODEL)["challenger"] == "2"
    assert workspace.answers == POSTS
