"""Annotation outside of a pipeline: plan, annotate, trial, agreement, gold.

The endpoint and its key come from OPENAI_BASE_URL and OPENAI_API_KEY; the options from the section `annotate` of
`configs/default.yaml`, of the file given with `--config`, and of `--set`, the later ones over the earlier.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import pandas as pd

    from model.task import Task
    from steps.annotate.plan import Plan
    from steps.annotate.tally import Progress
    from steps.settings import TrainingSettings

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class _OutFile(click.Path):
    """A file to be written; whether it can be is known before anything is paid for."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not os.access(path.parent, os.W_OK):
            self.fail(f"{path}: the folder {path.parent} is not there, or not writable", param, ctx)
        return path


_OUT = _OutFile(dir_okay=False, writable=True)

F = TypeVar("F", bound=Callable[..., Any])

_posts = click.option("--posts", "manifest", required=True, type=_FILE, help="Manifest (JSON Lines or Parquet).")
_task = click.option("--task", "task", required=True, help="A shipped task's name, or a task file.")


def _options(function: F) -> F:
    function = click.option(
        "--set", "changes", multiple=True, metavar="KEY=VALUE", help="An option of the section annotate; repeatable."
    )(function)
    return click.option("-c", "--config", type=_FILE, help="A pipeline's config file.")(function)


def _settings(config: Path | None, changes: tuple[str, ...]) -> TrainingSettings:
    from pipelines.config import read_options
    from steps.settings import load_settings

    options = read_options(config)
    section = options.get("annotate") or {}
    given = _changes(changes)
    if isinstance(section, dict):  # else `load_settings` says what it is
        section = section | given
    options |= {"posts": "manifest", "annotator": "openai", "annotate": section}
    return load_settings(options, f"config {config}" if config else "--set")


def _changes(texts: tuple[str, ...]) -> dict[str, Any]:
    from model.errors import ConfigError

    given: dict[str, Any] = {}
    for text in texts:
        key, value = _change(text)
        if key in given:
            raise ConfigError(f"--set {text}: {key} is set twice: keep one")
        given[key] = value
    return given


def _change(text: str) -> tuple[str, Any]:
    import yaml

    from model.errors import ConfigError
    from model.yaml_file import parse_yaml

    key, equals, value = text.partition("=")
    if not equals or not value.strip():  # an empty variable of a shell would take a cap away
        raise ConfigError(f"--set {text}: KEY=VALUE is expected, for example --set max_cost=5")
    try:
        return key, parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value cannot be read as YAML: {error}") from error


def _refuse_inputs(outs: Sequence[Path | None], *inputs: Path | None) -> None:
    from steps.ingest.rows import refuse_input

    for out in outs:
        if out is not None:
            refuse_input(out, *inputs)


def _read(manifest: Path, task: Task, settings: TrainingSettings) -> pd.DataFrame:
    from steps.ingest.posts import read_manifest

    return read_manifest(manifest, task, settings.ingest).posts


def _labels(path: Path) -> pd.DataFrame:
    from steps.ingest.rows import read_table

    return read_table(path, "labels")


@contextmanager
def _progress(label: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on the terminal's error stream; nothing where that is no terminal."""
    import sys

    latest: dict[str, Progress] = {}
    bar: Any = click.progressbar(
        length=1,
        label=label,
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
        show_eta=False,
        item_show_func=lambda _: str(latest.get("now", "")),
    )
    with bar:

        def show(progress: Progress) -> None:
            latest["now"] = progress
            bar.length = progress.total
            bar.update(progress.done - bar.pos)

        yield show


def _plan_lines(plan: Plan, model: str) -> list[str]:
    from steps.annotate.page import dollars
    from steps.annotate.prices import PRICES, prices_as_of

    if plan.dollars is None:
        prices = f"{model!r} is not in {PRICES}: no cost is recorded, and annotate.max_cost is refused, until it is"
    else:
        prices = f"of {prices_as_of()} ({PRICES})"
    return [
        f"posts              {plan.posts:,}",
        f"distinct images    {plan.images:,}",
        f"requests           {plan.requests:,}",
        f"  in the ledger    {plan.answered:,} answered, {plan.given_up:,} without an answer",
        *(f"    given up       {lack}" for lack in plan.given_up_for),
        f"  under way        {plan.under_way:,} in batches",
        f"  to ask           {plan.to_ask:,}",
        *(f"    once more      {lack}" for lack in plan.again),
        *([f"    of that        {dollars(plan.again_dollars)} for these"] if plan.again else []),
        f"prompt tokens      {plan.prompt_tokens:,.0f}",
        f"completion tokens  {plan.completion_tokens:,.0f}",
        f"dollars            {dollars(plan.dollars)} expected, {dollars(plan.most_dollars)} at most",
        f"prices             {prices}",
    ]


@click.command()
@_posts
@_task
@_options
def plan(manifest: Path, task: str, config: Path | None, changes: tuple[str, ...]) -> None:
    """Posts, images, tokens and dollars of an annotation, and what the ledger has already. Sends nothing."""
    from model.task import load_task
    from steps.annotate.ledger import Ledger
    from steps.annotate.outlook import Outlook
    from steps.annotate.plan import make_plan
    from steps.annotate.prices import load_prices
    from steps.annotate.requests import Requests
    from steps.paths import ledger_url
    from steps.secrets import masked

    settings, policy = _settings(config, changes), load_task(task)
    annotate_ = settings.annotate
    posts = _read(manifest, policy, settings)
    with Ledger(ledger_url(annotate_.ledger)) as ledger:
        requests = Requests(posts, policy, annotate_, load_prices().get(annotate_.model))
        found, known = make_plan(requests, ledger)
    click.echo(masked("\n".join(_plan_lines(found, annotate_.model))))
    if found.to_ask and Outlook(requests, known).hopeless:
        click.echo(
            f"warning: too many are given up for annotate.max_missing_share {annotate_.max_missing_share:g}; "
            "`agentps annotate` says what to change, and asks nothing before",
            err=True,
        )


@click.command()
@_posts
@_task
@click.option("--out", required=True, type=_OUT, help="The labels (Parquet).")
@click.option("--page", type=_OUT, help="The report (HTML).")
@_options
def annotate(
    manifest: Path, task: str, out: Path, page: Path | None, config: Path | None, changes: tuple[str, ...]
) -> None:
    """Ask an endpoint for the process labels of a manifest's posts; what was paid is never asked again."""
    from model.files import replacing, write_whole
    from model.task import load_task
    from steps.annotate.agreement import agreement, gate
    from steps.annotate.client import annotate_posts
    from steps.annotate.ledger import Ledger
    from steps.annotate.page import dollars, render_report
    from steps.annotate.prices import load_prices
    from steps.paths import ledger_url

    _refuse_inputs([out, page], manifest, config)
    settings, policy = _settings(config, changes), load_task(task)
    annotate_ = settings.annotate
    posts = _read(manifest, policy, settings)
    with Ledger(ledger_url(annotate_.ledger)) as ledger, _progress("annotate") as show:
        price = load_prices().get(annotate_.model)
        result = annotate_posts(posts, policy, annotate_, ledger, price=price, on_progress=show)
    questions = agreement(posts, result.labels, policy)
    action = annotate_.on_low_agreement
    labels, below = gate(result.labels, questions, annotate_.min_agreement, "warn" if action == "fail" else action)
    if page is not None:
        write_whole(page, render_report(result, questions, below, annotate_, f"Task {policy.name}"))
    click.echo(
        f"asked {result.asked:,}, from the ledger {result.reused:,}, without an answer {result.missing:,}; "
        f"spent {dollars(result.cost)}, planned {dollars(result.plan.dollars)}"
    )
    for verdict in below:
        click.echo(f"warning: {verdict}", err=True)
    if action == "fail":
        gate(result.labels, questions, annotate_.min_agreement, action)
    with replacing(out) as part:
        labels.to_parquet(part)


@click.command()
@_posts
@click.option("--task", "tasks", required=True, multiple=True, help="A wording: a task file; repeatable.")
@click.option("--out", required=True, type=_OUT, help="The comparison (HTML).")
@_options
def trial(manifest: Path, tasks: tuple[str, ...], out: Path, config: Path | None, changes: tuple[str, ...]) -> None:
    """Compare wordings on the posts that people labelled: agreement and cost, side by side."""
    from model.files import write_whole
    from model.task import load_task
    from steps.annotate.agreement import table
    from steps.annotate.ledger import Ledger
    from steps.annotate.page import dollars, render_trial
    from steps.annotate.prices import load_prices
    from steps.annotate.trial import run_trial, union_of
    from steps.paths import ledger_url

    _refuse_inputs([out], manifest, config, *map(Path, tasks))
    settings = _settings(config, changes)
    wordings = {name: load_task(name) for name in tasks}
    posts = _read(manifest, union_of(wordings), settings)
    with Ledger(ledger_url(settings.annotate.ledger)) as ledger, _progress("trial") as show:
        price = load_prices().get(settings.annotate.model)
        rows = run_trial(posts, wordings, settings.annotate, ledger, price=price, on_progress=show)
    write_whole(out, render_trial(rows, f"{len(rows)} wordings", settings.annotate.source))
    for row in rows:
        click.echo(f"{row.name}: spent {dollars(row.result.cost)}, all posts {dollars(row.plan.dollars)}")
        click.echo(table(row.questions).to_string(index=False, float_format="{:.3f}".format))


@click.command("agreement")
@_posts
@_task
@click.option("--labels", "labels_file", required=True, type=_FILE, help="The annotator's labels (Parquet).")
@click.option("--against", type=_FILE, help="Labels of an earlier run: what changed since.")
@click.option("--out", type=_OUT, help="The same as a page (HTML).")
@_options
def agreement_(
    manifest: Path,
    task: str,
    labels_file: Path,
    against: Path | None,
    out: Path | None,
    config: Path | None,
    changes: tuple[str, ...],
) -> None:
    """How far labels agree with people's, question by question, and what changed since another run."""
    import pandas as pd

    from model.files import write_whole
    from model.task import load_task
    from steps.annotate.agreement import agreement, drift, table
    from steps.annotate.page import render_agreement
    from steps.tables import tell_unmatched

    _refuse_inputs([out], manifest, config, labels_file, against)
    settings, policy = _settings(config, changes), load_task(task)
    posts, labels = _read(manifest, policy, settings), _labels(labels_file)
    tell_unmatched(labels["post_id"], posts["post_id"], f"labels {labels_file}", f"the posts of {manifest}")
    questions = agreement(posts, labels, policy)
    earlier = _labels(against) if against is not None else None
    if earlier is not None:
        tell_unmatched(earlier["post_id"], labels["post_id"], f"labels {against}", f"the posts of {labels_file}")
    drifts = drift(earlier, labels, policy, posts) if earlier is not None else []
    click.echo(table(questions).to_string(index=False, float_format="{:.3f}".format))
    if against is not None:
        click.echo(f"\nchanged since {against}:")
        click.echo(pd.DataFrame(drifts).to_string(index=False, float_format="{:+.3f}".format))
    if out is not None:
        heading, since = f"Task {policy.name}", str(against) if against else None
        write_whole(out, render_agreement(questions, drifts, heading, since))


@click.command()
@_posts
@_task
@click.option("--answers", required=True, help="The filled queue (CSV), Label Studio's export, or the desk's store.")
@click.option("--out", required=True, type=_OUT, help="The new manifest, in the folder of the old one.")
def gold(manifest: Path, task: str, answers: str, out: Path) -> None:
    """Put people's answers to a queue into the manifest, as its process labels."""
    from model.task import load_task
    from steps.annotate.gold import add_gold, read_answers
    from steps.retrain.stored import is_store

    _refuse_inputs([out], manifest, Path(answers))
    policy = load_task(task)
    n = add_gold(manifest, read_answers(answers, policy), policy, out, others=is_store(answers))
    click.echo(f"{n:,} posts have people's answers: {out}")
