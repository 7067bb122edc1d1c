"""`agentps promote`, `rollback`, `history`, `compare`, `fetch`, `recalibrate`, `score`, `live`: the registry."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from steps.register.moves import Entry, RegistryState
    from steps.settings import TrainingSettings

_config = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="The config file of the pipeline; it says which model, policy and target. Default: configs/default.yaml.",
)


def _open(config: Path | None) -> tuple[TrainingSettings, str]:
    """The settings and the registered model's name; MLflow is where the local stack has it, or its variables say."""
    import mlflow

    from infra.local_stack import tracking_uri
    from model.task import load_task
    from pipelines.config import read_options
    from steps.paths import home
    from steps.register.names import check_names
    from steps.settings import load_settings

    settings = load_settings(read_options(config), f"config {config}")
    mlflow.set_tracking_uri(tracking_uri(home()))
    name = settings.register_.model_name(load_task(settings.task))
    check_names(name, settings.promote.target)
    return settings, name


def _say(state: RegistryState) -> None:
    shown = ", ".join(f"{alias} {version}" for alias, version in sorted(state.aliases.items()))
    click.echo(f"{state.name}: {shown or 'no alias yet'}")


@click.command()
@click.argument("version")
@click.option("--because", required=True, help="Why; it goes into the version's tags and the history.")
@_config
def promote(version: str, because: str, config: Path | None) -> None:
    """Make VERSION the champion, where the gate left that to a person."""
    settings, name = _open(config)
    from steps.register import history, registry
    from steps.register.mirror import spread

    state = history.approve(registry.get(name, version), because)
    spread(state, settings.promote.target)
    _say(state)


@click.command()
@click.option("--because", required=True, help="Why; it goes into the history.")
@_config
def rollback(because: str, config: Path | None) -> None:
    """Give `champion` back to `previous`. A second rollback goes forward again."""
    settings, name = _open(config)
    from steps.register import history
    from steps.register.mirror import spread

    state = history.rollback(name, because)
    spread(state, settings.promote.target)
    _say(state)


@click.command()
@click.option("--on", type=click.DateTime(), help="Print only which version was champion at this time (UTC).")
@_config
def history(on: object, config: Path | None) -> None:
    """Every move of an alias, with time, reason and report."""
    settings, name = _open(config)
    from datetime import UTC, datetime

    from steps.register.mirror import shown

    state = shown(name, settings.promote.target)
    if isinstance(on, datetime):
        click.echo(state.on(on.replace(tzinfo=UTC)) or "none")
        return
    _say(state)
    for entry in state.entries:
        click.echo(_line(name, entry))


def _line(name: str, entry: Entry) -> str:
    from model.errors import plain

    move = entry.move
    moved = ", ".join(f"{alias} {entry.before[alias] or '-'} > {v or '-'}" for alias, v in move.sets.items())
    moved = moved or f"version {move.judged}"
    line = f"{entry.number:>4}  {entry.at:%Y-%m-%d %H:%M:%S}Z  {move.kind} ({plain(move.by)}): {plain(moved)}"
    if abs(entry.at - move.at) > timedelta(minutes=5):
        line += f"  [its machine's clock said {move.at:%Y-%m-%d %H:%M:%S}Z]"
    if not entry.counts:
        line += "  [came second: changed nothing]"
    if move.reason:
        line += f"\n      {plain(move.reason)}"
    version = move.sets.get("champion")
    return line + (f"\n      models:/{name}/{plain(version)}/artifacts/checkpoint/report.json" if version else "")


@click.command()
@click.argument("a")
@click.argument("b")
@_config
def compare(a: str, b: str, config: Path | None) -> None:
    """The reports of versions A and B side by side, with the significance of the difference."""
    settings, name = _open(config)
    from steps.register import registry
    from steps.register.compare import Version
    from steps.register.compare import compare as side_by_side

    versions = [
        Version(f"version {v.version}", registry.report_of(v), registry.predictions_of(v))
        for v in (registry.get(name, a), registry.get(name, b))
    ]
    click.echo(side_by_side(versions[0], versions[1], n=settings.promote.bootstrap))


@click.command()
@click.argument("version", required=False)
@_config
def fetch(version: str | None, config: Path | None) -> None:
    """Print the folder of VERSION (default: the champion) on this machine, once each file is as it was registered."""
    _, name = _open(config)
    from steps.register import registry
    from steps.register.history import champion_of

    click.echo(registry.folder_of(champion_of(name) if version is None else registry.get(name, version)))


_SCORES_HELP = "A store's URL, or a table (.jsonl). Default: retrain.scores, or else the store of this machine."


@click.command()
@click.option("--posts", required=True, help="A manifest of posts, labelled or not, or a folder of some: path or URL.")
@click.option("--scores", help=f"Where to keep them. {_SCORES_HELP}")
@click.option(
    "--policy", type=click.Path(path_type=Path), help="A policy, whose word on each post the store keeps, too."
)
@_config
def score(posts: str, scores: str | None, policy: Path | None, config: Path | None) -> None:
    """Score posts with the champion, and keep what it says. What it has scored before is left out."""
    settings, name = _open(config)
    from scoring.manifest import score_manifest

    click.echo(score_manifest(name, posts, settings, scores, policy))


@click.command()
@click.option("--scores", help=f"The scored posts. {_SCORES_HELP}")
@click.option("--labels", help="People's labels since: a file, or the desk's store. Default: retrain.labels.")
@_config
def live(scores: str | None, labels: str | None, config: Path | None) -> None:
    """The champion's precision and recall on what people labelled since. Exit code 1, and a notice, on an alarm."""
    settings, name = _open(config)
    from steps.register.history import champion_of
    from steps.retrain.live import live as figures
    from steps.retrain.live import live_tables, tell

    scored, labelled = live_tables(scores, labels, settings.retrain)
    found = figures(scored, labelled, name, champion_of(name).version, settings.retrain, settings.evaluate.confidence)
    click.echo(f"{name} {found.line}")
    if found.alarm:
        for undelivered in tell(name, found, settings.notify):
            click.echo(undelivered, err=True)
        raise SystemExit(1)


@click.command()
@click.option(
    "--late",
    is_flag=True,
    help="On what the champion scored since its precision fell, with people's labels since (retrain.labels).",
)
@_config
def recalibrate(late: bool, config: Path | None) -> None:
    """Fit the champion's calibration and thresholds again, on the config's posts: a new version, through the gate."""
    settings, name = _open(config)
    from infra.local_stack import LOCAL_STACK, load_stack
    from steps.paths import home
    from steps.promote.recalibrate import recalibrate as fit_again
    from steps.register import history
    from steps.register.mirror import spread

    made = fit_again(name, settings, load_stack(LOCAL_STACK, home()).experiments.names[0], late=late)
    spread(history.sync(name), settings.promote.target)
    said = f"{name} version {made.version.version}: {made.decision.verdict}: {made.decision.reason}"
    click.echo(f"{made.report.table()}\n\n{said}")
