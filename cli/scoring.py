"""`agentps serve`, `key`, `stream`, `dead-letters`: scoring in production."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.registry import _config, _open
from model.errors import plain

if TYPE_CHECKING:
    from scoring.settings import StreamSettings

_run_file = click.option(
    "-c", "--config", required=True, type=click.Path(path_type=Path), help="The run file, with a section `stream`."
)


@click.command()
@click.option("--port", type=click.IntRange(1, 65_535), help="Where to listen. Default: service.port, 8000.")
@_config
def serve(port: int | None, config: Path | None) -> None:
    """Score posts over HTTP with the champion; a new champion takes over by itself. Ctrl-C or SIGTERM ends it."""
    import threading

    import mlflow

    from pipelines.config import read_service
    from scoring.serve import serve_until
    from steps.paths import home

    service = read_service(config)
    if port is not None:
        service = service.model_copy(update={"port": port})
    _, name = _open(config)

    def say(line: str) -> None:
        click.echo(line, err=True)

    left = serve_until(threading.Event(), name, service, mlflow.get_tracking_uri(), home(), say)
    if left:
        raise click.ClickException(f"{left} requests were not answered within {service.drain:g} s (service.drain)")


@click.command()
@click.argument("name")
@click.option("--posts-per-minute", type=click.IntRange(1), help="At most. Default: as before; a new client: no limit.")
@_config
def key(name: str, posts_per_minute: int | None, config: Path | None) -> None:
    """Make an API key for the client NAME, and print it this once. The file service.keys gets its hash."""
    from model.errors import ConfigError
    from pipelines.config import read_service
    from scoring.keys import new_key

    service = read_service(config)
    if service.keys is None:
        raise ConfigError("key: service.keys names no file: set it in the file that -c names, as keys: keys.yaml")
    click.echo(new_key(Path(service.keys), name, posts_per_minute))


@click.command()
@click.option("--once", is_flag=True, help="End when the source has given nothing for some seconds.")
@_run_file
def stream(once: bool, config: Path) -> None:
    """Score the posts of a broker or a folder as they come. Ctrl-C or SIGTERM: the batch at hand is finished first."""
    from scoring.stream.run import stream as follow
    from steps.log_lines import speak

    speak()
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
    from scoring.stream.run import letters_of, store_of, with_store

    found = 0
    settings, _ = _open(config)
    with store_of(with_store(read_stream(config), settings.retrain.scores)) as store:
        for found, letter in enumerate(letters_of(store), start=1):  # noqa: B007
            post = f" post {letter.post_id}" if letter.post_id else ""
            when = f"{letter.at:%Y-%m-%d %H:%M:%S}"
            click.echo(f"{letter.id}  {when}  {letter.source} {letter.message_id}{post}: {plain(letter.reason)}")
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
    click.echo(f"{done:,} have a record now, {overtaken:,} are left out (a newer one is there), {left:,} stay dead")


def _stream(config: Path) -> tuple[StreamSettings, Any, Any]:
    """The section, and who scores: the service that it names, or the champion in this process."""
    from pipelines.config import read_stream
    from scoring.stream.run import score_of, with_store

    settings, name = _open(config)
    chosen = with_store(read_stream(config), settings.retrain.scores)
    return chosen, settings.ingest, score_of(chosen, name)
