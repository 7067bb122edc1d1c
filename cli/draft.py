"""A task file drafted from a policy's text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.annotation import _FILE, _OUT, _options, _read, _settings

if TYPE_CHECKING:
    import pandas as pd

    from model.task import Task
    from steps.settings import TrainingSettings


@click.command()
@click.option("--policy", required=True, type=_FILE, help="The policy's text (Markdown).")
@click.option("--out", required=True, type=_OUT, help="The task file (YAML); never one that is there.")
@click.option("--posts", "manifest", type=_FILE, help="Try the draft on posts of this manifest that people decided.")
@click.option("--most-posts", type=click.IntRange(1), default=500, show_default=True, help="That it is tried on.")
@click.option("--simulated", is_flag=True, help="Offline: the shipped policy, tried on the embedded sample.")
@_options
def draft(
    policy: Path,
    out: Path,
    manifest: Path | None,
    most_posts: int,
    simulated: bool,
    config: Path | None,
    changes: tuple[str, ...],
) -> None:
    """Have an LLM write a task file from a policy, and mark the questions that are of no use; a person decides."""
    from model.files import write_whole
    from model.task import load_task
    from steps.annotate.draft import draft as make
    from steps.annotate.draft import file_of, read_policy, shipped_draft, tried_posts, try_draft
    from steps.annotate.ledger import Ledger
    from steps.annotate.page import dollars
    from steps.annotate.prices import FREE, load_prices
    from steps.paths import ledger_url

    if simulated and manifest is not None:
        raise click.UsageError("--simulated tries the draft on the embedded sample: leave out --posts")
    if out.suffix not in (".yaml", ".yml") or out.exists():
        raise click.UsageError(f"--out {out}: a file that is not there yet, ending in .yaml: nothing is overwritten")
    settings, text = _settings(config, changes), read_policy(policy)
    asked = settings.annotate.model_copy(update={"annotator": "simulated"} if simulated else {})
    price = FREE if simulated else load_prices().get(asked.model)
    judged = None
    with Ledger(ledger_url(asked.ledger)) as ledger:
        with _endpoint(simulated, settings, load_task("ucc"), texts=shipped_draft()) as endpoint:
            task, spent = make(text, asked, ledger, price=price, **endpoint)
        if simulated or manifest is not None:
            posts = tried_posts(_read(manifest or _sample(settings), task, settings), most_posts)
            left = None if asked.max_cost is None else max(asked.max_cost - spent, 1e-9)
            trial = asked.model_copy(update={"max_cost": left})
            with _endpoint(simulated, settings, task, posts) as endpoint:
                judged = try_draft(posts, task, trial, ledger, price=price, **endpoint)
    write_whole(out, file_of(task, policy, asked.source, judged))
    click.echo(f"{len(task.questions)} questions: {out}; the draft cost {dollars(None if price is None else spent)}")
    for one in judged or ():
        click.echo(f"{one.agreement.question}: {'; '.join(one.marks) or 'nothing was found against it'}")


def _sample(settings: TrainingSettings) -> Path:
    from steps.ingest.sample import render_sample
    from steps.paths import home

    return render_sample(settings.sample, home())


@contextmanager
def _endpoint(
    simulated: bool,
    settings: TrainingSettings,
    task: Task,
    posts: pd.DataFrame | None = None,
    texts: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Where to ask: the simulated endpoint while the block runs, or the one of the environment."""
    if not simulated:
        yield {}
        return
    import pandas as pd

    from steps.annotate.simulated import SimulatedAnnotator

    truth = pd.read_parquet(_sample(settings).with_name("truth.parquet"))
    with SimulatedAnnotator(truth, task, posts, texts) as server:
        yield {"base_url": server.base_url, "api_key": server.api_key}
