"""What ZenML knows of a failed run, as one line of JSON: `python -m infra.schedule.failed_run PIPELINE SINCE`."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime


def find(pipeline: str, since: datetime) -> dict[str, str]:
    """The newest failed run of the pipeline that was made at `since` or later.

    Returns:
        `run`, `step` and `reason`, without what is not known; empty where there is no such run.
    """
    from zenml.client import Client
    from zenml.enums import ExecutionStatus

    client = Client()
    made = f"gte:{since.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    runs = client.list_pipeline_runs(
        pipeline=pipeline, status=ExecutionStatus.FAILED, created=made, sort_by="desc:created", size=1
    )
    if not runs.items:
        return {}
    run = runs.items[0]
    found = {"run": run.name}
    steps = client.list_run_steps(pipeline_run_id=run.id, status=ExecutionStatus.FAILED, hydrate=True)
    for step in steps.items[:1]:
        found["step"] = step.name
        if step.exception_info is not None and step.exception_info.message:
            found["reason"] = step.exception_info.message
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(find(sys.argv[1], datetime.fromisoformat(sys.argv[2]))) + "\n")
