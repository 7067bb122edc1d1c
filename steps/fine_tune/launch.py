"""Starts a training: in this process, under torchrun over several, or on Ray over several machines.

Everything about it is in one job file, so that both ways run the same function.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import git
import mlflow
import pandas as pd
from pydantic import BaseModel, ConfigDict
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from model import checkpoint
from model.data import Batches, Shards
from model.errors import AgentPSError
from model.files import disk_told, replacing, write_whole
from model.integrity import MANIFEST, sha256_of
from model.schema import POST_ID, SPLIT, TRAIN
from model.settings import OWN, TINY, BackboneSettings, TrainSettings
from model.task import Task
from model.train import FitResult, fit
from steps import recipe
from steps.caching import code_digest
from steps.fine_tune.backbone import fingerprint
from steps.fine_tune.methods import with_weights
from steps.lifetime import end_with_parent, of_this_process
from steps.locks import locked
from steps.paths import REPOSITORY
from steps.tables import rows_of

if TYPE_CHECKING:
    from steps.fine_tune.stored import Store

logger = logging.getLogger(__name__)

#: In a training's directory: what it is made of; Trainer's checkpoints; and what comes out.
JOB, LABELS, TRAINER, RESULT, CHECKPOINT = "job.json", "labels.parquet", "trainer", "result.json", "checkpoint"
#: The digest of the code that began the training.
_CODE = "code.txt"
#: Directories of finished trainings that are kept beside the current one.
_KEPT = 3
#: Whose versions a checkpoint records.
_PACKAGES = ("torch", "transformers", "peft", "tokenizers")


class TrainingJob(BaseModel):
    """What one training is made of; equal jobs share a directory, and so resume one another."""

    model_config = ConfigDict(frozen=True)

    task: Task
    train: TrainSettings
    #: As the user named it.
    backbone: BackboneSettings
    #: As it can be loaded.
    resolved_backbone: BackboneSettings
    shards: Path
    provenance: dict[str, Any]
    #: A checkpoint, registered or of another training, whose weights are trained further; None: the backbone's, with
    #: fresh heads.
    start: Path | None = None
    #: The questions' weights in the loss, by id, where they are others than the task's.
    weights: dict[str, float] | None = None


class MlflowMetrics(TrainerCallback):
    """Losses and val metrics to the active MLflow run, as they come."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and mlflow.active_run() is not None:
            names = {"loss": "train_loss", "eval_average_precision": "val_average_precision"}
            metrics = {names.get(k, k): float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
            mlflow.log_metrics(metrics, step=state.global_step)


def _commit() -> str | None:
    """The commit of this repository, `-dirty` where files differ from it; None outside of git."""
    try:
        repository = git.Repo(REPOSITORY)
        return repository.head.commit.hexsha + ("-dirty" if repository.is_dirty() else "")
    except (git.InvalidGitRepositoryError, ValueError):  # ValueError: no commit yet
        return None


def job_directory(job: TrainingJob, labels: pd.DataFrame, root: Path) -> Path:
    """The directory of this training: its name follows from the recipe and from all that the outcome depends on."""
    return root / recipe.key(
        recipe.TRAINING,
        task=recipe.options(job.task),
        train=recipe.options(job.train, without=recipe.WHERE),
        backbone=fingerprint(job.resolved_backbone if job.backbone.name == OWN else job.backbone),
        start=None if job.start is None else _named(job.start, root),
        shards=recipe.shards_digest(Shards(job.shards), job.task),
        labels=recipe.table_digest(labels),
        **({} if job.weights is None else {"weights": job.weights}),  # no key of a training without them changes
        **({} if job.train.processes == 1 else {"several": recipe.SEVERAL}),
    )


def _named(start: Path, root: Path) -> str:
    """Names a checkpoint: by the folder of its training here, or by the hashes of its files, wherever they lie."""
    training = start.parent
    return training.name if training.parent == root else sha256_of(start / MANIFEST)


def run(job: TrainingJob, labels: pd.DataFrame, root: Path, store: Store | None = None) -> tuple[Path, FitResult]:
    """Train, or go on where an interrupted training of the same job stopped.

    Args:
        store: the run's artifact store, where other machines reach it.

    Returns:
        The checkpoint directory and what Trainer reported.

    Raises:
        AgentPSError: a process of a training over several failed.
    """
    directory = job_directory(job, labels, root)
    with locked(root / f"{directory.name}.lock", f"the same training, {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)  # the newest: who forgets old trainings meanwhile leaves it
        _forget_old(root, directory)
        _tell_of_other_code(directory)
        with replacing(directory / LABELS) as part:
            labels.to_parquet(part, index=False)
        write_whole(directory / JOB, job.model_dump_json(indent=1))
        if job.train.engine == "ray":
            from steps.fine_tune.by_ray import train

            train(directory, job.train, store)
        elif job.train.processes == 1:
            train_job(directory, [MlflowMetrics()])
        else:
            _train_by_several(directory, job.train.processes)
        return directory / CHECKPOINT, FitResult(**json.loads((directory / RESULT).read_text(encoding="utf-8")))


def _train_by_several(directory: Path, processes: int) -> None:
    """Have torchrun train the job, by processes that end with this one."""
    active = mlflow.active_run()
    environment = os.environ | of_this_process() | ({"MLFLOW_RUN_ID": active.info.run_id} if active else {})
    command = [sys.executable, "-m", "steps.fine_tune.launch", str(directory), str(processes)]
    # a session of its own: Ctrl-C reaches this process alone, which then ends the others
    torchrun = subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True)
    try:
        failed = torchrun.wait()
    finally:
        torchrun.kill()
        torchrun.wait()
    if failed:
        raise AgentPSError(f"A training process failed; its output is above. Run again to resume from {directory}")


def _tell_of_other_code(directory: Path) -> None:
    """Warn where a training goes on, or is taken as finished, whose code has changed since: whoever tries another loss
    must not take the old one's weights for its own.
    """
    path, code = directory / _CODE, code_digest(sorted((REPOSITORY / "model").rglob("*.py")))
    if path.exists() and path.read_text(encoding="utf-8") != code:
        logger.warning(
            "Goes on from %s, which was begun before model/ changed. If results are meant to differ, raise TRAINING in "
            "steps/recipe.py, or remove that folder, and run again",
            directory,
        )
    else:
        write_whole(path, code)


def _forget_old(root: Path, current: Path) -> None:
    finished = [path for path in root.iterdir() if path != current and (path / RESULT).exists()]
    for path in sorted(finished, key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(path)


def train_job(directory: Path, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Train the job of `directory` in this process; the first process writes checkpoint and result."""
    if _rank() == 0:
        # what a killed run left needs a moment to see that it has no parent, and may write until then
        with locked(directory / "lock", f"the processes of a training that ended before, {directory}"):
            _train_job(directory, callbacks)
    else:
        _train_job(directory, callbacks)


def train_as_part(directory: Path, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Train the job of `directory` in this process, one of a training; the first logs to the run MLFLOW_RUN_ID."""
    if os.environ.get("MLFLOW_RUN_ID") and _rank() == 0:
        mlflow.start_run()
    train_job(directory, [MlflowMetrics(), *callbacks])


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _train_job(directory: Path, callbacks: Sequence[TrainerCallback]) -> None:
    job = TrainingJob.model_validate_json((directory / JOB).read_text(encoding="utf-8"))
    shards = Shards(job.shards)
    set_seed(job.train.seed)
    task = job.task if job.weights is None else with_weights(job.task, job.weights)
    network, tokenizer, prompt = checkpoint.build(job.resolved_backbone, task, shards.sequence, job.train)
    if job.start is not None:
        checkpoint.start_from(network, job.start, job.task, job.resolved_backbone)
    labels, train = pd.read_parquet(directory / LABELS), shards.posts[SPLIT] == TRAIN
    rows_of(labels, shards.posts.loc[train, POST_ID].tolist(), "labels")  # a post without a row would train nothing
    batches = Batches(shards, prompt, job.task, labels)
    with disk_told(directory):
        begun = job.start is not None
        result = fit(network, batches, job.train, directory / TRAINER, callbacks=callbacks, begun=begun)
    if _rank() == 0:
        checkpoint.save(
            directory / CHECKPOINT,
            network,
            tokenizer,
            task=job.task,
            sequence=shards.sequence,
            train=job.train,
            backbone=job.resolved_backbone,
            embed_backbone=job.backbone.name in (TINY, OWN),
            provenance={**job.provenance, "commit": _commit(), **{name: version(name) for name in _PACKAGES}},
        )
        write_whole(directory / RESULT, json.dumps(asdict(result)))


def _main() -> None:
    """`DIRECTORY`: trains its job in this process, which may be one of torchrun's, and logs to the run MLFLOW_RUN_ID,
    where that is set. `DIRECTORY PROCESSES`: is torchrun, with this many processes.
    """
    if "RANK" in os.environ or len(sys.argv) > 2:
        end_with_parent(at_once=True)
    if len(sys.argv) > 2:
        from torch.distributed.run import main as torchrun

        os.environ |= of_this_process()
        torchrun(["--standalone", f"--nproc_per_node={sys.argv[2]}", "-m", "steps.fine_tune.launch", sys.argv[1]])
        return
    train_as_part(Path(sys.argv[1]))


if __name__ == "__main__":
    _main()
