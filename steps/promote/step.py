"""Step 8: the gate decides; `champion` moves when the new version passes."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import mlflow
import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger
from zenml.types import HTMLString

from materializers.directory import ShardDirectory
from model.metrics import point_name
from model.task import Task
from steps.evaluate.report import EvalReport
from steps.notify import from_here, send
from steps.promote.gate import Decision
from steps.publish import lay
from steps.register import history
from steps.register.mirror import spread
from steps.register.reach import answered
from steps.register.registry import CHALLENGER, CHAMPION, RegisteredVersion
from steps.settings import NotifySettings, PromoteSettings

logger = get_logger(__name__)


@step(experiment_tracker=True, enable_cache=False)  # the answer depends on the registry, not only on the inputs
def promote(
    version: RegisteredVersion,
    report: EvalReport,
    report_page: HTMLString,
    predictions: pd.DataFrame,
    shards: ShardDirectory,
    posts: pd.DataFrame,
    task: Task,
    settings: PromoteSettings,
    precision: int,
    notify: NotifySettings,
    alarmed: str | None = None,
) -> tuple[Annotated[str, "decision"], Annotated[pd.DataFrame, "champion_scores"]]:
    """The decision with its reason, which is also among the version's tags; and the scores that the champion gave
    to the same test posts (`post_id`, `label`, `score` of the candidate, `champion`).

    `precision`: the target, in percent, at which posts are flagged. `alarmed`: the version that people's late labels
    speak against, see `steps.retrain.step.live`. `notify`: who is told where the gate leaves it to a person.

    This step is never cached, so it is the one that lays the run's own report page where the summary says.
    """
    from steps.promote.candidate import Candidate

    page = lay(report_page, "evaluation")
    candidate = Candidate(
        version, report, predictions, shards.path, posts, task, settings, alarmed, point_name(precision)
    )
    decision = history.settle(version, candidate.decide)
    state = history.sync(version.name)
    spread(state, settings.target)
    said = f"{decision.verdict}: {decision.reason}"
    with answered():
        mlflow.log_dict(json.loads(decision.model_dump_json()), "promotion/decision.json")
    log_metadata({"decision": said})
    for undelivered in tell(version, decision, notify):
        logger.warning("%s", undelivered)
    alias = CHAMPION if state.aliases.get(CHAMPION) == version.version else CHALLENGER
    logger.info(
        "\n%s\n\n%s version %s is @%s (%s)\nReport: %s\nNext: mlflow ui --backend-store-uri %s",
        report.table(),
        version.name,
        version.version,
        alias,
        said,
        page,
        shlex.quote(mlflow.get_tracking_uri()),
    )
    return said, candidate.scores


def tell(version: RegisteredVersion, decision: Decision, settings: NotifySettings) -> list[str]:
    """Tell a person whose word the gate waits for. Returns: what could not be delivered and why."""
    if decision.verdict != history.NEEDS_A_PERSON:
        return []
    take = f'agentps promote {version.version} --because "…"'
    line = f"{version.name} version {version.version} {decision.verdict}: {decision.reason}. To take it: {take}"
    return send(from_here(line), settings)
