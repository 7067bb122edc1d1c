from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import mlflow
import pytest
import yaml
from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.enums import StackComponentType

from infra.local_stack import (
    LOCAL_STACK,
    LocalStack,
    is_current,
    load_stack,
    main,
    register,
    unregister,
    write_stamp,
)
from model.errors import ConfigError
from steps.paths import REPOSITORY
from tests.support.zenml import zenml_of_its_own

RAW: dict[str, Any] = yaml.safe_load(LOCAL_STACK.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def _zenml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with zenml_of_its_own(tmp_path_factory.mktemp("zenml")):
        yield


class Clone:
    """A repository and its home, in folders of their own."""

    def __init__(self, folder: Path) -> None:
        self.repository, self.home = folder / "clone", folder / "clone" / ".agentps"
        self.home.mkdir(parents=True)
        self.stack = load_stack(LOCAL_STACK, self.home)

    def register(self, stack: LocalStack | None = None) -> None:
        register(stack or self.stack, self.repository)
        write_stamp(stack or self.stack, self.repository, self.home)

    @property
    def client(self) -> Client:
        client = Client()
        client.activate_root(self.repository)
        return client

    @property
    def is_current(self) -> bool:
        return is_current(self.stack, self.repository, self.home)

    def ids(self) -> dict[str, UUID]:
        return {key.value: parts[0].id for key, parts in self.client.active_stack_model.components.items()}


@pytest.fixture(scope="module")
def mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An MLflow database without experiments. MLflow takes seconds to make one: the clones get copies."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    assert mlflow.get_experiment_by_name("agentps_training") is None
    yield path
    mlflow.set_tracking_uri(before)


@pytest.fixture
def clone(_zenml: None, mlflow_db: Path, tmp_path: Path) -> Clone:
    clone = Clone(tmp_path / "my projects")  # a space in the path is nothing special
    shutil.copy(mlflow_db, clone.stack.mlflow_db)
    return clone


def test_the_shipped_stack_keeps_everything_in_the_home(tmp_path: Path) -> None:
    stack = load_stack(LOCAL_STACK, tmp_path)
    for place in (stack.artifact_store.path, stack.mlflow_db, stack.experiments.artifact_location):
        assert Path(place).is_relative_to(tmp_path)


def test_the_name_is_the_homes_own() -> None:
    one, other = (load_stack(LOCAL_STACK, Path(home)).name for home in ("/a/.agentps", "/b/.agentps"))
    assert one != other
    assert one == load_stack(LOCAL_STACK, Path("/a/.agentps")).name
    assert one.startswith("agentps-local-")
    assert len(one) == len("agentps-local-") + 6


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"colour": "red"}, "colour: unknown key"),
        ({"experiments": {"names": ["x"]}}, "experiments.artifact_location: is missing"),
        ({"orchestrator": {"flavor": "kubernetes"}}, "orchestrator.flavor:"),
        ({"artifact_store": {"flavor": "local", "path": "artifacts"}}, "artifact_store.path:"),
        ({"artifact_store": {"flavor": "local", "path": "/a", "size": 3}}, "artifact_store.size: unknown key"),
        ({"experiment_tracker": {"flavor": "mlflow", "tracking_uri": "file:/a"}}, "experiment_tracker.tracking_uri:"),
    ],
)
def test_a_broken_stack_file_names_the_key(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(yaml.safe_dump(RAW | change), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_stack(path, tmp_path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


def test_a_missing_stack_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_stack(tmp_path / "nowhere.yaml", tmp_path)


def test_a_home_that_a_database_uri_cannot_hold_ends_in_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("AGENTPS_HOME", str(tmp_path / "what?"))
    assert main([]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: AGENTPS_HOME ")
    assert captured.err.count("\n") == 1


def test_registering_activates_the_stack_for_its_clone_only(clone: Clone) -> None:
    clone.register()
    assert clone.client.active_stack_model.name == clone.stack.name
    assert GlobalConfiguration().get_active_stack_id() != clone.client.active_stack_model.id
    tracker = clone.client.active_stack.experiment_tracker
    assert tracker is not None
    assert tracker.config.tracking_uri == clone.stack.experiment_tracker.tracking_uri
    assert clone.client.active_stack.artifact_store.path == f"{clone.home}/artifacts"


def test_registering_again_changes_nothing(clone: Clone) -> None:
    clone.register()
    before = clone.ids(), clone.client.active_stack_model.id
    clone.register()
    assert (clone.ids(), clone.client.active_stack_model.id) == before


def test_a_changed_path_updates_the_component_in_place(clone: Clone, tmp_path: Path) -> None:
    clone.register()
    before = clone.ids()
    (tmp_path / "elsewhere").mkdir()
    store = clone.stack.artifact_store.model_copy(update={"path": str(tmp_path / "elsewhere")})
    clone.register(clone.stack.model_copy(update={"artifact_store": store}))
    assert clone.ids() == before
    assert clone.client.active_stack.artifact_store.path == str(tmp_path / "elsewhere")


def test_a_component_that_the_user_took_out_of_the_stack_is_put_back(clone: Clone) -> None:
    clone.register()
    before = clone.ids()
    default = clone.client.get_stack_component(StackComponentType.ORCHESTRATOR, "default")
    clone.client.update_stack(component_updates={StackComponentType.ORCHESTRATOR: default.id})
    assert clone.ids() != before
    clone.register()
    assert clone.ids() == before


def test_a_second_clone_leaves_the_first_ones_stack_alone(clone: Clone, mlflow_db: Path, tmp_path: Path) -> None:
    clone.register()
    first = clone.ids()
    second = Clone(tmp_path / "second")
    shutil.copy(mlflow_db, second.stack.mlflow_db)
    second.register()
    assert not set(second.ids().values()) & set(first.values())
    assert clone.client.active_stack_model.name == clone.stack.name
    assert clone.ids() == first
    assert clone.is_current
    assert second.is_current


def test_deleted_artifacts_get_a_new_store_so_that_no_cached_step_points_to_them(clone: Clone) -> None:
    clone.register()
    before = clone.ids()
    Path(clone.stack.artifact_store.path).rmdir()
    assert not clone.is_current
    clone.register()
    assert clone.ids()["artifact_store"] != before["artifact_store"]
    assert Path(clone.stack.artifact_store.path).is_dir()


def test_a_foreign_component_of_the_same_name_is_refused(clone: Clone) -> None:
    clone.client.create_stack_component(clone.stack.name, "local_docker", StackComponentType.ORCHESTRATOR, {})
    with pytest.raises(ConfigError, match="has the flavor local_docker, local was expected"):
        clone.register()


def test_the_experiment_keeps_its_artifacts_in_the_home(clone: Clone) -> None:
    clone.register()
    mlflow.set_tracking_uri(clone.stack.experiment_tracker.tracking_uri)
    with mlflow.start_run(experiment_id=mlflow.get_experiment_by_name("agentps_training").experiment_id):
        mlflow.log_text("hello", "note.txt")
    assert [path.name for path in (clone.home / "mlartifacts").rglob("note.txt")] == ["note.txt"]


def test_an_experiment_that_keeps_its_artifacts_elsewhere_is_refused(clone: Clone) -> None:
    mlflow.set_tracking_uri(clone.stack.experiment_tracker.tracking_uri)
    mlflow.create_experiment("agentps_training", artifact_location="/old/place")
    with pytest.raises(ConfigError, match="/old/place"):
        clone.register()


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(clone: Clone) -> None:
    clone.register()
    found = mlflow.get_experiment_by_name("agentps_training")
    mlflow.delete_experiment(found.experiment_id)
    with pytest.raises(ConfigError, match="was deleted: restore it with") as refused:
        clone.register()
    command = str(refused.value).rpartition("`")[0].rpartition("`")[2]  # pasted as it is, in a folder of any name
    path = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": "sqlite:////nowhere/x",
    }
    subprocess.run(["bash", "-c", command], cwd=REPOSITORY.parent, env=os.environ | path, check=True)
    clone.register()


def test_the_stamp_holds_until_the_user_activates_another_stack(clone: Clone) -> None:
    assert not clone.is_current
    clone.register()
    assert clone.is_current
    clone.client.activate_stack("default")
    assert not clone.is_current
    clone.register()
    assert clone.is_current
    assert clone.client.active_stack_model.name == clone.stack.name


def test_a_stack_deleted_from_another_directory_is_registered_again(clone: Clone, tmp_path: Path) -> None:
    clone.register()
    other = Clone(tmp_path / "other")
    Client.initialize(other.repository)
    other.client.delete_stack(clone.stack.name, recursive=True)
    assert not clone.is_current
    clone.register()
    assert clone.client.active_stack_model.name == clone.stack.name


@pytest.mark.parametrize("lost", ["mlflow.db", "local-stack.stamp"])
def test_a_lost_file_makes_the_stamp_void(clone: Clone, lost: str) -> None:
    clone.register()
    (clone.home / lost).unlink()
    assert not clone.is_current


def test_a_damaged_stamp_is_void(clone: Clone) -> None:
    clone.register()
    (clone.home / "local-stack.stamp").write_text("half of it")
    assert not clone.is_current


def test_other_zenml_settings_make_the_stamp_void(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    clone.register()
    monkeypatch.setenv("ZENML_STORE_URL", "https://zenml.example.org")
    assert not clone.is_current


def test_with_nothing_to_do_neither_zenml_nor_mlflow_is_imported(clone: Clone) -> None:
    clone.register()
    code = (
        "import sys\nfrom pathlib import Path\nfrom infra.local_stack import LOCAL_STACK, is_current, load_stack\n"
        f"clone, home = Path({str(clone.repository)!r}), Path({str(clone.home)!r})\n"
        "assert is_current(load_stack(LOCAL_STACK, home), clone, home)\n"
        "assert not {'zenml', 'mlflow', 'torch'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_removing_takes_the_stack_and_its_components_and_leaves_the_files(clone: Clone) -> None:
    clone.register()
    assert unregister(clone.stack, clone.repository)
    assert clone.client.active_stack_model.name == "default"
    assert clone.client.list_stacks(name=clone.stack.name).total == 0
    assert clone.client.list_stack_components(name=clone.stack.name).total == 0
    assert clone.stack.mlflow_db.is_file()
    assert not unregister(clone.stack, clone.repository)


def test_a_stack_that_is_active_everywhere_is_not_removed(clone: Clone) -> None:
    clone.register()
    stack = clone.client.active_stack_model
    config = GlobalConfiguration()
    before = config.active_stack_id
    config.set_active_stack(stack)
    try:
        with pytest.raises(ConfigError, match="zenml stack set default"):
            unregister(clone.stack, clone.repository)
    finally:
        config.active_stack_id = before


def test_the_environments_python_reports_nothing_unless_told_to() -> None:
    code = (
        f"import os, site; site.addsitedir({str(REPOSITORY / 'infra')!r})\n"
        "names = ['ZENML_ANALYTICS_OPT_IN', 'MLFLOW_DISABLE_TELEMETRY', 'DO_NOT_TRACK', 'GX_ANALYTICS_ENABLED']\n"
        "print(*(os.environ[name] for name in names))\n"
    )
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    for chosen, expected in (({}, "false true true false"), ({"DO_NOT_TRACK": "false"}, "false true false false")):
        output = subprocess.check_output([sys.executable, "-c", code], env=environment | chosen, text=True)
        assert output.split() == expected.split()
