"""What every test gets: no telemetry, one thread a worker, and a home of its own where it asks for one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
