"""`agentps desk`: people look at what the model said of posts."""

from __future__ import annotations

from pathlib import Path

import click

from cli.registry import _config, _open


@click.command()
@click.option("--demo", is_flag=True, help="On posts of the sample, after `make train`; without set-up.")
@click.option("--port", default=8100, show_default=True, type=click.IntRange(0, 65_535), help="0: any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--behind-https", "names", multiple=True, help="The name under which a proxy that speaks https has it.")
@click.option("--posts", help="The manifest, or folder of manifests, of the posts that were scored.")
@click.option("--policy", type=click.Path(path_type=Path), help="The policy file; one that is confirmed replaces it.")
@click.option("--show-scores", is_flag=True, help="Of posts of the random share, too, before a person has decided.")
@click.option("--scores", help="The store's URL. Default: retrain.scores, else the store of this machine.")
@_config
def desk(
    demo: bool,
    port: int,
    host: str,
    names: tuple[str, ...],
    posts: str | None,
    policy: Path | None,
    show_scores: bool,
    scores: str | None,
    config: Path | None,
) -> None:
    """Serve the review desk: queues of posts, quality of people and model, what-if. Ctrl-C ends it."""
    from scoring.desk.run import desk_of, serve
    from scoring.store import Store
    from steps.paths import store_url
    from steps.secrets import resolved

    settings, name = _open(config)

    def say(line: str) -> None:
        click.echo(line, err=True)

    if demo:
        from scoring.desk.demo import prepare

        store, made = prepare(settings, name, say)
        with store:
            serve(made, host, port, names, say, demo=True)
        return
    url = resolved(scores or settings.retrain.scores or store_url(), "retrain.scores")
    with Store.open(url) as store:
        serve(desk_of(store, name, settings, posts, policy, shows_scores=show_scores), host, port, names, say)
