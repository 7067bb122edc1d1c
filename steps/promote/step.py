"""Step 8: the gate decides; `champion` moves when the new version passes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import mlflow
import numpy as np
import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger
from zenml.types import HTMLString

from materializers.directory import ShardDirectory
from model.schema import LABEL, POST_ID, SPLIT, TEST
from model.task import Task
from steps.evaluate.report import SCORE, EvalReport
from steps.mirror import mirror
from steps.promote.champion import score_posts
from steps.promote.gate import Decision, Judged, Posts, Unscored, decide, slices_of
from steps.register import history, registry
from steps.register.registry import CHALLENGER, CHAMPION, RegisteredVersion
from steps.settings import PromoteSettings, home

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
) -> tuple[Annotated[str, "decision"], Annotated[pd.DataFrame, "champion_scores"]]:
    """The decision with its reason, which is also among the version's tags; and the scores that the champion gave
    to the same test posts (`post_id`, `label`, `score` of the candidate, `champion`).

    This step is never cached, so it is the one that lays the run's own report page where the summary says.
    """
    page = home() / "reports" / "evaluation.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report_page, encoding="utf-8")

    test = predictions[(predictions[SPLIT] == TEST) & predictions[LABEL].notna()].reset_index(drop=True)
    compared = test[[POST_ID, LABEL, SCORE]].assign(champion=np.nan)
    table = posts.set_index(POST_ID, drop=False).loc[test[POST_ID]]
    judged = Posts(labels_N=(test[LABEL] == 1).to_numpy(bool), slices=slices_of(table))
    candidate = Judged(scores_N=test[SCORE].to_numpy(np.float64), report=report)

    def against(state: history.State) -> Decision:
        current = state.champion
        if current is None:
            return decide(candidate, None, judged, settings)
        if current.version == version.version:
            return Decision(verdict="already champion", reason="this version is the champion")
        if (move := state.rolled_back(version.version)) is not None:
            why = f"it was champion until {move.by} went back on {move.at:%Y-%m-%d} ({move.reason})"
            return decide(candidate, Unscored(why), judged, settings)
        held = registry.report_of(current)
        if held.task_fingerprint != task.fingerprint:
            why = f"the champion, version {current.version}, answers another task: the two cannot be compared"
            return decide(candidate, Unscored(why), judged, settings)
        checkpoint = registry.fetch(current, task)
        scores = score_posts(checkpoint, registry.fetch(version, task), test[POST_ID].tolist(), shards.path, posts)
        compared["champion"] = scores
        age = datetime.now(UTC) - state.champion_since if state.champion_since else timedelta(0)
        return decide(candidate, Judged(scores_N=scores, report=held), judged, settings, age)

    decision = history.settle(version, against)
    state = history.sync(version.name)
    if settings.target is not None:
        history.publish(version.name, settings.target)
    mirror(state)
    said = f"{decision.verdict}: {decision.reason}"
    mlflow.log_dict(json.loads(decision.model_dump_json()), "promotion/decision.json")
    log_metadata({"decision": said})
    alias = CHAMPION if state.aliases.get(CHAMPION) == version.version else CHALLENGER
    logger.info(
        "\n%s\n\n%s version %s is @%s (%s)\nReport: %s\nNext: mlflow ui --backend-store-uri %s",
        report.table(),
        version.name,
        version.version,
        alias,
        said,
        page,
        mlflow.get_tracking_uri(),
    )
    return said, compared
