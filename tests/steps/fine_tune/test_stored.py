"""A training whose files lie in an artifact store: what is put there, and what another machine makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from model.data import Shards
from model.schema import LABEL_SOURCE, POST_ID
from model.settings import BackboneSettings
from steps.fine_tune.launch import JOB, LABELS, TrainingJob, train_job
from steps.fine_tune.stored import Folder, Store, fetch_job, link_state, put_job, take_state
from tests.support.tiny import TASK, train_settings, write_posts


@pytest.fixture
def folder() -> Iterator[Folder]:
    yield Store("memory://artifacts").folder("fine_tune/key")
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def directory(tiny_backbone: BackboneSettings, tmp_path: Path) -> Path:
    """A job as `run` leaves it: its backbone is a folder of this machine."""
    shards = write_posts(tmp_path / "shards", tiny_backbone, train=16, val=8, test=2)
    job = TrainingJob(
        task=TASK,
        train=train_settings(epochs=3, batch=4, micro_batch=4, saves_per_epoch=2, head_dropout=0.1),
        backbone=tiny_backbone,
        resolved_backbone=tiny_backbone,
        shards=shards.root,
        provenance={},
    )
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / JOB).write_text(job.model_dump_json())
    posts = Shards(job.shards).posts[[POST_ID, *TASK.question_ids]]
    posts.assign(**{LABEL_SOURCE: "human"}).to_parquet(directory / LABELS)
    return directory


def job_of(directory: Path) -> TrainingJob:
    return TrainingJob.model_validate_json((directory / JOB).read_text())


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def store_part(directory: Path, folder: Folder, newest: Path | None, rank: int, into: Path) -> Folder:
    """As Ray stores what the process `rank` reports."""
    link_state(directory, newest, into, rank)
    folder.put(into, "last")
    return Folder(folder.files, f"{folder.path}/last")


def test_another_machine_has_the_whole_job_with_paths_of_its_own(
    folder: Folder, directory: Path, tmp_path: Path
) -> None:
    put_job(directory, folder)
    mine = job_of(directory)
    fetch_job(folder, tmp_path / "other")
    for gone in (mine.shards, directory):  # which the other machine never had
        shutil.rmtree(gone)
    theirs = job_of(tmp_path / "other")
    assert Path(theirs.resolved_backbone.name).is_relative_to(tmp_path / "other")
    assert names(Path(theirs.resolved_backbone.name)) == names(Path(mine.resolved_backbone.name))
    assert theirs.model_copy(update={"shards": mine.shards, "resolved_backbone": mine.resolved_backbone}) == mine


def test_a_job_trains_the_start_s_weights_where_the_registry_s_copy_is_another_machine_s(
    folder: Folder, directory: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    (start / "adapter").mkdir(parents=True)
    for name in ("checkpoint.json", "adapter/weights"):
        (start / name).write_text(name)
    (directory / JOB).write_text(job_of(directory).model_copy(update={"start": start}).model_dump_json())
    put_job(directory, folder)
    fetch_job(folder, tmp_path / "other")
    assert job_of(tmp_path / "other").start == tmp_path / "other" / "start"
    assert names(tmp_path / "other" / "start") == names(start)


def test_a_job_is_put_and_fetched_once_and_one_of_which_a_part_is_missing_again(
    folder: Folder, directory: Path, tmp_path: Path
) -> None:
    put_job(directory, folder)
    fetch_job(folder, tmp_path / "other")
    folder.write(LABELS, "of the first time")
    put_job(directory, folder)
    assert folder.read(LABELS) == b"of the first time"
    fetch_job(folder, tmp_path / "other")
    assert pd.read_parquet(tmp_path / "other" / LABELS).equals(pd.read_parquet(directory / LABELS))
    folder.remove(JOB)  # as who was killed before the end leaves it
    put_job(directory, folder)
    assert folder.read(LABELS) == (directory / LABELS).read_bytes()


def test_processes_store_one_checkpoint_together_and_a_machine_forgets_what_only_it_knows(
    folder: Folder, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (
        "trainer/checkpoint-5/trainer_state.json", "trainer/checkpoint-10/trainer_state.json",
        "trainer/checkpoint-10/rng_state_0.pth", "trainer/checkpoint-10/rng_state_1.pth",
        "trainer/best.safetensors", "trainer/tower_states-7.bin", "job.json", "lock",
    ):  # fmt: skip
        (first / path).parent.mkdir(parents=True, exist_ok=True)
        (first / path).write_text("first")
    for path in ("trainer/checkpoint-10/rng_state_2.pth", "trainer/checkpoint-5/rng_state_2.pth"):
        (second / path).parent.mkdir(parents=True, exist_ok=True)
        (second / path).write_text("second")
    for rank, machine in ((0, first), (1, first), (2, second)):
        stored = store_part(machine, folder, machine / "trainer" / "checkpoint-10", rank, tmp_path / f"part-{rank}")
        assert (f"trainer/checkpoint-10/rng_state_{rank}.pth") in names(tmp_path / f"part-{rank}")
    assert names(tmp_path / "part-1") == {"trainer/checkpoint-10/rng_state_1.pth"}
    third = tmp_path / "third"
    for path in ("trainer/checkpoint-15/trainer_state.json", "checkpoint/old", "result.json", "job.json"):
        (third / path).parent.mkdir(parents=True, exist_ok=True)
        (third / path).write_text("third")
    take_state(folder, stored, third)
    expected = {f"trainer/checkpoint-10/rng_state_{rank}.pth" for rank in range(3)}
    expected |= {"trainer/checkpoint-10/trainer_state.json", "trainer/best.safetensors", "job.json"}
    assert names(third) == expected
    assert (third / "job.json").read_text() == "third"


class _KilledError(Exception):
    pass


class _StoresThenDies(TrainerCallback):
    def __init__(self, directory: Path, folder: Folder, into: Path) -> None:
        self.directory, self.folder, self.into = directory, folder, into

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == 6:
            newest = self.directory / "trainer" / "checkpoint-6"
            store_part(self.directory, self.folder, newest, 0, self.into)
        if state.global_step == 8:  # whose checkpoint no other machine has
            raise _KilledError


def test_a_training_goes_on_elsewhere_from_what_was_stored_and_ends_with_the_same_parameters(
    folder: Folder, directory: Path, tmp_path: Path
) -> None:
    put_job(directory, folder)
    for machine in ("whole", "lost", "next"):
        fetch_job(folder, tmp_path / machine)
    train_job(tmp_path / "whole")
    with pytest.raises(_KilledError):
        train_job(tmp_path / "lost", [_StoresThenDies(tmp_path / "lost", folder, tmp_path / "part")])
    stored = Folder(folder.files, f"{folder.path}/last")
    take_state(folder, stored, tmp_path / "next")
    train_job(tmp_path / "next")
    assert json.loads((tmp_path / "next" / "result.json").read_text())["resumed_from_step"] == 6
    parameters = (tmp_path / "next" / "checkpoint" / "trained.safetensors").read_bytes()
    assert parameters == (tmp_path / "whole" / "checkpoint" / "trained.safetensors").read_bytes()


def test_a_training_that_was_begun_without_a_store_goes_on_with_it(
    folder: Folder, directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(_KilledError):
        train_job(directory, [_StoresThenDies(directory, folder, tmp_path / "part")])
    put_job(directory, folder)
    fetch_job(folder, tmp_path / "other")
    take_state(folder, None, tmp_path / "other")
    train_job(tmp_path / "other")
    assert json.loads((tmp_path / "other" / "result.json").read_text())["resumed_from_step"] == 8


def test_a_store_s_keys_are_in_no_message() -> None:
    assert "secret" not in repr(Store("s3://bucket", {"secret": "drawn"}))


def test_zenml_s_store_is_one_for_other_machines_where_it_is_no_folder_of_this_one(tmp_path: Path) -> None:
    from datetime import UTC, datetime
    from uuid import uuid4

    from zenml.artifact_stores import BaseArtifactStore, LocalArtifactStore, LocalArtifactStoreConfig
    from zenml.enums import StackComponentType

    from steps.fine_tune.step import _store

    def made(kind: type[BaseArtifactStore], config: Any) -> BaseArtifactStore:
        now = datetime.now(UTC)
        return kind(
            name="store", id=uuid4(), config=config, flavor="any", type=StackComponentType.ARTIFACT_STORE, user=uuid4(),
            created=now, updated=now,
        )  # fmt: skip

    assert _store(made(LocalArtifactStore, LocalArtifactStoreConfig(path=str(tmp_path)))) is None
    pytest.importorskip("s3fs", reason="no s3fs: make team")
    pytest.importorskip("boto3", reason="no boto3: make team")
    from zenml.integrations.s3.artifact_stores import S3ArtifactStore
    from zenml.integrations.s3.flavors import S3ArtifactStoreConfig

    config = S3ArtifactStoreConfig(
        path="s3://bucket/zenml", key="k", secret="s", client_kwargs={"endpoint_url": "http://127.0.0.1:9"}
    )
    store = _store(made(S3ArtifactStore, config))
    assert store is not None
    assert store.url == "s3://bucket/zenml"
    options = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}}
    assert options.items() <= store.options.items()
