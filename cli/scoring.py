"""`agentps stream`, `dead-letters`: scoring in production."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.registry import _open

if TYPE_CHECKING:
    from scoring.settings import StreamSettings

_run_file = click.option(
    "-c", "--config", required=True, type=click.Path(path_type=Path), help="The run file, with a section `stream`."
)


@click.command()
@click.option("--once", is_flag=True, help="End when the source has given nothing for some seconds.")
@_run_file
def stream(once: bool, config: Path) -> None:
    """Score the posts of a broker or a folder as they come. Ctrl-C or SIGTERM: the batch at hand is finished first."""
    from scoring.stream.run import stream as follow

    chosen, ingest, score = _stream(config)
    follow(chosen, ingest, score, lambda line: click.echo(line, err=True), once=once)


@click.group("dead-letters")
def dead_letters() -> None:
    """Messages of a stream that became no record: what they were, why, and once more."""


@dead_letters.command("list")
@_run_file
def list_(config: Path) -> None:
    """One line each: its id, where it came from, its post, and why."""
    from pipelines.config import read_stream
    from scoring.stream.run import letters_of, store_of

    found = 0
    with store_of(read_stream(config)) as store:
        for found, letter in enumerate(letters_of(store), start=1):  # noqa: B007
            post = f" post {letter.post_id}" if letter.post_id else ""
            click.echo(f"{letter.id}  {letter.at:%Y-%m-%d %H:%M:%S}  {letter.source} {letter.message_id}{post}: {letter.reason}")
    click.echo(f"{found:,} dead letters", err=True)


@dead_letters.command()
@click.argument("ids", nargs=-1, type=int)
@_run_file
def replay(ids: tuple[int, ...], config: Path) -> None:
    """Take these messages once more; without IDS all. Those that have a record then are no dead letters any more."""
    from scoring.stream.run import letters_of, store_of
    from scoring.stream.run import replay as take_again

    chosen, ingest, score = _stream(config)
    with store_of(chosen) as store:
        done, overtaken, left = take_again(chosen, ingest, score, list(letters_of(store, ids)))
    click.echo(f"{done:,} scored, {overtaken:,} left out because their posts are newer by now, {left:,} stay dead letters")


def _stream(config: Path) -> tuple[StreamSettings, Any, Any]:
    """The section, and who scores: the service that it names, or the champion in this process."""
    from pipelines.config import read_stream
    from scoring.stream.run import score_of

    settings, name = _open(config)
    chosen = read_stream(config)
    return chosen, settings.ingest, score_of(chosen, name)
