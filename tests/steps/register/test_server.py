"""The registry on a real `mlflow server`, as a team has one: versions, aliases, history, and the files of a version."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from model.errors import CheckpointError, RegistryError
from model.settings import BackboneSettings
from steps.promote.gate import Decision
from steps.register import history, registry
from tests.steps.register.test_registry import PREDICTIONS, report, with_hashes_in_a_tag
from tests.support.mlflow_server import mlflow_server
from tests.support.tiny import TASK, train_settings, write_checkpoint, write_images

NAME, TARGET = "agentps-small", "production"


@pytest.fixture(scope="module")
def url(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server"), empty_database) as found:
        yield found


@pytest.fixture
def server(url: str, agentps_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tracking and registry are the server, as a step finds them, with a run open."""
    before = mlflow.get_tracking_uri()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):  # MLflow sets them too: here they are put back
        monkeypatch.setenv(name, url)
    mlflow.set_tracking_uri(url)
    mlflow.set_registry_uri(url)
    known = mlflow.get_experiment_by_name("tests")
    # not by `set_experiment`: later tests of this process, on other databases, would look for it
    with mlflow.start_run(experiment_id=known.experiment_id if known else mlflow.create_experiment("tests")):
        yield
    mlflow.set_tracking_uri(before)
    mlflow.set_registry_uri("")


@pytest.fixture
def line(server: None, tmp_path: Path, tiny_backbone: BackboneSettings) -> list[registry.RegisteredVersion]:
    """Two versions of the model, with all that a version carries."""
    example = pd.DataFrame({"title": ["a"], "text": [""], "images": [[str(p) for p in write_images(tmp_path, 1)]]})
    made = []
    for seed in (0, 1):
        settings = train_settings(variant="agentps_answers", seed=seed)
        checkpoint = write_checkpoint(tmp_path / f"checkpoint-{seed}", tiny_backbone, settings)
        version, _ = registry.register(
            checkpoint, report(f1=0.5 + seed / 10), PREDICTIONS, TASK, example, name=NAME, tags={}
        )
        history.challenge(version)
        made.append(version)
    return made


def said(verdict: str) -> Decision:
    return Decision.model_validate({"verdict": verdict, "reason": f"the gate: {verdict}"})


def test_versions_are_registered_promoted_published_rolled_back_and_read_back(
    line: list[registry.RegisteredVersion], agentps_home: Path
) -> None:
    client = MlflowClient()
    first, second = line
    assert (first.version, second.version) == ("1", "2")
    history.settle(first, lambda _: said("promoted"))
    assert history.publish(NAME, TARGET) == "1"
    between = datetime.now(UTC)
    history.settle(second, lambda _: said("needs a person"))
    history.approve(second, "looked at it")
    assert history.publish(NAME, TARGET) == "2"
    assert registry.get(TARGET, "2").source == f"models:/{NAME}/2"
    aliases = {alias: str(version) for alias, version in client.get_registered_model(NAME).aliases.items()}
    assert aliases == {"champion": "2", "previous": "1", "challenger": "2"}

    state = history.rollback(NAME, "it flags holidays")
    assert state.aliases == {"champion": "1", "previous": "2", "challenger": "2"}
    kinds = [(entry.move.kind, entry.done, entry.counts) for entry in state.entries]
    assert kinds == [
        (kind, True, True)
        for kind in ("registered", "registered", "promoted", "needs a person", "by a person", "rollback")
    ]
    assert [entry.number for entry in state.entries] == [1, 2, 3, 4, 5, 6]
    assert (state.on(between), state.on(datetime.now(UTC))) == ("1", "1")
    assert registry.tags_of(second)["agentps.because"] == "looked at it"
    assert list((agentps_home / "locks").glob("*.lock")), "processes of one machine take turns by a file of their own"

    client.set_registered_model_alias(NAME, "champion", "2")
    assert history.sync(NAME).entries[-1].move.kind == "by hand"


def test_the_files_of_a_version_come_through_the_server_and_are_held_to_their_hashes(
    line: list[registry.RegisteredVersion], agentps_home: Path
) -> None:
    version = line[1]
    directory = registry.fetch(version, TASK)
    assert registry.report_of(version).metrics["f1"].value == pytest.approx(0.6)
    pd.testing.assert_frame_equal(registry.predictions_of(version), PREDICTIONS, check_dtype=False)
    assert registry.profile_of(version) is None
    assert (directory / "checkpoint.json").is_file()
    found = registry.find_by_content(NAME, registry.tags_of(version)["agentps.content"])
    assert found == registry.get(NAME, version.version) == version, "what a call returns does not depend on the call"
    shutil.rmtree(agentps_home / "versions")
    registry.fetch(version)
    kept = registry.tags_of(version)["agentps.manifest"][:32]
    assert (agentps_home / "versions" / kept / "files.json").is_file(), "kept by its manifest, which is read from there"
    with_hashes_in_a_tag(version, {"checkpoint.json": "00"})
    with pytest.raises(CheckpointError, match=r"checkpoint\.json has sha256"):
        registry.fetch(version)
    for garbage in ("{", "[]", '{"MLmodel": 7}'):
        with_hashes_in_a_tag(version, garbage)
        with pytest.raises(RegistryError, match=r"its tag agentps\.files leads to no mapping of files to hashes"):
            registry.fetch(version)
