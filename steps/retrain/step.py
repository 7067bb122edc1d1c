"""What a retraining adds to the path of a training: the champion's live figures, the drift, the retraining cursor."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import mlflow
import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger
from zenml.types import HTMLString

from materializers.directory import ShardDirectory
from model.errors import DataError
from model.schema import CREATED_AT
from model.settings import BackboneSettings
from model.task import Task
from steps.caching import depends_on
from steps.paths import home
from steps.publish import page_path, publish
from steps.register import history, registry
from steps.register.mirror import spread
from steps.register.registry import RegisteredVersion
from steps.retrain import fresh
from steps.retrain.live import live as live_figures
from steps.retrain.live import scores_place, tell
from steps.settings import NotifySettings, RetrainSettings, TrainingSettings, load_settings
from steps.tables import NoMatchError

logger = get_logger(__name__)


@step(experiment_tracker=True, enable_cache=False)  # labels and scores come in at any time
def live(
    model_name: str, champion: str | None, settings: RetrainSettings, notify: NotifySettings, confidence: float
) -> tuple[Annotated[str, "live"], Annotated[str, "alarmed"]]:
    """How the champion did on what people labelled since; a person is told where that is below its promise.

    `alarmed` is the champion's version then, and empty otherwise.
    """
    scores = scores_place(settings.scores)
    if champion is None or scores is None or settings.labels is None:
        missing = "there is no champion" if champion is None else "there are no scores, or no retrain.labels"
        line = f"live precision is not known: {missing}"
        logger.info("%s", line)
        return line, ""
    try:
        found = live_figures(scores, settings.labels, model_name, champion, settings, confidence)
    except NoMatchError as error:  # labels come late: this is no reason not to train
        logger.warning("live precision is not known: %s", error)
        return f"live precision is not known: {error}", ""
    figures = {
        "live_precision": found.precision.value,
        "live_precision_high": found.high,
        "live_recall": found.recall.value,
        "live_labelled": float(found.labelled),
    }
    known = {name: value for name, value in figures.items() if value is not None}
    mlflow.log_metrics(known)
    log_metadata({**known, "alarm": found.alarm})
    line = f"{model_name} {found.line}"
    if not found.alarm:
        logger.info("%s", line)
        return line, ""
    logger.warning("%s", line)
    for undelivered in tell(model_name, found, notify):
        logger.warning("%s", undelivered)
    return line, champion


@step(experiment_tracker=True, cache_policy=depends_on(__name__))
def drift(
    posts: pd.DataFrame,
    labels: pd.DataFrame,
    shards: ShardDirectory,
    task: Task,
    backbone: BackboneSettings,
    model_name: str,
    champion: str | None,
    since: datetime | None,
    settings: RetrainSettings,
) -> tuple[Annotated[pd.DataFrame, "profile"], Annotated[HTMLString, "drift_page"]]:
    """The profile of this run's training posts; and a page that compares its fresh ones with the champion's.

    Raises:
        DataError: they differ, and `on_drift` is `fail`. The page is kept all the same, in MLflow and on disk.
    """
    from model.data import Shards
    from steps.fine_tune.backbone import resolve
    from steps.retrain.drift import Difference, compare, records, render
    from steps.retrain.profile import profile as profile_of

    own = profile_of(posts, labels, task, Shards(shards.path), resolve(backbone, home(), shards.path))
    version = registry.get(model_name, champion) if champion is not None else None
    reference = registry.profile_of(version) if version is not None else None
    lines: list[Difference] = []
    reason = None
    if version is None:
        reason = "There is no champion yet: nothing to compare with."
    elif reference is None:
        reason = f"Version {champion} carries no profile of its training posts: nothing was compared."
    else:
        newer = own if since is None else own[own[CREATED_AT] > since]
        lines = compare(reference, newer, task, settings)
    page = publish(render(lines, f"{model_name}: fresh posts against version {champion}", reason), "drift")
    mlflow.log_dict({"reason": reason, "lines": records(lines)}, "drift/drift.json")
    log_metadata({"drift": reason or {line.what: line.outcome for line in lines}})
    if reason is not None:
        logger.warning("%s", reason)
    found = [line for line in lines if line.outcome != "within limits"]
    for line in found:
        effect = "" if line.effect is None else f" {line.statistic} {line.effect:.3f}, limit {line.limit:g}"
        logger.warning("%s: %s%s (%s)", line.outcome, line.what, effect, line.found)
    drifted = [line.what for line in found if line.outcome == "drift"]
    if drifted and settings.on_drift == "fail":
        raise DataError(
            f"The fresh posts differ from those that {model_name} version {champion} was trained on: "
            f"{', '.join(drifted)}; the page is {page_path('drift')}. Look at them, then set retrain.on_drift to warn"
        )
    return own, page


def refit_options(settings: TrainingSettings) -> dict[str, Any]:
    """The sections that `refit` reads."""
    read = {"posts", "variant", "sample", "ingest", "evaluate", "promote", "retrain"}
    return settings.model_dump(mode="json", by_alias=True, include=read)


@step(experiment_tracker=True, enable_cache=False)  # labels and scores come in at any time
def refit(
    version: RegisteredVersion, decision: str, alarmed: str, options: dict[str, Any]
) -> Annotated[str, "outcome"]:
    """Where a champion below its promise stays champion: its thresholds, fitted to the newest labels, through the gate.

    Args:
        options: of `refit_options`; ZenML would check the settings again, and some change as they are read.

    Returns the gate's decision on the candidate, and after it, where thresholds were fitted, what became of them.
    """
    if not alarmed or history.sync(version.name).aliases.get(registry.CHAMPION) != alarmed:
        return decision
    from steps.promote.recalibrate import recalibrate

    settings = load_settings(options)
    try:
        made = recalibrate(version.name, settings, None, late=True)
    except DataError as error:  # the candidate was judged, and a person was told: this is no reason to repeat it all
        logger.warning("the thresholds of version %s stay as they are: %s", alarmed, error)
        return f"{decision}; thresholds stay: {error}"
    spread(history.sync(version.name), settings.promote.target)
    said = f"thresholds fitted again, version {made.version.version} {made.decision.verdict}: {made.decision.reason}"
    log_metadata({"refit": said})
    logger.info("%s\n%s", made.report.table(), said)
    return f"{decision}; {said}"


@step(enable_cache=False)
def advance(version: RegisteredVersion, decision: str, newest: datetime) -> None:
    """The last step: from here on these posts are old. A run that ended before it is repeated by the next."""
    cursor = fresh.Cursor(newest=newest, version=version.version, decision=decision)
    fresh.advance(fresh.cursor_path(home(), version.name), cursor)
    logger.info("%s: posts up to %s are done", version.name, newest.isoformat())
