"""`agentps size`: what a training takes, before it is begun."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("-c", "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A run file.")
@click.option("--posts", type=click.IntRange(min=1), default=10_000, show_default=True, help="Training posts.")
@click.option(
    "--images", type=click.FloatRange(min=1), default=5.0, show_default=True, help="Images of an average post."
)
def size(config: Path | None, posts: int, images: float) -> None:
    """Parameters, tokens, memory and hours of the training that FILE describes; nothing is loaded or fetched."""
    from model.task import load_task
    from pipelines.config import read_options
    from steps.fine_tune.size import report
    from steps.settings import load_settings

    settings = load_settings(read_options(config), f"config {config}" if config else "parameters")
    task = load_task(settings.task)
    click.echo(report(settings.backbone, settings.preprocess, settings.fine_tune, task, posts, images))
