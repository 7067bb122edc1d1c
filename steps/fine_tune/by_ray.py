"""A training on the machines of a Ray cluster, by Ray Train: it goes on by itself when processes or machines are lost.

Ray starts the processes, all anew after one has died, and tells them of each other. Where the run's artifact store is
one that other machines reach, the training's files lie there (`stored.py`), and Ray keeps what is resumed. Else the
job's directory is in a folder that all machines share, as everything under AGENTPS_HOME is, and Trainer's checkpoints
in it are resumed, as on one machine.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import mlflow
from pyarrow.fs import LocalFileSystem
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from model.errors import AgentPSError, ConfigError
from model.files import replacing, write_whole
from model.settings import TrainSettings
from model.train import last_whole_checkpoint
from steps.fine_tune.launch import JOB, TRAINER, TrainingJob, train_as_part
from steps.fine_tune.stored import Folder, Store, fetch_job, link_state, put_job, take_state
from steps.locks import locked
from steps.paths import REPOSITORY, home
from steps.ray_settings import ADDRESS, LEAST_CPUS, running

logger = logging.getLogger(__name__)

#: Times that processes are started again after one has died; of a machine that its owner takes back, Ray counts none.
_RESTARTS = 20
#: Ray's own notes of the run, and what no restart would mend.
_NOTES, _REFUSED = "ray", "refused.json"
#: On each machine: the start of all processes that what was stored was fetched for.
_STARTED = "started.txt"
#: The copy of shards that lie where other machines do not reach them.
_SHARDS = "shards"
#: Where a worker finds MLflow; its password and keys are in the environment of the cluster's machines already.
_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")


def train(directory: Path, settings: TrainSettings, store: Store | None = None) -> None:
    """Train the job of `directory`.

    Args:
        store: None: the machines of a cluster share `directory`.

    Raises:
        ConfigError: Ray is not installed, or does not answer.
        AgentPSError: the training cannot be done, or its processes died too often.
    """
    if store is not None and ADDRESS in os.environ:
        folder, shared = store.folder(f"fine_tune/{directory.name}"), None
        put_job(directory, folder)
    else:
        folder, shared = Folder(LocalFileSystem(), str(directory / _NOTES)), directory
        _share_shards(directory)
        shutil.rmtree(directory / _NOTES, ignore_errors=True)
    folder.remove(_REFUSED)
    each = 1 + settings.loader_workers
    environment = {name: value for name in _MLFLOW if (value := os.environ.get(name))}
    if (active := mlflow.active_run()) is not None:
        environment |= {"MLFLOW_RUN_ID": active.info.run_id, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    options: dict[str, Any] = {"runtime_env": {"env_vars": environment}}
    if ADDRESS not in os.environ:
        options["num_cpus"] = max(LEAST_CPUS, os.cpu_count() or 1, settings.processes * each)
    with running(**options) as ray:
        last = _fit(ray, folder, shared, settings, each)
    if folder.has(_REFUSED):
        raise AgentPSError(json.loads(folder.read(_REFUSED)))
    if shared is None:
        take_state(folder, last, directory)
    folder.files.delete_dir(folder.path)
    shutil.rmtree(directory / _SHARDS, ignore_errors=True)


def _fit(ray: ModuleType, folder: Folder, shared: Path | None, settings: TrainSettings, cpus: int) -> Folder | None:
    """Returns: where what the processes reported last is stored; None: they keep it in `shared`."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpu = ray.cluster_resources().get("GPU", 0) > 0
    kind, each = ("GPU", 1) if gpu else ("CPU", cpus)
    room = int(ray.cluster_resources().get(kind, 0)) // each
    least = settings.least_processes or settings.processes
    workers: Any = settings.processes if least == settings.processes else (least, settings.processes)
    if room < least:
        logger.warning("Ray has room for %d of %d processes now (%s): the training waits for more", room, least, kind)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"folder": folder, "shared": shared},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=RunConfig(
            name="run",
            storage_path=folder.path,
            storage_filesystem=folder.files,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=_RESTARTS),
        ),
    )
    try:
        last = trainer.fit().checkpoint
    except ray.train.TrainingFailedError as error:
        raise AgentPSError(
            f"Ray: a training process died {_RESTARTS + 1} times: {error!s:.1000}\n"
            f"Run again to resume from {shared or folder.path}"
        ) from error
    return None if last is None else Folder(last.filesystem, last.path)


def _work(config: dict[str, Any]) -> None:
    """One process of the training. What a restart would not mend is written down, and ends the next start at once."""
    folder, shared = config["folder"], config["shared"]
    if folder.has(_REFUSED):
        return
    if shared is not None and not (shared / JOB).exists():
        raise ConfigError(
            f"{shared} is not on this machine: take an artifact store that all machines of the cluster reach "
            "(s3://, gs://, …), or let AGENTPS_HOME be a folder that they share, at the same path"
        )
    try:
        if shared is not None:
            train_as_part(shared)
        else:
            _train_stored(folder)
    except AgentPSError as error:
        folder.write(_REFUSED, json.dumps(str(error)))
        raise


def _train_stored(folder: Folder) -> None:
    """As one process, with the job and what was reported last fetched to this machine's own disk, once for all that run
    here.
    """
    import ray
    from ray.train import collective, get_checkpoint

    # machines may share AGENTPS_HOME all the same
    here = home() / "work" / "ray" / f"{Path(folder.path).name}-{ray.get_runtime_context().get_node_id()}"
    start = collective.broadcast_from_rank_zero(secrets.token_hex(8))  # names this start of all processes
    # not by the local rank: Ray counts it by address, which two of its nodes may share
    with locked(here.with_suffix(".lock"), f"the process of this machine that fetches {folder.path}"):
        fetch_job(folder, here)
        if not (here / _STARTED).exists() or (here / _STARTED).read_text(encoding="utf-8") != start:
            last = get_checkpoint()
            with locked(here / "lock", f"the processes of a training that ended before, {here}"):
                take_state(folder, last and Folder(last.filesystem, last.path), here)
            write_whole(here / _STARTED, start)
    collective.barrier()
    reports = _Reports(here)
    train_as_part(here, [reports])
    reports.report()
    collective.barrier()
    for left in (here, here.with_suffix(".lock")):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


class _Reports(TrainerCallback):
    """Hands to Ray what is needed to resume, or to end; each process its part, and all of them at the same moments."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._newest = last_whole_checkpoint(directory / TRAINER)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._newest = self._directory / TRAINER / f"checkpoint-{state.global_step}"
        self.report()

    def report(self) -> None:
        from ray.train import Checkpoint, get_context, report

        with TemporaryDirectory(dir=self._directory) as part:
            link_state(self._directory, self._newest, Path(part), get_context().get_world_rank())
            report({}, checkpoint=Checkpoint.from_directory(part))


def _share_shards(directory: Path) -> None:
    """Shards that lie outside of what all machines share are copied into the job's directory."""
    job = TrainingJob.model_validate_json((directory / JOB).read_text(encoding="utf-8"))
    if ADDRESS not in os.environ or job.shards.resolve().is_relative_to(home().resolve()):
        return
    copy = directory / _SHARDS
    if not copy.exists():
        with replacing(copy) as part:
            shutil.copytree(job.shards, part)
    write_whole(directory / JOB, job.model_copy(update={"shards": copy}).model_dump_json(indent=1))
