"""`agentps schedule | run-scheduled`: a pipeline at set times, on this machine or on a ZenML stack."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--cron", help='Minute, hour, day, month, weekday, in local time: "0 3 * * *" is every day at 3:00.')
@click.option("--pipeline", default="agentps_training", show_default=True, help="As `zenml pipeline run` takes it.")
@click.option("-c", "--config", type=click.Path(path_type=Path), help="The pipeline's config file.")
@click.option("--stack", help="On the scheduler of this ZenML stack (Kubernetes, Kubeflow) instead of this machine's.")
@click.option("--show", is_flag=True, help="Print the schedule, its next time and its last runs.")
@click.option("--remove", "remove_", is_flag=True, help="Take the schedule away.")
def schedule(
    cron: str | None, pipeline: str, config: Path | None, stack: str | None, show: bool, remove_: bool
) -> None:
    """Run a pipeline at set times. A clone has one schedule: a second call replaces the first."""
    if [cron is not None, show, remove_].count(True) != 1:
        raise click.UsageError("give one of --cron, --show, --remove")
    from datetime import UTC, datetime

    from infra.schedule import machine
    from infra.schedule import stack as stacks
    from infra.schedule.job import Files, Job
    from pipelines.config import load_notify
    from steps.paths import home

    now = datetime.now(UTC)
    if cron is not None:
        path = str(config.resolve()) if config else None
        job = Job(cron=cron, pipeline=pipeline, config=path, notify=load_notify(config))
        click.echo(machine.install(job, home(), now) if stack is None else stacks.install(job, stack, home()))
        if job.notify.webhook is None and job.notify.command is None:
            click.echo("note: the config names neither notify.webhook nor notify.command: nobody is told of a failure")
    elif show:
        click.echo(machine.show(home(), now) if stack is None else stacks.show(stack, home()))
    if not remove_:
        if warning := Files(home()).warning():
            click.echo(warning, err=True)
    else:
        removed = machine.remove(home()) if stack is None else stacks.remove(stack, home())
        where = "" if stack is None else f" on stack {stack}"
        click.echo("the schedule is removed" if removed else f"there was no schedule{where}")


@click.command("run-scheduled")
def run_scheduled() -> None:
    """What the schedule starts: run the pipeline where one of its times has come. Exits with the pipeline's code."""
    from datetime import UTC, datetime

    from infra.schedule.run import run_due
    from steps.paths import home

    outcome = run_due(home(), datetime.now(UTC))
    click.echo(outcome.line, err=outcome.code != 0)
    for text in outcome.undelivered:
        click.echo(text, err=True)
    raise SystemExit(outcome.code)
