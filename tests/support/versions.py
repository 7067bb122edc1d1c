"""Tiny versions in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.tracking import MlflowClient

from model.settings import BackboneSettings
from steps.register import registry
from tests.steps.register.test_registry import PREDICTIONS, report
from tests.support.tiny import TASK, train_settings, write_checkpoint, write_images


@contextmanager
def registry_in(folder: Path) -> Iterator[str]:
    """MLflow's database is `mlflow.db` in the folder, and a run is open; then all is as it was before."""
    before, uri = mlflow.get_tracking_uri(), f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    experiment = mlflow.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
    try:
        with mlflow.start_run(experiment_id=experiment):
            yield uri
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri("")


def register_versions(folder: Path, backbone: BackboneSettings, name: str, count: int) -> None:
    """Versions 1, 2, … of the same weights; version 1 is the champion. A run of MLflow is open."""
    checkpoint = write_checkpoint(folder / "checkpoint", backbone, train_settings(variant="agentps_answers"))
    posts = pd.DataFrame({"title": ["a"], "text": ["b"], "images": [[str(path) for path in write_images(folder, 1)]]})
    for number in range(count):
        made = report(f1=0.7 + number / 100)
        registry.register(checkpoint, made, PREDICTIONS, TASK, posts, name=name, tags={})
    point(name, registry.CHAMPION, "1")


def point(name: str, alias: str, version: str) -> None:
    """By hand: what the service asks for is the alias."""
    MlflowClient().set_registered_model_alias(name, alias, version)
