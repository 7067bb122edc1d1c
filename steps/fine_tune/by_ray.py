"""A training on the machines of a Ray cluster, by Ray Train: it goes on by itself when processes or machines are lost.

The job's directory is in a folder that all machines share, as everything under AGENTPS_HOME is. Trainer keeps its
checkpoints there, as on one machine, and a process that is started again resumes from them: Ray only starts the
processes, all anew after one has died, and tells them of each other.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow

from model.errors import AgentPSError, ConfigError
from model.files import replacing, write_whole
from model.settings import TrainSettings
from steps.fine_tune.launch import JOB, TrainingJob, train_as_part
from steps.paths import REPOSITORY, home
from steps.ray_settings import ADDRESS, LEAST_CPUS, running

logger = logging.getLogger(__name__)

#: Times that processes are started again after one has died; of a machine that its owner takes back, Ray counts none.
_RESTARTS = 20
#: Ray's own notes of the run, and what no restart would mend.
_NOTES, _REFUSED = "ray", "refused.json"
#: The copy of shards that lie where other machines do not reach them.
_SHARDS = "shards"
#: Where a worker finds MLflow; its password and keys are in the environment of the cluster's machines already.
_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")


def train(directory: Path, settings: TrainSettings) -> None:
    """Train the job of `directory`.

    Raises:
        ConfigError: Ray is not installed, or does not answer.
        AgentPSError: the training cannot be done, or its processes died too often.
    """
    for left in (directory / _NOTES, directory / _REFUSED):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    _share_shards(directory)
    each = 1 + settings.loader_workers
    environment = {name: value for name in _MLFLOW if (value := os.environ.get(name))}
    if (active := mlflow.active_run()) is not None:
        environment |= {"MLFLOW_RUN_ID": active.info.run_id, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    options: dict[str, Any] = {"runtime_env": {"env_vars": environment | {"PYTHONPATH": str(REPOSITORY)}}}
    if ADDRESS not in os.environ:
        options["num_cpus"] = max(LEAST_CPUS, os.cpu_count() or 1, settings.processes * each)
    with running(**options) as ray:
        _fit(ray, directory, settings, each)
    if (directory / _REFUSED).exists():
        raise AgentPSError(json.loads((directory / _REFUSED).read_text(encoding="utf-8")))
    for name in (_NOTES, _SHARDS):
        shutil.rmtree(directory / name, ignore_errors=True)


def _fit(ray: ModuleType, directory: Path, settings: TrainSettings, cpus: int) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
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
        train_loop_config={"directory": str(directory)},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=RunConfig(
            name="run",
            storage_path=str(directory / _NOTES),
            failure_config=FailureConfig(max_failures=_RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise AgentPSError(
            f"Ray: a training process died {_RESTARTS + 1} times: {error!s:.1000}\nRun again to resume from {directory}"
        ) from error


def _work(config: dict[str, str]) -> None:
    """One process of the training. What a restart would not mend is written down, and ends the next start at once."""
    directory = Path(config["directory"])
    refused = directory / _REFUSED
    if refused.exists():
        return
    if not (directory / JOB).exists():
        raise ConfigError(
            f"{directory} is not on this machine: AGENTPS_HOME is to be a folder that all machines of the cluster "
            "share, at the same path"
        )
    try:
        train_as_part(directory)
    except AgentPSError as error:
        write_whole(refused, json.dumps(str(error)))
        raise


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
