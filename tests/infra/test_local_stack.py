from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
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
    require_active,
    tracking_uri,
    unregister,
    write_stamp,
)
from model.errors import ConfigError
from steps.locks import locked
from steps.paths import REPOSITORY
from tests.support.zenml import zenml_of_its_own

RAW: dict[str, Any] = yaml.safe_load(LOCAL_STACK.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def _zenml(made_zenml: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with zenml_of_its_own(tmp_path_factory.mktemp("zenml"), made_zenml):
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


def test_a_set_up_waits_for_another_one_says_so_and_ends_by_a_signal_in_one_line(tmp_path: Path) -> None:
    environment = os.environ | {"AGENTPS_HOME": str(tmp_path / "home"), "ZENML_CONFIG_PATH": str(tmp_path / "zenml")}
    with locked(tmp_path / "home" / "locks" / "set-up.lock"):
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.local_stack"],
            cwd=REPOSITORY,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith(f"Waiting for another set-up of the same home: it is held by process {os.getpid()} on ")
        process.terminate()
        assert process.communicate(timeout=120)[1] == "\nEnded by SIGTERM\n"
    assert process.returncode == 143


def test_a_run_refuses_the_stack_of_another_home_and_takes_one_that_the_user_made(
    clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.register()
    monkeypatch.chdir(clone.repository)
    client = clone.client
    require_active(clone.home)
    other = tmp_path / "other"
    expected = f"active stack is {clone.stack.name}, but the home {other} has .* run `make setup`"
    with pytest.raises(ConfigError, match=expected):
        require_active(other)
    client.activate_stack("default")
    with pytest.raises(ConfigError, match="active stack is default"):
        require_active(clone.home)
    monkeypatch.setenv("ZENML_ACTIVE_STACK_ID", "0")
    with pytest.raises(ConfigError, match="unset ZENML_ACTIVE_STACK_ID"):
        require_active(clone.home)
    monkeypatch.delenv("ZENML_ACTIVE_STACK_ID")
    parts = {key: parts[0].id for key, parts in client.active_stack_model.components.items()}
    client.create_stack("mine", parts)
    client.activate_stack("mine")
    require_active(clone.home)


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


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("nonsense://ann:hunter2-22@host", "nonsense://***@host: not an address that MLflow knows"),
        ("ann:hunter2-22@host/x", "***@host/x: not an address that MLflow knows"),
        ("http//host:5000", "http//host:5000: not an address that MLflow knows"),
        ("http://ann:hunter2-22@host:port/", "http://***@host:port/: https://HOST:PORT or"),
        ("http://ann:hunter2-22/x@host/", "http://***@host/: https://HOST:PORT or"),
        ("http://", "it names no host"),
        ("http://ann:hunter2-22@127.0.0.1:9", "http://***@127.0.0.1:9: nothing answers"),
        ("postgresql+psycopg2://ann:hunter2-22@127.0.0.1:9/x", "***@127.0.0.1:9/x: nothing answers"),
    ],
)
def test_an_address_of_mlflow_that_cannot_be_is_told_at_once_and_without_secrets(
    uri: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError) as refused:
        tracking_uri(tmp_path)
    assert str(refused.value).startswith("MLFLOW_TRACKING_URI ")
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_an_address_of_mlflow_that_can_be_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for uri in (f"http://127.0.0.1:{server.getsockname()[1]}", "sqlite:////x/y.db", "file:///x", str(tmp_path)):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            assert tracking_uri(tmp_path) == uri


def _set_up(clone: Clone, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What set-up says of a fault: one line, and exit code 1."""
    monkeypatch.setattr("steps.edge._PATIENCE", 0.1)
    monkeypatch.setattr("infra.local_stack.REPOSITORY", clone.repository)
    monkeypatch.setenv("AGENTPS_HOME", str(clone.home))
    with suppress(OSError):
        (clone.home / "local-stack.stamp").unlink()
    capsys.readouterr()
    assert main([]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20_000])


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of_another'")
        connection.commit()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut, r"MLflow's database, \S+ projects/\S+/mlflow.db: .*bring back a copy, or .*: `mv '"),
        (
            lambda path: (path.unlink(), path.mkdir()),
            r"mlflow.db: unable to open database file: give yourself the right",
        ),
        (lambda path: path.write_bytes(b"no database" * 1000), r"mlflow.db: file is not a database: bring back a copy"),
        (_foreign, r"database schema \(found version of_another, but expected"),
    ],
)
def test_a_broken_database_is_told_in_one_line_that_names_it(
    clone: Clone,
    spoil: Callable[[Path], None],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(clone.stack.mlflow_db)
    assert re.search(said, _set_up(clone, capsys, monkeypatch))


def test_a_database_that_another_process_holds_is_told(
    clone: Clone, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(clone.stack.mlflow_db, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert "mlflow.db: another process holds it: wait" in _set_up(clone, capsys, monkeypatch)


@pytest.mark.parametrize("place", ["/proc/agentps", "/dev/null", "/dev/null/home"])
def test_a_home_that_cannot_be_written_is_told(
    place: str, clone: Clone, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone.home = Path(place)
    said = _set_up(clone, capsys, monkeypatch)
    assert re.search(f"^error: {place}.*: set AGENTPS_HOME, now {place}, to a folder in which you may write$", said)
