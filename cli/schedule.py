"""`agentps schedule | run-scheduled`: a pipeline at set times, on this machine or on a ZenML stack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from steps.settings import NotifySettings


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
    """Run a pipeline at set times. One schedule a clone: a second call replaces the first."""
    if [cron is not None, show, remove_].count(True) != 1:
        raise click.UsageError("give one of --cron, --show, --remove")
    from datetime import UTC, datetime

    from infra import schedule as schedules
    from pipelines.config import load_notify
    from steps.paths import home

    now = datetime.now(UTC)
    if stack is not None:
        _on_stack(stack, schedules.check_cron(cron) if cron is not None else None, pipeline, config, show)
    elif cron is not None:
        checked = schedules.check_cron(cron)
        notify = load_notify(config)
        job = schedules.Job(
            cron=checked, pipeline=pipeline, config=str(config.resolve()) if config else None, notify=notify
        )
        where = schedules.install(job, home(), now)
        click.echo(f"{where}: {pipeline}, next at {schedules.next_due(checked, now):%Y-%m-%d %H:%M}")
        _warn_of_silence(notify)
    elif remove_:
        click.echo("the schedule is removed" if schedules.remove(home()) else "there was no schedule")
    else:
        _show()


def _on_stack(stack: str, cron: str | None, pipeline: str, config: Path | None, show: bool) -> None:
    from infra import stack_schedule
    from pipelines.config import load_notify
    from steps.paths import home

    if cron is not None:
        notify = load_notify(config)
        done = stack_schedule.install(cron, pipeline, config, stack, home())
        click.echo(f"{done}: {stack_schedule.show(stack, home())}")
        _warn_of_silence(notify)
    elif show:
        click.echo(stack_schedule.show(stack, home()) or f"there is no schedule on stack {stack}")
    else:
        removed = stack_schedule.remove(stack, home())
        click.echo("the schedule is removed" if removed else f"there was no schedule on stack {stack}")


def _warn_of_silence(notify: NotifySettings) -> None:
    if notify.webhook is None and notify.command is None:
        click.echo("note: the config names neither notify.webhook nor notify.command: nobody is told of a failure")


def _show() -> None:
    from datetime import UTC, datetime

    from infra import schedule as schedules
    from steps.paths import home

    files = schedules.Files(home())
    job, state, where = files.read_job(), files.read_state(), schedules.installed_in(home())
    if job is None:
        click.echo("there is no schedule" if where is None else f"{where}: left over: run `agentps schedule --remove`")
        return
    click.echo(where or "installed nowhere: run `agentps schedule --cron …` again")
    click.echo(f"pipeline  {job.pipeline}" + (f" -c {job.config}" if job.config else ""))
    click.echo(f"cron      {job.cron}, next at {schedules.next_due(job.cron, datetime.now(UTC)):%Y-%m-%d %H:%M}")
    if state is not None and state.running is not None:
        click.echo(f"running   log {state.running}")
    for log in sorted(files.logs.glob("*.log"))[-5:]:
        click.echo(f"log       {log}")


@click.command("run-scheduled")
def run_scheduled() -> None:
    """What the schedule starts: run the pipeline where one of its times has come. Exits with the pipeline's code."""
    from datetime import UTC, datetime

    from infra import schedule as schedules
    from steps.paths import home

    outcome = schedules.run_due(home(), datetime.now(UTC))
    click.echo(outcome.line, err=outcome.code != 0)
    for text in outcome.undelivered:
        click.echo(text, err=True)
    raise SystemExit(outcome.code)
