"""What every test gets: no telemetry, one thread a worker, and a home of its own where it asks for one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from model.data import Shards
    from model.settings import BackboneSettings

# Before any library is imported, and for the subprocesses of the tests too.
os.environ.update(
    ZENML_ANALYTICS_OPT_IN="false",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    GX_ANALYTICS_ENABLED="false",
    OMP_NUM_THREADS="1",  # pytest-xdist runs one worker a core: torch's own threads would only wait for each other
)


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
