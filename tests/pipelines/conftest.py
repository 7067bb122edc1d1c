"""One prepared workspace for each test process; the tiny backbone is built once for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from model.settings import TINY, BackboneSettings
from steps.fine_tune.backbone import resolve
from steps.locks import locked
from tests.pipelines.workspace import Workspace


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a run file."""

    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to stand for `$AGENTPS_HOME/backbones`."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each worker a folder of its own below the session's
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    home = session / "shared"
    with locked(home / "lock"):
        resolve(BackboneSettings(name=TINY), home)
    return home / "backbones"


@pytest.fixture(scope="session")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, backbones: Path, made_zenml: Path, empty_database: Path
) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("workspace"), made_zenml, empty_database)
    (workspace.home / "backbones").symlink_to(backbones)
    workspace.python("-m", "infra.local_stack")
    return workspace
