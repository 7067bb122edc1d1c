"""The step keeps its page and its figures, also where the gate ends the run; ZenML itself is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from model.errors import AnnotationError
from model.task import load_task
from steps.annotate import step
from steps.ingest.posts import read_manifest
from steps.ingest.sample import render_sample
from steps.settings import load_settings

SAMPLE = {"train": 60, "val": 2, "test": 2, "gold_share": 1.0}


@pytest.fixture
def told(agentps_home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the step logs as ZenML's metadata."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(step, "log_metadata", found.update)
    mlflow.set_tracking_uri(f"sqlite:///{agentps_home / 'mlflow.db'}")
    monkeypatch.chdir(agentps_home)  # where MLflow puts a new experiment's artifacts
    mlflow.set_experiment("annotate")  # the one that a test before has set is in another database
    return found


def annotate(**changes: Any) -> tuple[pd.DataFrame, str]:
    settings = load_settings({"sample": SAMPLE, "annotate": changes})
    task = load_task("ucc")
    posts = read_manifest(render_sample(settings.sample, step.home()), task, settings.ingest).posts
    try:
        labels, page = step.annotate.entrypoint(posts, task, settings.annotate, settings.sample)
    finally:
        mlflow.end_run()
    return labels, str(page)


def test_the_page_and_the_figures_are_kept_and_a_fatal_gate_keeps_them_too(
    told: dict[str, Any], agentps_home: Path
) -> None:
    labels, page = annotate()
    assert len(labels) == 60
    assert (told["asked"], told["cost"]) == (60, 0.0)
    # GPT-4o's accuracies, on sixty posts
    assert told["accuracy_watermark"] > told["accuracy_text_relevant"] > 0.3
    assert "Agreement with people" in page
    kept = agentps_home / "reports" / "annotation.html"
    assert kept.read_text() == page
    kept.unlink()
    with pytest.raises(AnnotationError, match="not good enough to train on: question"):
        annotate(min_agreement=0.99, on_low_agreement="fail")
    assert "Below the floor" in kept.read_text()
    assert told["asked"] == 0

    dropped, _ = annotate(min_agreement={"text_relevant": 0.99}, on_low_agreement="drop")
    assert dropped["text_relevant"].isna().all()
    assert dropped["watermark"].notna().any()
