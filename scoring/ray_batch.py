"""The shards of a batch on Ray: the loop of `scoring.batch` in as many processes as there are cores or GPUs.

Actors of Ray's core, not Ray Data: what is handed over is which shard comes next, and the files tell what is done.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from model.errors import ConfigError
from scoring.batch import Done, Job, Make, ShardScorer
from scoring.plan import Shard
from steps.ray_settings import ADDRESS, LEAST_CPUS, running

#: A worker that dies is started again, and its shard given to it again, so many times.
_TRIES = 3


class _Worker:
    """Makes its scorer with the first shard: what fails in that is then told as it is."""

    def __init__(self, make: Make, job: Job, sources: Sequence[str], folder: Path) -> None:
        self._make, self._rest = make, (job, sources, folder)
        self._scorer: ShardScorer | None = None

    def score(self, shard: Shard) -> Done:
        self._scorer = self._scorer or ShardScorer(self._make(), *self._rest)
        return self._scorer(shard)


def on_ray(
    workers: int | None,
    threads: int,
    make: Make,
    job: Job,
    sources: Sequence[str],
    folder: Path,
    shards: Iterable[Shard],
) -> Iterator[Done]:
    """As `scoring.batch.locally`. On a cluster, every machine has manifests, pictures and output at the same paths.

    Args:
        workers: None: as many as the cores, or the GPUs, allow.
        threads: cores of each.

    Raises:
        ConfigError: Ray is not installed, or cannot be started.
    """
    cores = os.cpu_count() or 1
    # Ray's helpers need more than a small machine has, and a count that is asked for is the user's to choose
    options = {} if ADDRESS in os.environ else {"num_cpus": max(LEAST_CPUS, cores, (workers or 0) * threads)}
    with running(**options) as ray:
        from ray.util import ActorPool

        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        count = workers_of(workers, threads, int(there["CPU"]) if ADDRESS in os.environ else cores, gpus)
        kind = ray.remote(_Worker).options(
            num_cpus=threads, num_gpus=1 if gpus else 0, max_restarts=_TRIES, max_task_retries=_TRIES
        )
        pool = ActorPool([kind.remote(make, job, sources, folder) for _ in range(count)])
        for shard in shards:
            if not pool.has_free():
                yield _next(pool, ray)
            pool.submit(lambda worker, value: worker.score.remote(value), shard)
        while pool.has_next():
            yield _next(pool, ray)


def workers_of(wanted: int | None, threads: int, cores: int, gpus: int) -> int:
    """How many processes score; None: as many as there is room for.

    Raises:
        ConfigError: there is not enough room: Ray would wait for more for ever.
    """
    room = gpus or cores // threads
    if wanted is not None and (gpus or ADDRESS in os.environ) and wanted > room:
        what = f"{gpus} GPUs" if gpus else f"{cores} cores"
        raise ConfigError(f"scoring.workers {wanted}: Ray has {what}, which is room for {room}: set {room} or fewer")
    return wanted or max(1, room)


def _next(pool: Any, ray: ModuleType) -> Done:
    try:
        done: Done = pool.get_next_unordered()
    except ray.exceptions.RayTaskError as error:  # what the worker raised is the cause
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise ConfigError(
            f"Ray: a process that scores has died {_TRIES + 1} times, of too little memory perhaps: set fewer "
            f"scoring.workers. What is done is kept ({error!s:.300})"
        ) from error
    return done
