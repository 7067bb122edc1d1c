"""What the default pipeline takes beside annotation, training and scoring.

    .venv/bin/python -m benchmarks.overhead

Runs the literal command in a home of its own, where nothing is cached, and writes `benchmarks/overhead.json` and the
table of `docs/speed.md`. Takes minutes; other work on the machine counts in.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import machine, put, table, write
from steps.paths import REPOSITORY, home

RECORD = REPOSITORY / "benchmarks" / "overhead.json"
#: What the pipeline is for; the rest is overhead.
WORK = ("annotate", "fine_tune", "evaluate")
#: Said when the tiny backbone is made: its tower is trained in the step `preprocess`, before anything else there.
_TOWER = "Tiny tower pretrained"
_STARTED = re.compile(r"^Step `?(\w+)`? has started")
_FINISHED = re.compile(r"^Step `?(\w+)`? has finished in")


def measure() -> dict[str, Any]:
    """Wall seconds: before the first step, of each step, and of the whole command."""
    foreign = ("MLFLOW_", "OPENAI_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    stack = [sys.executable, "-m", "infra.local_stack"]
    with tempfile.TemporaryDirectory(dir=home()) as folder:
        own = {"AGENTPS_HOME": f"{folder}/home", "ZENML_CONFIG_PATH": f"{folder}/zenml"}
        environment |= own | {"ZENML_LOGGING_COLORS_DISABLED": "true", "PYTHONUNBUFFERED": "1"}
        Path(own["ZENML_CONFIG_PATH"]).mkdir()
        subprocess.run(stack, cwd=REPOSITORY, env=environment, check=True)
        command = [str(Path(sys.executable).with_name("zenml")), "pipeline", "run", "agentps_training"]
        began, starts, seconds, tower = time.monotonic(), {}, {}, 0.0
        with subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as run:
            assert run.stdout is not None
            for line in run.stdout:
                now = time.monotonic() - began
                if found := _STARTED.match(line):
                    starts[found[1]] = now
                elif found := _FINISHED.match(line):
                    seconds[found[1]] = round(now - starts[found[1]], 1)
                elif line.startswith(_TOWER):
                    tower = round(now - starts["preprocess"], 1)
        whole = time.monotonic() - began
    subprocess.run(stack, cwd=REPOSITORY, check=True)  # the clone's own stack is active again
    if run.returncode:
        raise SystemExit(f"the pipeline failed with exit code {run.returncode}")
    first = min(starts.values())
    times = {"before": round(first, 1), "steps": seconds, "tower": tower, "whole": round(whole, 1)}
    return times | {"load": os.getloadavg()[2]}


def overhead(record: dict[str, Any]) -> float:
    """Seconds of the command that are not annotation, training (the tiny tower's counts) or scoring."""
    return float(record["whole"] - record["tower"] - sum(record["steps"][name] for name in WORK))


def tables(record: dict[str, Any]) -> dict[str, str]:
    steps = record["steps"]
    between = record["whole"] - record["before"] - sum(steps.values())
    rows = [["before the first step", f"{record['before']:.1f}"]]
    own = steps | {"preprocess": steps["preprocess"] - record["tower"]}
    rows += [[name, f"{seconds:.1f}"] for name, seconds in own.items() if name not in WORK]
    rows += [["between the steps and after them", f"{between:.1f}"], ["**in all**", f"**{overhead(record):.1f}**"]]
    rows += [[f"beside {name}", f"{steps[name]:.1f}"] for name in WORK]
    rows.append(["beside the tiny backbone, made and trained in preprocess", f"{record['tower']:.1f}"])
    return {"overhead": table(["part", "s"], rows)}


def main() -> None:
    record = {"machine": machine("zenml", "mlflow"), **measure()}
    write(RECORD, record)
    put(tables(json.loads(RECORD.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
