"""What a stack's own scheduler runs (`agentps schedule --stack`): another pipeline, by the literal command.

So which posts are fresh is decided when the run begins: a scheduled pipeline's own parameters are those of the day when
the schedule was made. The step stands here because a stage, of `steps/`, knows nothing of schedules.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import yaml
from zenml import step
from zenml.logger import get_logger

from infra.schedule.job import Launch
from infra.schedule.run import run_now
from model.errors import ScheduleError
from model.files import write_whole
from pipelines.config import load_notify
from pipelines.entry import CheckedPipeline
from steps.paths import home
from steps.settings import RunOptions, load_options

logger = get_logger(__name__)


class ScheduledSettings(RunOptions):
    """What is run."""

    #: As `zenml pipeline run` takes it.
    pipeline: str = "pipelines.agentps_retraining"
    #: The content of its run file.
    config: dict[str, Any] = {}


@step(enable_cache=False)
def start(pipeline: str, config: dict[str, Any]) -> None:
    """
    Raises:
        ScheduleError: the command failed; the message is the notice that went out.
    """
    now = datetime.now(UTC)
    path = home() / "schedule" / "config.yaml"
    write_whole(path, yaml.safe_dump(config, allow_unicode=True), private=True)
    outcome = run_now(Launch(pipeline=pipeline, config=str(path), notify=load_notify(path)), home(), now)
    for undelivered in outcome.undelivered:
        logger.warning("%s", undelivered)
    if outcome.code:
        raise ScheduleError(outcome.line)
    logger.info("%s", outcome.line)


def _scheduled(options: dict[str, Any] | None = None) -> None:
    settings = load_options(ScheduledSettings, options or {}, "options")
    start(settings.pipeline, settings.config)


agentps_scheduled = CheckedPipeline(name="agentps_scheduled", entrypoint=_scheduled, kind=ScheduledSettings)
