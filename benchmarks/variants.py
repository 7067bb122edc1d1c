"""Every variant of the embedded default, by the literal command, over the same seeds.

    .venv/bin/python benchmarks/variants.py [--variants vanilla,agentps] [--seeds 0,1,2]

Writes `benchmarks/variants.json`, one record a run as it finishes (a run that is there is not run
again), and from all records `benchmarks/variants.md`. Metrics come from the run's own MLflow records.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import mlflow
import yaml

from model.settings import Variant
from steps.settings import DEFAULT_CONFIG, REPOSITORY, home

RECORDS = REPOSITORY / "benchmarks" / "variants.json"
TABLE = REPOSITORY / "benchmarks" / "variants.md"
_METRICS = (
    "best_val_average_precision",
    "test_average_precision",
    "test_f1",
    *(f"test_recall_at_p{p}" for p in (60, 65, 70, 75, 80)),
)


def run(variant: str, seed: int) -> dict[str, Any]:
    """One pipeline run; its record."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "config.yaml"
        # A name of its own: the versions of this comparison are not candidates for production.
        config.write_text(yaml.safe_dump({"variant": variant, "seed": seed, "register": {"name": "agentps-variants"}}))
        command = [
            str(Path(sys.executable).with_name("zenml")),
            "pipeline",
            "run",
            "agentps_training",
            "-c",
            str(config),
        ]
        started = time.monotonic()
        subprocess.run(command, cwd=REPOSITORY, check=True)
        seconds = time.monotonic() - started
    mlflow.set_tracking_uri(f"sqlite:///{home() / 'mlflow.db'}")
    newest = mlflow.search_runs(
        experiment_names=["agentps_training"],
        filter_string=f"params.variant = '{variant}' and params.seed = '{seed}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )[0]
    return {
        "variant": variant,
        "seed": seed,
        "metrics": {name: newest.data.metrics[name] for name in _METRICS},
        "seconds": round(seconds),
    }


def table(records: list[dict[str, Any]]) -> str:
    """All records as Markdown: every seed, then each variant's mean."""
    head = "| variant | seed | val AP | AP | F1 | R@P60 | R@P65 | R@P70 | R@P75 | R@P80 |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for variant in get_args(Variant):
        runs = sorted((r for r in records if r["variant"] == variant), key=lambda r: r["seed"])
        cells = [[r["metrics"][name] for name in _METRICS] for r in runs]
        for record, values in zip(runs, cells, strict=True):
            lines.append(f"| {variant} | {record['seed']} | " + " | ".join(f"{100 * v:.1f}" for v in values) + " |")
        if len(runs) > 1:
            means = [statistics.mean(column) for column in zip(*cells, strict=True)]
            lines.append(f"| **{variant}** | mean | " + " | ".join(f"**{100 * v:.1f}**" for v in means) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(get_args(Variant)))
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    records: list[dict[str, Any]] = json.loads(RECORDS.read_text()) if RECORDS.exists() else []
    for seed in map(int, arguments.seeds.split(",")):
        for variant in arguments.variants.split(","):
            if any(r["variant"] == variant and r["seed"] == seed for r in records):
                continue
            records.append(run(variant, seed))
            RECORDS.write_text(json.dumps(records, indent=1) + "\n")
    sample = yaml.safe_load(DEFAULT_CONFIG.read_text())["sample"]
    TABLE.write_text(
        "# Variants of the embedded default\n\n"
        f"Written by `benchmarks/variants.py`: {sample['train']:,} training posts labelled by the simulated annotator, "
        f"{sample['test']:,} test posts, percent. val AP chose the epoch; everything else is on test.\n"
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.\n\n"
        + table(records)
    )


if __name__ == "__main__":
    main()
