"""The retraining pipeline: `zenml pipeline run pipelines.agentps_retraining -c FILE`.

At its top it imports what tells whether there is anything to do; the steps come after that.
"""

from __future__ import annotations

from typing import Any

from model.errors import ConfigError
from model.task import load_task
from pipelines.entry import CheckedPipeline
from steps.ingest.posts import group_splits
from steps.ingest.rows import absolute
from steps.paths import home
from steps.retrain import fresh
from steps.settings import SAMPLE, TrainingSettings, load_settings


def _source(settings: TrainingSettings) -> str:
    if settings.posts == SAMPLE:
        raise ConfigError(f"posts: {SAMPLE}: nothing in it is ever new: name a manifest, or a folder of manifests")
    return absolute(settings.posts)


def _idle(options: dict[str, Any]) -> str | None:
    settings = load_settings(options)
    cursor = fresh.read_cursor(fresh.cursor_path(home(), settings.register_.model_name(load_task(settings.task))))
    return fresh.too_little(_source(settings), cursor, settings.retrain, settings.ingest.max_reject_share)


def _retraining(options: dict[str, Any] | None = None) -> None:
    """`options`: laid over `configs/default.yaml`, key by key."""
    import mlflow

    from infra.local_stack import tracking_uri
    from pipelines.training import improved, prepare
    from steps.evaluate.step import evaluate
    from steps.fine_tune.ahead import check_start
    from steps.fine_tune.step import fine_tune
    from steps.promote.step import promote
    from steps.register import history, registry
    from steps.register.names import check_names
    from steps.register.step import register
    from steps.retrain.step import advance, drift, live, refit, refit_options

    settings = load_settings(options or {})
    policy, source = load_task(settings.task), _source(settings)
    name, root = settings.register_.model_name(policy), fresh.folder_of(source)
    check_names(name, settings.promote.target)
    mlflow.set_tracking_uri(tracking_uri(home()))
    champion = history.sync(name).champion
    cursor = fresh.read_cursor(fresh.cursor_path(home(), name))
    posts = fresh.read_posts(source, fresh.columns_of(policy), policy, settings.ingest.max_reject_share)
    fresh.tell_unweighed(settings.retrain.labels)
    run = fresh.begin(
        fresh.select(
            posts,
            cursor.newest if cursor else None,
            fresh.read_labels(settings.retrain.labels) if settings.retrain.labels else {},
            settings.retrain,
            settings.ingest,
            group_splits(posts, root, settings.ingest) if settings.ingest.group_by else {},
            fresh.read_chances(settings.retrain.labels) if settings.retrain.labels else {},
        ),
        root,
        champion.version if champion else None,
        home() / "work" / "retrain",
    )
    start = run.champion if settings.retrain.start == "champion" else None
    if start is not None:
        check_start(registry.fetch(registry.get(name, start), policy), policy, settings)

    _live, alarmed = live(name, run.champion, settings.retrain, settings.notify, settings.evaluate.confidence)
    chosen = settings.model_copy(update={"posts": str(run.manifest)})
    fingerprint, table, labels, shards = prepare(chosen, policy, root, run.fingerprint)
    profile, _page = drift(
        table, labels, shards, policy, settings.backbone, name, run.champion, run.since, settings.retrain
    )
    taught, weights = improved(settings, policy, shards, labels, fingerprint, name, start)
    options_of = (settings.backbone, fingerprint, settings.fine_tune, name, start, weights)
    checkpoint = fine_tune(shards, taught, policy, *options_of, after=["drift"])
    report, page, predictions = evaluate(
        checkpoint, shards, table, labels, policy, settings.backbone.name, settings.annotate.source, settings.evaluate
    )
    version = register(
        checkpoint, report, predictions, table, policy, fingerprint, settings.register_, settings.ingest, profile
    )
    decision, _scores = promote(
        version, report, page, predictions, shards, table, policy, settings.promote, settings.retrain.live_precision,
        settings.notify, alarmed,
    )  # fmt: skip
    outcome = refit(version, decision, alarmed, refit_options(settings))
    advance(version, outcome, run.newest)


agentps_retraining = CheckedPipeline(
    name="agentps_retraining", entrypoint=_retraining, kind=TrainingSettings, idle=_idle
)
