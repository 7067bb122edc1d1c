"""MLflow's tables of an older version, brought up to date by the command that docs/operations.md names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from mlflow.tracking import MlflowClient
from sqlalchemy import MetaData, create_engine, insert, text

from infra.team.databases import as_user, binary
from infra.team.servers import clean, stores
from infra.team.state import State, make
from infra.team.supervisor import up
from steps.paths import REPOSITORY

#: The form of MLflow 3.1's tables.
OLD = "bda7b8c39065"
RUN_ID = "0123456789abcdef0123456789abcdef"
#: What a project had there: by table, the columns of that form.
ROWS: dict[str, list[dict[str, Any]]] = {
    "experiments": [
        {"experiment_id": 7, "name": "agentps", "artifact_location": "mlflow-artifacts:/7", "lifecycle_stage": "active"}
    ],
    "runs": [
        {"run_uuid": RUN_ID, "experiment_id": 7, "name": "r", "status": "FINISHED", "start_time": 1, "end_time": 2}
        | {"lifecycle_stage": "active", "artifact_uri": f"mlflow-artifacts:/7/{RUN_ID}/artifacts", "user_id": "alice"}
    ],
    "params": [{"run_uuid": RUN_ID, "key": "epochs", "value": "2"}],
    "metrics": [
        {"run_uuid": RUN_ID, "key": "loss", "value": step / 3, "timestamp": step, "step": step, "is_nan": False}
        for step in range(3)
    ],
    "registered_models": [{"name": "agentps-ucc", "description": "ours", "creation_time": 1, "last_updated_time": 2}],
    "model_versions": [
        {"name": "agentps-ucc", "version": version, "run_id": RUN_ID, "current_stage": "None", "status": "READY"}
        | {"source": f"mlflow-artifacts:/7/{version}", "creation_time": version, "last_updated_time": version}
        for version in (1, 2)
    ],
    "model_version_tags": [{"name": "agentps-ucc", "version": 2, "key": "sha256", "value": "00ff"}],
    "registered_model_aliases": [{"name": "agentps-ucc", "alias": "champion", "version": 2}],
}


@pytest.fixture
def state() -> Iterator[State]:
    """A stopped stack of which there is PostgreSQL only."""
    pytest.importorskip("psycopg", reason="no psycopg: it is in requirements-scoring.lock")
    if binary("initdb") is None:
        pytest.skip("no initdb: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="agentps-team-", dir="/var/tmp"))  # Debian's user must be able to enter
    folder.chmod(0o711)
    try:
        yield make(folder / "team")
    finally:
        shutil.rmtree(folder)


def _fill(url: str) -> None:
    engine = create_engine(url)
    InitialBase.metadata.create_all(engine)  # as MLflow begins
    with engine.connect() as connection:
        config = utils._get_alembic_config(url)
        config.attributes["connection"] = connection
        command.upgrade(config, OLD)
    tables = MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        for name, rows in ROWS.items():
            connection.execute(insert(tables.tables[name]), rows)
    engine.dispose()


def test_postgresql_starts_after_the_machine_lost_power_where_another_process_has_its_number_now(state: State) -> None:
    database, *_ = stores(state)
    with up(state, [database]):
        pass
    # of a user whom PostgreSQL may send signals: it would take it for itself
    other = subprocess.Popen([*as_user("postgres"), "sleep", "1000"], cwd="/")
    try:
        left = state.folder / "postgresql" / "postmaster.pid"
        port, now = state.ports["postgresql"], int(time.time())
        left.write_text(f"{other.pid}\n{left.parent}\n{now}\n{port}\n\n127.0.0.1\n  123456         0\nready   \n")
        if os.getuid() == 0:
            shutil.chown(left, "postgres", "postgres")
        with up(state, [database]):
            engine = create_engine(state.database("mlflow"))
            engine.connect().close()
            engine.dispose()
    finally:
        other.kill()
        other.wait()


def test_mlflows_tables_of_an_older_version_are_brought_up_to_date_and_lose_nothing(state: State) -> None:
    url = state.database("mlflow")
    database, *_ = stores(state)
    with up(state, [database]):
        _fill(url)
    migrate = [sys.executable, "-m", "infra.team", "migrate"]
    done = subprocess.run(
        migrate, cwd=REPOSITORY, env=clean({"AGENTPS_TEAM": str(state.folder)}),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    with up(state, [database]):
        engine = create_engine(url)
        with engine.connect() as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
            assert found == utils._get_latest_schema_revision() != OLD
        engine.dispose()
        client = MlflowClient(tracking_uri=url, registry_uri=url)
        run = client.get_run(RUN_ID)
        assert (run.data.params, run.info.status, run.info.user_id) == ({"epochs": "2"}, "FINISHED", "alice")
        assert [metric.value for metric in client.get_metric_history(RUN_ID, "loss")] == [0, 1 / 3, 2 / 3]
        assert client.get_experiment("7").name == "agentps"
        champion = client.get_model_version_by_alias("agentps-ucc", "champion")
        assert (int(champion.version), champion.source, champion.tags) == (
            2,
            "mlflow-artifacts:/7/2",
            {"sha256": "00ff"},
        )
        assert len(client.search_model_versions("name='agentps-ucc'")) == 2
        made = client.create_model_version("agentps-ucc", "mlflow-artifacts:/7/3", RUN_ID)
        assert int(made.version) == 3
