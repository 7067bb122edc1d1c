"""Against a real MLflow on SQLite, and a scorer in a fresh process that has nothing of this repository."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from model.checkpoint import OperatingPoints, load
from model.errors import RegistryError
from model.metrics import Calibration, OperatingPoint
from model.scorer import Scorer
from model.settings import BackboneSettings, Variant
from steps.evaluate.report import EvalReport, Metric
from steps.register import registry
from tests.support.tiny import TASK, train_settings, write_checkpoint, write_images

NAME = "agentps-small"
POINTS = {
    "p60": OperatingPoint(min_precision=0.6, threshold=0.5, recall=0.5, precision=0.7),
    "p80": OperatingPoint(min_precision=0.8, threshold=math.inf, recall=0, precision=None),
}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, without a row: making them takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An MLflow of its own, with a run open, as a step has one."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):  # MLflow sets them too: here they are put back
        monkeypatch.setenv(name, f"sqlite:///{tmp_path / 'mlflow.db'}")
    uri = mlflow.get_tracking_uri()
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_registry_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = mlflow.create_experiment("tests", artifact_location=(tmp_path / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment):
        yield tmp_path
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri("")  # none, as before: where the runs are tracked


def report(variant: Variant = "agentps_answers", f1: float = 0.75) -> EvalReport:
    return EvalReport(
        task=TASK.name,
        task_fingerprint=TASK.fingerprint,
        variant=variant,
        seed=0,
        backbone="tiny",
        annotator="human",
        n_posts=10,
        n_positive=4,
        n_unlabelled=0,
        n_val=10,
        n_val_unlabelled=0,
        metrics={"f1": Metric(value=f1, low=0.5, high=0.9), "roc_auc": Metric(value=None)},
        operating_points=POINTS,
        f1_threshold=0.5,
        calibration=Calibration(scale=1.5, bias=-0.25),
        missing_share={"bright": 0.0},
        annotated_missing_share={"bright": 0.0},
    )


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    paths = [str(path) for path in write_images(tmp_path_factory.mktemp("images"), 5)]
    return pd.DataFrame(
        {"title": ["a walk", "今天 🙂", ""], "text": ["", "#tag", "sea"], "images": [paths[:1], paths[:4], paths[3:]]}
    )


def write(directory: Path, backbone: BackboneSettings, variant: Variant = "agentps_answers", seed: int = 0) -> Path:
    return write_checkpoint(
        directory / f"checkpoint-{variant}-{seed}", backbone, train_settings(variant=variant, seed=seed)
    )


def register(
    checkpoint: Path, posts: pd.DataFrame, made: EvalReport | None = None
) -> tuple[registry.RegisteredVersion, bool]:
    return registry.register(
        checkpoint, made or report(), TASK, posts.iloc[:1], name=NAME, tags={"agentps.data": "abc"}
    )


def version_of(alias: str) -> str:
    return str(MlflowClient().get_model_version_by_alias(NAME, alias).version)


def test_the_life_of_two_versions(tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame) -> None:
    client = MlflowClient()
    assert registry.champion(NAME) is None, "an unknown model has none"
    checkpoint = write(tracking, tiny_backbone)
    first, is_new = register(checkpoint, posts)
    assert (first.version, is_new) == ("1", True)
    assert version_of("challenger") == "1"
    assert client.get_model_version(NAME, "1").tags["agentps.data"] == "abc"
    assert registry.champion(NAME) is None, "registered is not promoted"

    again, is_new = register(checkpoint, posts)
    assert (again.version, is_new) == ("1", False)
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1

    registry.promote(first, None)
    held = registry.champion(NAME)
    assert held is not None
    assert held[0].version == "1"
    assert held[1] == report(), "the report comes back as it was written, its threshold of inf too"

    second, is_new = register(write(tracking, tiny_backbone, seed=1), posts, report(f1=0.8))
    assert (second.version, is_new) == ("2", True)
    assert version_of("challenger") == "2"
    registry.promote(second, first)
    registry.set_verdict(second, {"agentps.verdict": "promoted", "agentps.gain": 0.05})
    aliases = {alias: version_of(alias) for alias in ("champion", "previous")}
    assert aliases == {"champion": "2", "previous": "1"}
    assert client.get_model_version(NAME, "2").tags["agentps.gain"] == "0.05"

    back, is_new = register(checkpoint, posts)
    assert (back.version, is_new) == ("1", False)
    assert version_of("challenger") == "1"


def test_the_same_weights_with_other_thresholds_are_another_version(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame
) -> None:
    checkpoint = write(tracking, tiny_backbone)
    register(checkpoint, posts)
    changed = report().model_copy(update={"operating_points": {"p60": POINTS["p60"]}})
    version, is_new = register(checkpoint, posts, changed)
    assert (version.version, is_new) == ("2", True)


def test_a_champion_that_this_pipeline_did_not_write_cannot_be_compared_with(tracking: Path) -> None:
    class Other(mlflow.pyfunc.PythonModel):
        def predict(self, context: object, model_input: pd.DataFrame) -> pd.DataFrame:
            return model_input

    info = mlflow.pyfunc.log_model(name="other", python_model=Other(), pip_requirements=[])
    version = mlflow.register_model(info.model_uri, NAME)
    MlflowClient().set_registered_model_alias(NAME, "champion", version.version)
    with pytest.raises(RegistryError, match=r"version 1: no report\.json in it .*move the alias `champion`"):
        registry.champion(NAME)


_SCORE = """
import pickle, sys
import mlflow
uri, names, source, target = sys.argv[1:]
mlflow.set_tracking_uri(uri)
frames = pickle.load(open(source, "rb"))
tables = {}
for name in names.split(","):
    model = mlflow.pyfunc.load_model(f"models:/{name}@challenger")
    tables[name] = [model.predict(frame) for frame in frames]
import model as package
with open(target, "wb") as file:
    pickle.dump((package.__file__, tables), file)
"""


def test_a_registered_version_scores_the_same_in_a_fresh_process_elsewhere(
    tracking: Path, tiny_backbone: BackboneSettings, posts: pd.DataFrame
) -> None:
    """Paths and bytes; a variant with answers, one of them of three classes, and one without."""
    variants: dict[str, Variant] = {"with-answers": "agentps_answers", "without": "vanilla"}
    points = OperatingPoints(calibration=report().calibration, thresholds=POINTS)
    expected: dict[str, pd.DataFrame] = {}
    for name, variant in variants.items():
        checkpoint = write(tracking, tiny_backbone, variant)
        registry.register(checkpoint, report(variant), TASK, posts.iloc[:1], name=name, tags={})
        expected[name] = Scorer(load(checkpoint), points).score(posts)
        signature = mlflow.models.get_model_info(f"models:/{name}@challenger").signature
        assert [column.name for column in signature.outputs] == expected[name].columns.tolist()
    assert "answer_kind_probability" in expected["with-answers"]
    assert expected["without"].columns.tolist() == ["score", "decision_p60", "decision_p80"]

    as_bytes = posts.assign(images=[[Path(path).read_bytes() for path in album] for album in posts["images"]])
    elsewhere = tracking / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "posts.pickle").write_bytes(pickle.dumps([posts, as_bytes]))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [mlflow.get_tracking_uri(), ",".join(variants), "posts.pickle", "tables.pickle"]
    process = subprocess.run(
        [sys.executable, "-c", _SCORE, *arguments], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert "type hint" not in process.stderr
    code, tables = pickle.loads((elsewhere / "tables.pickle").read_bytes())
    assert str(tracking / "artifacts") in code, "the code that travels with the version is the code that scores"
    for name, found in tables.items():
        assert np.ptp(expected[name]["score"]) > 0.005, "the posts must differ, or nothing is compared"
        for table in found:
            pd.testing.assert_frame_equal(table, expected[name], check_dtype=False, rtol=0, atol=1e-5)
