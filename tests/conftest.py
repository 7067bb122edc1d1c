"""What every test gets: no telemetry, one thread a worker, and a home of its own where it asks for one."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from zenml.client import Client

    from model.data import Shards
    from model.settings import BackboneSettings
    from tests.support.postgresql import Server

# Before any library is imported, and for the subprocesses of the tests too.
os.environ.update(
    ZENML_ANALYTICS_OPT_IN="false",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    GX_ANALYTICS_ENABLED="false",
    OMP_NUM_THREADS="1",  # pytest-xdist runs one worker a core: torch's own threads would only wait for each other
)

# On a GPU the same sums are added in other orders; which tests can be asked to run there, CONTRIBUTING.md says.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# Where a shell or an image forbids it, each of the hundreds of processes that the tests start would compile all anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

#: A file system in memory.
_MEMORY = Path("/dev/shm")
#: Bytes that must be free in it: several times what all tests were seen to have there at once, half a gigabyte.
_ROOM = 4 << 30


def _in_memory() -> bool:
    """Whether pytest's temporary folders can be in memory."""
    if not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < _ROOM:
        return False
    return not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC  # some tests write a command and run it


# On a disk a database waits at each of its writes, and a rendered sample at each of its files. No test can see whether
# what was written would outlast a loss of power.
if _in_memory():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# Who started the tests may ignore these (nohup, a shell's `&`), and what the tests start would too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes runs where its marker is asked for."""
    if "ray" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("ray") is not None:
                item.add_marker(pytest.mark.skip(reason="takes minutes: `pytest -m ray` runs it"))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Workers import all steps at once, and each has ZenML write its settings: none may read half a file."""
    if not hasattr(session.config, "workerinput"):
        return (yield)
    from zenml.utils import yaml_utils

    from model.files import replacing

    write = yaml_utils.write_yaml

    def write_whole(file_path: str, contents: dict[str, object], sort_keys: bool = True) -> None:
        with replacing(Path(file_path)) as part:
            write(str(part), contents, sort_keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_utils, "write_yaml", write_whole)
        return (yield)


def pytest_collection_finish() -> None:
    """Python's garbage collector need not look through what all tests' modules have imported, a million objects: that
    takes nearly a second, and each training asks for it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def agentps_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$AGENTPS_HOME`."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("AGENTPS_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> BackboneSettings:
    """A tiny backbone made in a second: few texts, and a tower that has seen a hundred images."""
    from model.settings import BackboneSettings
    from model.tiny import build_tiny
    from steps.ingest.sample import sample_texts, single_images

    images, attributes = single_images(128, seed=0)
    directory = tmp_path_factory.mktemp("backbone") / "tiny"
    return BackboneSettings(name=str(build_tiny(directory, sample_texts(50, seed=0), images, attributes, epochs=1)))


@pytest.fixture(scope="session")
def tiny_shards(tiny_backbone: BackboneSettings, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """72 posts of `tests.support.tiny.TASK`."""
    from tests.support.tiny import write_posts

    return write_posts(tmp_path_factory.mktemp("shards"), tiny_backbone)


@pytest.fixture(scope="session")
def unique_shards(tiny_backbone: BackboneSettings, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The same posts, each image once."""
    from tests.support.tiny import UNIQUE, write_posts

    return write_posts(tmp_path_factory.mktemp("unique"), tiny_backbone, sequence=UNIQUE)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, without a row: making them takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An MLflow of its own, with a run open, as a step has one."""
    import mlflow

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


@pytest.fixture(scope="session")
def made_zenml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ZenML's tables with what it puts there by itself: making them takes seconds."""
    from tests.support.zenml import make_zenml

    return make_zenml(tmp_path_factory.mktemp("made-zenml"))


@pytest.fixture
def own_zenml(made_zenml: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A ZenML of its own: the user's settings and database are never touched."""
    from zenml.client import Client

    from tests.support.zenml import zenml_of_its_own

    with zenml_of_its_own(tmp_path_factory.mktemp("zenml"), made_zenml):
        yield Client()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """A PostgreSQL of the tests' own, on a socket. Skipped where none is installed."""
    from tests.support.postgresql import Server, binaries

    pytest.importorskip("psycopg", reason="no psycopg: it is in requirements-scoring.lock")
    if binaries() is None:
        pytest.skip("no initdb: apt-get install postgresql")
    with Server() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: Server) -> str:
    """The URL of an empty database."""
    return postgresql_server.new_database()
