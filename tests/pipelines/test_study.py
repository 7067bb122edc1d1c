"""The literal `zenml pipeline run pipelines.agentps_study -c FILE` on few posts: killed, and finished."""

from __future__ import annotations

import json
from typing import Any

import pytest

from steps.study.records import read_records
from tests.pipelines.workspace import Workspace

pytestmark = pytest.mark.pipeline

SMALL: dict[str, Any] = {
    "sample": {"train": 60, "val": 40, "test": 40},
    "fine_tune": {"epochs": 1},
    "study": {
        "tables": ["methods"],
        "seeds": [0],
        "train_posts": [60],
        "methods": ["relabelled"],
        "gold_share": 0.3,
        "bootstrap": 10,
        "workers": 1,
        "output": "results",
    },
}
#: vanilla, people's labels, the annotator's as they are, and relabelled.
CELLS = 4


def test_a_killed_study_goes_on_where_it_was(workspace: Workspace) -> None:
    config = workspace.config("study.yaml", SMALL)
    command = workspace.command(config, "pipelines.agentps_study")
    records = workspace.root / "results" / "records.jsonl"

    workspace.start(command).kill_when(lambda: len(read_records(records)) >= 2)
    finished = read_records(records)
    assert 2 <= len(finished) < CELLS

    whole = workspace.start(command).wait()
    assert whole.exit_code == 0, whole.output
    assert whole.finished == ["study"], "the posts and their labels are those of the killed run"
    assert len(read_records(records)) == CELLS
    assert finished.items() <= read_records(records).items(), "a finished cell is not trained again"

    cells = json.loads((workspace.root / "results" / "results.json").read_text(encoding="utf-8"))
    assert [cell["table"] for cell in cells] == ["methods"] * CELLS
    text = (workspace.root / "results" / "results.md").read_text(encoding="utf-8")
    assert "Unfinished" not in text
    for cell in cells:
        assert f"{100 * cell['metrics']['recall_at_p80']:.1f}" in text
    experiment = workspace.mlflow.get_experiment_by_name("agentps_study")
    assert experiment is not None
    runs = workspace.mlflow.search_runs([experiment.experiment_id])
    assert {run.data.params.get("variant") for run in runs} > {"vanilla", "agentps_answers"}
    assert experiment.artifact_location == str(workspace.home / "mlartifacts")
