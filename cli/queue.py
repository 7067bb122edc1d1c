"""`agentps queue`: the posts that people answer next."""

from __future__ import annotations

from pathlib import Path

import click

from cli.annotation import _FILE, _OUT, _labels, _options, _posts, _read, _refuse_inputs, _settings, _task


@click.command()
@_posts
@_task
@click.option("--labels", "label_files", multiple=True, type=_FILE, help="Labels; two or more differ.")
@click.option("--predictions", type=_FILE, help="A model's answers (evaluate's table): what it doubts of the labels.")
@click.option("--out", required=True, type=_OUT, help="FILE.csv; FILE.json and FILE.xml (Label Studio) beside it.")
@click.option(
    "--budget", type=click.IntRange(1), help="So many posts whose labels tell most of the champion's threshold (CSV)."
)
@click.option("--random-share", default=0.2, show_default=True, help="Of the budget, that is drawn evenly.")
@click.option("--seed", default=0, show_default=True, help="Of the draw of --budget.")
@click.option("--scores", help="With --budget: a store's URL or a table. Default: as `agentps score`.")
@_options
def queue(
    manifest: Path,
    task: str,
    label_files: tuple[Path, ...],
    predictions: Path | None,
    out: Path,
    budget: int | None,
    random_share: float,
    seed: int,
    scores: str | None,
    config: Path | None,
    changes: tuple[str, ...],
) -> None:
    """Posts for people: where annotators disagree, the worst first; with --budget whom to ask next."""
    from model.task import load_task
    from steps.annotate.disagreement import disagreements, doubtful, write_csv, write_label_studio
    from steps.tables import tell_unmatched

    if out.suffix != ".csv":
        raise click.UsageError("--out ends in .csv")
    if budget is not None:
        if predictions is not None or len(label_files) == 1:
            raise click.UsageError("with --budget: two or more --labels or none, and no --predictions")
        _refuse_inputs([out], manifest, config, *label_files)
        _ask(manifest, task, label_files, out, config, changes, scores, (budget, random_share, seed))
        return
    if scores is not None:
        raise click.UsageError("--scores is read with --budget only")
    if (len(label_files) < 2) == (predictions is None) or not label_files:
        raise click.UsageError("give two or more --labels, or one and --predictions, or --budget")
    outs = [out, out.with_suffix(".json"), out.with_suffix(".xml")]
    _refuse_inputs(outs, manifest, config, predictions, *label_files)
    settings, policy = _settings(config, changes), load_task(task)
    posts = _read(manifest, policy, settings)
    tables = {path.stem: _labels(path) for path in label_files}
    if len(tables) < len(label_files):
        raise click.UsageError("two --labels have the same file name, which names the annotator: rename one")
    for name, table in tables.items():
        tell_unmatched(table["post_id"], posts["post_id"], f"labels {name}", f"the posts of {manifest}")
    if predictions is not None:
        name, given = next(iter(tables.items()))
        said = _labels(predictions)
        tell_unmatched(said["post_id"], given["post_id"], f"predictions {predictions}", f"the posts of labels {name}")
        found = doubtful(said, given, policy, name=predictions.stem, annotator=name)
    else:
        found = disagreements(tables, policy)
    found = found[found["post_id"].isin(posts["post_id"])]
    write_csv(found, posts, policy, out)
    write_label_studio(found, posts, policy, out.with_suffix(".json"), manifest.resolve().parent)
    click.echo(f"{len(found):,} of {len(posts):,} posts are disputed: {out}")


def _ask(
    manifest: Path,
    task: str,
    label_files: tuple[Path, ...],
    out: Path,
    config: Path | None,
    changes: tuple[str, ...],
    scores: str | None,
    drawn: tuple[int, float, int],
) -> None:
    import mlflow

    from infra.local_stack import tracking_uri
    from model.files import write_whole
    from model.task import load_task
    from steps.annotate.disagreement import disagreements
    from steps.ingest.rows import csv_text
    from steps.paths import home
    from steps.register.history import champion_of
    from steps.retrain.ask import whom_to_ask

    settings, policy = _settings(config, changes), load_task(task)
    mlflow.set_tracking_uri(tracking_uri(home()))
    champion = champion_of(settings.register_.model_name(policy))
    posts = _read(manifest, policy, settings)
    tables = {path.stem: _labels(path) for path in label_files}
    disputed = set(disagreements(tables, policy)["post_id"]) if tables else set()
    budget, random_share, seed = drawn
    found = whom_to_ask(
        posts, policy, champion, scores, settings.retrain, settings.evaluate.confidence,
        budget=budget, random_share=random_share, seed=seed, disputed=disputed,
    )  # fmt: skip
    write_whole(out, csv_text(found))
    click.echo(f"{len(found):,} of {len(posts):,} posts, whose labels tell most of version {champion.version}: {out}")
