"""The lock files of runs, against a real ZenML."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from zenml.client import Client

from pipelines import runs
from steps import locks


def write_holder(path: Path, **changes: object) -> Path:
    """A lock file as a killed process leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(locks._this_process()._asdict() | changes), encoding="utf-8")
    return path


def test_another_start_never_finds_a_run_that_begins_with_its_lock_free(
    agentps_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, take = uuid4(), locks._take
    found: list[UUID] = []
    monkeypatch.setattr(runs, "_find", found.append)

    def another_start_comes_first(file: locks.FileIO, path: Path) -> bool:
        monkeypatch.setattr(locks, "_take", take)
        runs.close_killed(agentps_home)
        return take(file, path)

    monkeypatch.setattr(locks, "_take", another_start_comes_first)
    with runs.going(run, agentps_home):
        assert found == []
        assert [path.name for path in (agentps_home / "locks" / "runs").iterdir()] == [str(run)]
        runs.close_killed(agentps_home)
        assert found == []
    assert list((agentps_home / "locks" / "runs").iterdir()) == []


def test_strange_files_among_the_locks_are_left_alone(agentps_home: Path, own_zenml: Client) -> None:
    folder = agentps_home / "locks" / "runs"
    (folder / str(uuid4())).mkdir(parents=True)
    for name in (".nfs00000000012a", "notes.txt", "z" * 8 + "-zzzz" * 3 + "-" + "z" * 12, f"{uuid4()}.new"):
        (folder / name).write_text("")
    before = sorted(folder.iterdir())
    runs.close_killed(agentps_home)
    assert sorted(folder.iterdir()) == before


def test_a_new_container_of_the_same_machine_closes_what_the_last_one_left(
    agentps_home: Path, own_zenml: Client
) -> None:
    folder = agentps_home / "locks" / "runs"
    ours = [
        write_holder(folder / str(uuid4()), host="5f1c0a9be0d2"),  # a container's name ended with it
        write_holder(folder / str(uuid4()), boot="the-start-before"),  # this machine was switched off
        write_holder(folder / str(uuid4()), boot=""),
    ]
    (folder / str(uuid4())).write_text("")
    elsewhere = write_holder(folder / str(uuid4()), host=f"not-{socket.gethostname()}", boot="another")
    runs.close_killed(agentps_home)
    assert list(folder.iterdir()) == [elsewhere]
    assert not any(path.exists() for path in ours)
