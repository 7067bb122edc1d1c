"""`agentps serve`, `key`: scoring in production."""

from __future__ import annotations

from pathlib import Path

import click

from cli.registry import _config, _open


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
