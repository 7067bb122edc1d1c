"""What a cached step made, and is no longer there, is made again by the same command.

ZenML takes a step's outputs from its cache without a look at the artifact store: a later step would fail on what was
deleted, at every start.
"""

from __future__ import annotations

import functools
import os

from zenml.artifact_stores import BaseArtifactStore
from zenml.client import Client
from zenml.logger import get_logger
from zenml.models import ArtifactVersionResponse, StepRunResponse
from zenml.orchestrators import cache_utils
from zenml.utils.time_utils import utc_now

logger = get_logger(__name__)

_SIZE = "storage_size"  # ZenML's own metadata of an artifact: bytes of all its files, when it was stored
_cached_step_run = cache_utils.get_cached_step_run


def prepare() -> None:
    """Call once: from then on a cached step counts only while its outputs are there."""
    cache_utils.get_cached_step_run = _whole_step_run


def _whole_step_run(cache_key: str) -> StepRunResponse | None:
    found = _cached_step_run(cache_key=cache_key)
    if found is None:
        return None
    store = Client().active_stack.artifact_store
    for name, artifacts in found.outputs.items():
        for artifact in artifacts:
            if not is_whole(artifact, store):
                _tell(
                    f"The output {name} of step {found.name} is gone, or a part of it ({artifact.uri}): it runs again"
                )
                return None
    return found


@functools.cache
def _tell(line: str) -> None:
    """Once: ZenML asks when it plans a run, and again when it comes to the step."""
    logger.warning(line)


def is_whole(artifact: ArtifactVersionResponse, store: BaseArtifactStore) -> bool:
    """Whether the artifact's files are there, as many bytes as were stored; of no known size: whether there are any."""
    stored = artifact.run_metadata.get(_SIZE)
    return _size(artifact.uri, store) >= max(1, stored if isinstance(stored, int) else 1)


def _size(path: str, store: BaseArtifactStore) -> int:
    if not store.exists(path):
        return 0
    if not store.isdir(path):
        return store.size(path) or 0
    return sum(_size(os.path.join(path, str(name)), store) for name in store.listdir(path))


def forget_ingest(pipeline: str) -> None:
    """The last run of `pipeline` found an image that is not what ingest read: the next start reads all of them again.

    Their sizes and times, by which ingest is cached, may be the same as before.
    """
    client = Client()
    for step in client.list_run_steps(name="ingest", sort_by="desc:created", size=20, hydrate=True).items:
        run = client.get_pipeline_run(step.pipeline_run_id)
        if run.pipeline is not None and run.pipeline.name == pipeline:
            client.update_step_run(step.original_step_run_id or step.id, cache_expires_at=utc_now())
            return
