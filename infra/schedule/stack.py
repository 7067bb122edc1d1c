"""The schedule of a clone on a ZenML stack whose orchestrator has schedules: Kubernetes, Kubeflow.

ZenML fixes a scheduled pipeline's parameters when the schedule is made, but which posts are fresh is known only when a
run begins. So what is scheduled is `agentps_scheduled`, whose one step starts the literal command. A second call
changes the schedule in place, or takes the old one away first: there are never two. A stack that does not exist is a
ScheduleError.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from infra.schedule.command import name_of, program
from infra.schedule.job import Job
from model.errors import ScheduleError
from pipelines.config import OPTIONS
from steps.paths import REPOSITORY
from steps.settings import read_yaml

if TYPE_CHECKING:
    from zenml.models import ScheduleResponse
    from zenml.orchestrators import BaseOrchestrator

#: Keys of a config file that the scheduled run itself takes, too: its image, its place in the cluster.
_ZENML_KEYS = ("settings", "build")


def install(job: Job, stack: str, home_dir: Path) -> str:
    """Put the job in place of what this clone had scheduled on the stack before.

    Returns:
        What was done and what is scheduled now, in one line.

    Raises:
        ConfigError: the config file cannot be read.
        ScheduleError: the stack has no schedules, or refuses; a schedule that ZenML cannot change.
    """
    from zenml.client import Client

    wanted = {"pipeline": job.pipeline, "config": read_yaml(Path(job.config)) if job.config else {}}
    orchestrator, found = _look_up(stack, home_dir)
    if not orchestrator.config.is_schedulable:
        raise ScheduleError(
            f"stack {stack}: its orchestrator, of flavor {orchestrator.flavor}, runs no schedules: name a stack with "
            "Kubernetes or Kubeflow, or leave --stack out to use the scheduler of this machine"
        )
    if found is None:
        _create(job.cron, wanted, stack, orchestrator.flavor, name_of(home_dir))
        return f"created: {show(stack, home_dir)}"
    if not (orchestrator.supports_schedule_updates and orchestrator.supports_schedule_deletion):
        raise ScheduleError(
            f"stack {stack}: ZenML cannot change the schedule {found.name} in {orchestrator.flavor}, and a second one "
            f"would run beside it: delete it there, then run `agentps schedule --remove --stack {shlex.quote(stack)}`, "
            "then this command again"
        )
    if _parameters(found) != wanted:
        Client().delete_schedule(found.id)
        _create(job.cron, wanted, stack, orchestrator.flavor, name_of(home_dir))
    elif found.cron_expression != job.cron:
        Client().update_schedule(found.id, cron_expression=job.cron)
    return f"updated: {show(stack, home_dir)}"


def remove(stack: str, home_dir: Path) -> bool:
    """Take the schedule away; a run that is going goes on. False where there was none."""
    from zenml.client import Client

    _orchestrator, found = _look_up(stack, home_dir)
    if found is not None:
        Client().delete_schedule(found.id)
    return found is not None


def show(stack: str, home_dir: Path) -> str:
    """What is scheduled there, in one line."""
    _orchestrator, found = _look_up(stack, home_dir)
    if found is None:
        return f"there is no schedule on stack {stack}"
    off = "" if found.active else ", switched off"
    return f"{found.name} on stack {stack}: {_parameters(found).get('pipeline')}, cron {found.cron_expression}{off}"


def _look_up(stack: str, home_dir: Path) -> tuple[BaseOrchestrator, ScheduleResponse | None]:
    from zenml.client import Client
    from zenml.stack import Stack

    client = Client()
    try:
        model = client.get_stack(stack, allow_name_prefix_match=False)
    except KeyError:
        raise ScheduleError(f"there is no ZenML stack {stack!r}: `zenml stack list` shows those there are") from None
    orchestrator = Stack.from_model(model).orchestrator
    found = client.list_schedules(name=name_of(home_dir), orchestrator_id=orchestrator.id, hydrate=True).items
    return orchestrator, found[0] if found else None


def _parameters(schedule: ScheduleResponse) -> dict[str, Any]:
    """What the scheduled run was given; empty where ZenML no longer knows."""
    from zenml.client import Client

    snapshots = Client().list_snapshots(schedule_id=schedule.id, named_only=False, hydrate=True).items
    return dict((snapshots[0].pipeline_configuration.parameters or {}).get(OPTIONS, {})) if snapshots else {}


def _create(cron: str, wanted: dict[str, Any], stack: str, flavor: str, name: str) -> None:
    given = {key: wanted["config"][key] for key in _ZENML_KEYS if key in wanted["config"]}
    if flavor == "kubernetes":  # two retrainings at once would only lose to each other
        settings = given.get("settings") or {}
        own = {"concurrency_policy": "Forbid"} | (settings.get("orchestrator.kubernetes") or {})
        given["settings"] = settings | {"orchestrator.kubernetes": own}
    run = {"parameters": wanted, "schedule": {"name": name, "cron_expression": cron}, **given}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scheduled.yaml"
        path.write_text(yaml.safe_dump(run, allow_unicode=True), encoding="utf-8")
        command = ["pipeline", "run", "pipelines.agentps_scheduled", "-c", str(path), "--stack", stack]
        done = subprocess.run([program("zenml"), *command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
        raise ScheduleError(f"stack {stack}: no schedule was made, and none stands now: " + " ".join(said[-3:]))
