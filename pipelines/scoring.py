"""The batch: `zenml pipeline run pipelines.agentps_scoring -c FILE`.

Its step is here and not under `steps/`: what stands there knows nothing of production.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from zenml import log_metadata, step
from zenml.logger import get_logger

from model.task import load_task
from pipelines.entry import CheckedPipeline
from scoring.settings import ScoringRunSettings, ScoringSettings
from steps.register.names import check_names
from steps.settings import load_options

logger = get_logger(__name__)


@step(experiment_tracker=True, enable_cache=False)  # what is scored is in the output
def score(name: str, settings: ScoringSettings) -> Annotated[dict[str, Any], "counts"]:
    """How many posts were scored, flagged at each operating point, could not be scored, and were rejected."""
    import mlflow

    from scoring.batch import load, score_batch, told
    from steps.register import history, registry

    version = registry.get(name, settings.version) if settings.version else history.champion_of(name)
    make = partial(load, version, mlflow.get_tracking_uri(), settings.threads)
    folder, counts = score_batch(version, make, settings)
    mlflow.log_metrics({"scored": counts.scored, "errors": counts.errors, "rejects": counts.rejects})
    found = counts.model_dump()
    log_metadata({"records": str(folder), "version": version.version, **found})
    logger.info("%s", told(version, folder, counts))
    return found


def _scoring(options: dict[str, Any] | None = None) -> None:
    """`options`: laid over `configs/scoring.yaml`, laid over `configs/default.yaml`, key by key."""
    settings = load_options(ScoringRunSettings, options or {}, "parameters")
    name = settings.register_.model_name(load_task(settings.task))
    check_names(name, None)
    settings.scoring.named()
    score(name, settings.scoring)


agentps_scoring = CheckedPipeline(name="agentps_scoring", entrypoint=_scoring, kind=ScoringRunSettings)
