"""Calibration and thresholds of the champion, fitted again on newer posts; its weights stay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from model.checkpoint_info import read_info, read_operating_points
from model.columns import ERROR, LOGIT, SCORE, answer_column, probability_column
from model.errors import DataError
from model.metrics import BRIER_SKILL, point_name
from model.schema import LABEL, POST_ID, PROBABILITY, SPLIT, TEST, VAL
from steps.evaluate.predictions import calibrated
from steps.evaluate.report import EvalReport, build_report
from steps.ingest.posts import manifest_fingerprint, read_manifest
from steps.ingest.sample import render_sample
from steps.paths import home
from steps.promote.gate import Decision, Judged, Posts, decide, slices_of
from steps.register import history, registry
from steps.register.moves import RegistryState
from steps.register.own_code import scorer_of
from steps.register.reach import answered
from steps.register.registry import RegisteredVersion
from steps.retrain.newest import newest_posts
from steps.settings import SAMPLE, EvaluateSettings, PromoteSettings, TrainingSettings
from steps.survey import weights_of
from steps.tables import rows_of

#: Both versions rank the posts alike, so every rank metric is a tie: they differ in how far a score is the
#: probability that it says.
METRIC = BRIER_SKILL


@dataclass(frozen=True)
class Fitted:
    """report, predictions: as those of `evaluate`, on the new posts. decision: of the gate."""

    report: EvalReport
    predictions: pd.DataFrame
    decision: Decision


@dataclass(frozen=True)
class Recalibrated:
    """The new version, what was measured of it, and what became of it."""

    version: RegisteredVersion
    report: EvalReport
    decision: Decision


@answered()
def recalibrate(name: str, settings: TrainingSettings, experiment: str | None, *, late: bool = False) -> Recalibrated:
    """A new version of the model's champion, fitted again on the posts of `settings`, through the gate.

    Args:
        experiment: MLflow's, for the run that the version belongs to; None: below the run that is active.
        late: fit on what the champion scored since its precision fell and people labelled since (`retrain.labels`).
            The live figures show that its promise is broken, so the gate takes it for stale.

    Raises:
        RegistryError: there is no champion.
        DataError: as `fit` and `newest_posts`.
    """
    champion = history.champion_of(name)
    checkpoint = registry.fetch(champion)
    task = read_info(checkpoint).task
    if late:
        posts, fingerprint = newest_posts(name, champion, settings, task)
    else:
        manifest = render_sample(settings.sample, home()) if settings.posts == SAMPLE else settings.posts
        posts, fingerprint = read_manifest(manifest, task, settings.ingest).posts, manifest_fingerprint(manifest)
    held = registry.report_of(champion)
    point = point_name(settings.retrain.live_precision)
    made = fit(checkpoint, held, posts, settings.evaluate, settings.promote, point, alarmed=late)
    if experiment is not None:
        mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=f"recalibrate version {champion.version}", nested=experiment is None):
        mlflow.log_metrics(made.report.mlflow_metrics())
        version, _ = registry.register(
            checkpoint,
            made.report,
            made.predictions,
            task,
            registry.example_of(posts),
            name=name,
            tags={
                "agentps.variant": made.report.variant,
                "agentps.annotator": made.report.annotator,
                "agentps.data": fingerprint,
                "agentps.recalibrated_from": champion.version,
            },
            profile=registry.profile_of(champion),
            posts=posts,
        )
    history.challenge(version)
    return Recalibrated(version, made.report, history.settle(version, partial(_verdict, made, version, champion)))


def _verdict(made: Fitted, version: RegisteredVersion, champion: RegisteredVersion, state: RegistryState) -> Decision:
    """What the gate said, where the champion is still the one that was fitted again."""
    held = state.aliases.get(registry.CHAMPION)
    if held == version.version:
        return Decision(verdict="already champion", reason="this version is the champion")
    if held != champion.version:
        why = f"version {held} became champion meanwhile; this one is version {champion.version}'s: recalibrate again"
        return Decision(verdict="kept", reason=why)
    return made.decision


def fit(
    checkpoint: Path,
    held: EvalReport,
    posts: pd.DataFrame,
    evaluate: EvaluateSettings,
    promote: PromoteSettings,
    point: str,
    *,
    alarmed: bool = False,
) -> Fitted:
    """Fit on the val posts of `posts`, measure on its test posts, and ask the gate.

    Args:
        checkpoint: the champion's, as registered.
        held: the champion's report.
        posts: see `steps.ingest.posts`. Where it has `inclusion_probability`, posts were drawn for people with it: each
            stands for 1 / probability.
        point: the operating point that is served.
        alarmed: people's late labels speak against the champion.

    Raises:
        DataError: val or test has no labelled positive post, or a post that the champion cannot score.
    """
    scorer, points, task = scorer_of(checkpoint), read_operating_points(checkpoint), read_info(checkpoint).task
    tables = {}
    for split in (VAL, TEST):
        rows = posts[posts[SPLIT] == split].reset_index(drop=True)
        if not (rows[LABEL] == 1).any():
            raise DataError(f"split {split}: none of its {len(rows)} posts has label 1: nothing can be fitted to it")
        found = scorer.score(rows)
        if len(errors := found[ERROR].dropna()):
            raise DataError(
                f"split {split}: the champion cannot score {len(errors)} of its {len(rows)} posts: {errors.iloc[0]}: "
                "mend them or take them out of the manifest; its limits of images are those that it was trained with"
            )
        answers = [column(id_) for id_ in task.question_ids for column in (answer_column, probability_column)]
        said = found[[LOGIT, *(name for name in answers if name in found)]]
        drawn = {PROBABILITY} & {*rows}
        tables[split] = rows[[POST_ID, SPLIT, LABEL, *task.question_ids, *drawn]].join(said)
    val, test, calibration = calibrated(tables[VAL], tables[TEST])
    report = build_report(
        val,
        test,
        task,
        evaluate,
        variant=held.variant,
        seed=held.seed,
        backbone=held.backbone,
        annotator=held.annotator,
        annotated_missing_share=held.annotated_missing_share,
        calibration=calibration,
    )
    judged = test[test[LABEL].notna()]
    settings = promote.model_copy(
        update={"metric": METRIC, "floor": 0.0, "floors": {**promote.floors, promote.metric: promote.floor}}
    )
    decision = decide(
        Judged(scores_N=judged[SCORE].to_numpy(np.float64), report=report),
        Judged(scores_N=points.calibration.apply(judged[LOGIT].to_numpy()), report=held),
        Posts(
            labels_N=(judged[LABEL] == 1).to_numpy(bool),
            slices=slices_of(rows_of(posts, judged[POST_ID].tolist(), "posts")),
            weights_N=weights_of(judged),
        ),
        settings,
        alarmed=alarmed,
        point=point,
    )
    return Fitted(report, pd.concat([val, test], ignore_index=True), decision)
