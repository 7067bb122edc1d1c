"""`fine_tune.labels` in the literal command: the labels are improved in a step of its own, which is cached."""

from __future__ import annotations

import json

import pytest

from tests.pipelines.test_training import SMALL
from tests.pipelines.workspace import Workspace

pytestmark = pytest.mark.pipeline


def test_a_training_on_improved_labels_takes_a_step_more_that_is_cached_and_shows_in_the_version(
    workspace: Workspace,
) -> None:
    fine_tune = {"epochs": 1, "labels": "relabelled"}
    sample = {"train": 80, "val": 50, "test": 50}
    given = {**SMALL, "sample": sample, "fine_tune": fine_tune, "register": {"name": "improved"}}
    config = workspace.config("labels.yaml", given)
    whole = workspace.train(config)
    assert whole.exit_code == 0, whole.output
    ran = [*whole.cached, *whole.finished]
    assert ran.index("improve_labels") < ran.index("fine_tune")
    assert "Labels improved by relabelled; changed: watermark " in whole.output
    folders = [path.parent for path in workspace.home.glob("mlartifacts/**/artifacts/checkpoint/checkpoint.json")]
    said = [json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))["train"] for folder in folders]
    assert [train["labels"] for train in said].count("relabelled") == 1
    assert workspace.versions("improved") == 1
    again = workspace.train(config)
    assert again.exit_code == 0, again.output
    assert {"improve_labels", "fine_tune"} <= set(again.cached)
