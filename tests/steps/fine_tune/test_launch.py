from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from model import checkpoint
from model.data import Shards
from model.errors import DiskError
from model.integrity import seal
from model.schema import LABEL_SOURCE, POST_ID
from model.settings import BackboneSettings
from model.train import last_whole_checkpoint
from steps import recipe
from steps.fine_tune import launch
from steps.fine_tune.launch import TrainingJob, job_directory, run
from steps.locks import locked
from steps.paths import REPOSITORY
from tests.support.disk import files_end_at
from tests.support.tiny import TASK, train_settings, write_checkpoint, write_posts

LABELS = pd.DataFrame({POST_ID: ["a", "b"], "bright": pd.array([1, None], "Int8"), LABEL_SOURCE: "human"})


@pytest.fixture(scope="module")
def job(tiny_backbone: BackboneSettings, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    shards = write_posts(tmp_path_factory.mktemp("shards"), tiny_backbone, train=16, val=8, test=2)
    return TrainingJob(
        task=TASK,
        train=train_settings(epochs=1, batch=4, micro_batch=2, head_dropout=0.0),
        backbone=tiny_backbone,
        resolved_backbone=tiny_backbone,
        shards=shards.root,
        provenance={"run": "one"},
    )


PATIENCE = 240.0  # seconds, on a busy machine
RUN = """
import logging, sys
from pathlib import Path
import pandas as pd
from steps.fine_tune.launch import TrainingJob, run
logging.basicConfig(level=logging.WARNING)
folder = Path(sys.argv[1])
job = TrainingJob.model_validate_json((folder / "job.json").read_text())
run(job, pd.read_parquet(folder / "labels.parquet"), folder / "work")
"""


def start(job: TrainingJob, folder: Path) -> subprocess.Popen[str]:
    """A process that trains the job in `folder / "work"`."""
    (folder / "job.json").write_text(job.model_dump_json())
    people(job).to_parquet(folder / "labels.parquet")
    with (folder / "errors.txt").open("w") as errors:
        return subprocess.Popen([sys.executable, "-c", RUN, str(folder)], cwd=REPOSITORY, stderr=errors, text=True)


def wait_until(moment: Callable[[], bool], process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not moment():
        errors = (folder / "errors.txt").read_text()
        assert process.poll() in (None, -signal.SIGKILL), f"it ended too early:\n{errors}"
        assert time.monotonic() < deadline, f"the moment never came:\n{errors}"
        time.sleep(0.05)


def processes_of(folder: Path) -> list[int]:
    """The other processes of this machine that were given a path in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            mine = str(folder).encode() in path.read_bytes()  # empty for one that has ended
        except (FileNotFoundError, ProcessLookupError):
            continue
        if mine and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def people(job: TrainingJob) -> pd.DataFrame:
    """The posts' own labels as an annotator's table."""
    posts = Shards(job.shards).posts
    return posts[[POST_ID, *TASK.question_ids]].assign(**{LABEL_SOURCE: "human"})


def test_the_same_training_has_the_same_directory_whoever_asks_for_it(job: TrainingJob, tmp_path: Path) -> None:
    other = job.model_copy(update={"provenance": {"run": "two"}})
    assert job_directory(job, LABELS, tmp_path) == job_directory(other, LABELS.copy(), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"train": train_settings(epochs=2, batch=4, micro_batch=2)},
        {"train": train_settings(epochs=1, batch=4, micro_batch=2, seed=1)},
        {"task": TASK.model_copy(update={"version": 2})},
        {"backbone": BackboneSettings(name="other", revision="0" * 40)},
    ],
    ids=["epochs", "seed", "task", "backbone"],
)
def test_another_setting_has_another_directory(job: TrainingJob, tmp_path: Path, change: dict[str, Any]) -> None:
    assert job_directory(job.model_copy(update=change), LABELS, tmp_path) != job_directory(job, LABELS, tmp_path)


def test_another_label_or_post_or_image_or_recipe_has_another_directory(
    job: TrainingJob, tiny_backbone: BackboneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = job_directory(job, LABELS, tmp_path)
    changed = LABELS.assign(bright=pd.array([1, 0], "Int8"))
    assert job_directory(job, changed, tmp_path) != here
    shards = write_posts(tmp_path / "shards", tiny_backbone, train=16, val=8, test=2)
    copy = job.model_copy(update={"shards": shards.root})
    assert job_directory(copy, LABELS, tmp_path) == here, "where the shards lie does not matter"
    for name, options in (("pictures", {"image_seed": 9}), ("fewer", {"train": 15})):
        shards = write_posts(tmp_path / name, tiny_backbone, **{"train": 16, "val": 8, "test": 2} | options)
        other = job.model_copy(update={"shards": shards.root})
        assert job_directory(other, LABELS, tmp_path) != here, name
    monkeypatch.setattr(recipe, "TRAINING", recipe.TRAINING + 1)
    assert job_directory(job, LABELS, tmp_path) != here


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_ends_a_training_in_one_message_and_the_next_run_ends_as_one_without_it(
    file: str, job: TrainingJob, tmp_path: Path
) -> None:
    expected, _ = run(job, people(job), tmp_path / "whole")
    sizes = {path.name: path.stat().st_size for path in (expected.parent / "trainer").glob("checkpoint-*/*")}
    room = sizes[file] - 1
    assert sum(size > room for size in sizes.values()) == (1 if file == "optimizer.pt" else 2), "it is the first"
    place = job_directory(job, people(job), tmp_path / "full")
    with files_end_at(room), pytest.raises(DiskError, match=rf"^{place}: cannot be written: .* bytes are free there: "):
        run(job, people(job), tmp_path / "full")
    assert last_whole_checkpoint(place / "trainer") is None
    found, result = run(job, people(job), tmp_path / "full")
    assert result.resumed_from_step == 0
    assert (found / "trained.safetensors").read_bytes() == (expected / "trained.safetensors").read_bytes()


def test_a_training_that_other_code_began_goes_on_and_says_so(
    job: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    short = job.model_copy(update={"train": train_settings(epochs=1)})
    first, _ = run(short, people(job), tmp_path)
    assert "which was begun before model/ changed" not in caplog.text
    monkeypatch.setattr(launch, "code_digest", lambda files: "other code")
    second, result = run(short, people(job), tmp_path)
    assert second == first
    assert result.resumed_from_step > 0
    assert f"{first.parent}, which was begun before model/ changed" in caplog.text


def test_other_weights_to_start_from_have_another_directory_and_are_what_is_trained(
    job: TrainingJob, tmp_path: Path
) -> None:
    still = job.model_copy(update={"train": train_settings(epochs=1, batch=4, micro_batch=2, learning_rate=1e-9)})
    starts = [write_checkpoint(tmp_path / "start", job.resolved_backbone, still.train)]
    starts += [Path(shutil.copytree(starts[0], tmp_path / name)) for name in ("copy", "other")]
    (starts[2] / "more.txt").write_text("other content")
    for start in starts:
        seal(start)
    warm, copy, other = (still.model_copy(update={"start": start}) for start in starts)
    names = [job_directory(one, LABELS, tmp_path) for one in (still, warm, copy, other)]
    assert names[1] == names[2], "where the weights lie does not matter"
    assert len(set(names)) == 3
    trained, _ = run(warm, people(job), tmp_path / "work")
    before, after = (dict(checkpoint.load(path).model.named_parameters()) for path in (starts[0], trained))
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-6


def test_a_finished_training_leaves_three_others_beside_it(job: TrainingJob, tmp_path: Path) -> None:
    for k in range(5):
        directory = tmp_path / f"old-{k}"
        directory.mkdir()
        (directory / "result.json").write_text("{}")
    (tmp_path / "unfinished").mkdir()
    run(job.model_copy(update={"train": train_settings(epochs=1)}), people(job), tmp_path)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("old-")]) == 3
    assert (tmp_path / "unfinished").exists()


def test_two_processes_end_with_a_killed_run_and_the_same_run_then_trains_what_one_does(
    job: TrainingJob, tmp_path: Path
) -> None:
    """Under torchrun, two posts a process beside four in one: the same batches, so the same parameters."""
    settings = train_settings(epochs=6, batch=4, micro_batch=2, head_dropout=0.0, processes=2)
    two = job.model_copy(update={"train": settings})
    process = start(two, tmp_path)
    checkpoints = "work/*/trainer/checkpoint-*/trainer_state.json"
    wait_until(lambda: any(tmp_path.glob(checkpoints)), process, tmp_path)
    assert len(processes_of(tmp_path)) >= 4, "the run, torchrun and two that train"
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(tmp_path), process, tmp_path)
    assert "Traceback" not in (tmp_path / "errors.txt").read_text()
    (directory,) = (path for path in (tmp_path / "work").iterdir() if path.is_dir())
    assert not (directory / "result.json").exists(), "it was killed after its end"
    again = start(two, tmp_path)
    assert again.wait(PATIENCE) == 0, (tmp_path / "errors.txt").read_text()
    together = json.loads((directory / "result.json").read_text())
    assert together["resumed_from_step"] > 0

    one = settings.model_copy(update={"micro_batch": 4, "processes": 1})
    first, alone = run(job.model_copy(update={"train": one}), people(job), tmp_path / "alone")
    left = dict(checkpoint.load(first).model.named_parameters())
    right = dict(checkpoint.load(directory / "checkpoint").model.named_parameters())
    assert left.keys() == right.keys()
    assert max(float((left[name] - right[name]).abs().max()) for name in left) <= 1e-4
    assert together["best_val_average_precision"] == pytest.approx(alone.best_val_average_precision, abs=1e-4)
    built, _, _ = checkpoint.build(job.resolved_backbone, TASK, Shards(job.shards).sequence, settings)
    before = dict(built.language_model.named_parameters())
    prefix = "backbone.language_model."
    assert any((left[prefix + name] - value).abs().max() > 1e-3 for name, value in before.items()), (
        "nothing was trained"
    )
    assert torch.isfinite(torch.cat([value.flatten() for value in right.values()])).all()


def test_a_second_start_of_a_training_says_whom_it_waits_for_and_then_trains(job: TrainingJob, tmp_path: Path) -> None:
    short = job.model_copy(update={"train": train_settings(epochs=1)})
    directory = job_directory(short, people(short), tmp_path / "work")
    with locked(directory.parent / f"{directory.name}.lock"):
        process = start(short, tmp_path)
        expected = f"Waiting for the same training, {directory}: it is held by process {os.getpid()} on "
        wait_until(lambda: expected in (tmp_path / "errors.txt").read_text(), process, tmp_path)
        assert not directory.exists(), "nothing is written meanwhile"
    assert process.wait(PATIENCE) == 0, (tmp_path / "errors.txt").read_text()
    assert (directory / "result.json").exists()
