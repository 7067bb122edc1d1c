"""How the cost of each stage without a model grows with the posts.

    .venv/bin/python -m benchmarks.growth

Writes `benchmarks/growth.json` and the table of `docs/speed.md`. Each stage and number of posts is a process of its
own, whose peak memory is measured; a post has one of 64 small image files. A pair that is in the record is not run
again.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.peers.meter import cpu_seconds
from benchmarks.record import forget_peak, machine, memory, put, table, write
from model.columns import SCORE, answer_column, probability_column
from model.images import ImageLimits
from model.integrity import sha256_of
from model.metrics import Calibration
from model.settings import SequenceSettings
from model.task import load_task
from model.tiny import build_tokenizer
from steps.annotate.ledger import Attempt, BatchFile, Ledger
from steps.evaluate.report import build_report
from steps.ingest.posts import manifest_fingerprint, read_manifest
from steps.ingest.sample import sample_texts
from steps.paths import REPOSITORY
from steps.preprocess.shards import write_shards
from steps.settings import load_settings
from steps.validate.expectations import validate_posts

RECORD = REPOSITORY / "benchmarks" / "growth.json"
SIZES = (1_000, 10_000, 100_000, 1_000_000)
FILES = 64
TASK, SETTINGS = load_task("ucc"), load_settings({})
TAGS = ("#fyp", "#album", "#daily", "#sea", "#travel", "#art")


def posts_of(count: int, folder: Path) -> pd.DataFrame:
    """The posts table as ingest makes it."""
    rng = np.random.default_rng(0)
    files = [f"{k}.jpg" for k in range(FILES)]
    for k, file in enumerate(files):
        Image.fromarray(np.full((48, 48, 3), 3 * k, np.uint8)).save(folder / file)
    hashes = [sha256_of(folder / file) for file in files]
    names = [f"{k:09d}" for k in range(count)]
    return pd.DataFrame(
        {
            "post_id": names,
            "created_at": pd.date_range("2026-01-01", periods=count, freq="s", tz="UTC").astype("datetime64[us, UTC]"),
            "title": [f"what we saw on walk {name}" for name in names],
            "text": [f"along the sea with friends, day {name} " + " ".join(rng.choice(TAGS, 3)) for name in names],
            "root": str(folder),
            "images": [[files[k % FILES]] for k in range(count)],
            "image_sha256": [[hashes[k % FILES]] for k in range(count)],
            "label": pd.array(rng.integers(0, 2, count), "Int8"),
            **{question: pd.array(rng.integers(0, 2, count), "Int8") for question in TASK.question_ids},
            "split": rng.choice(["train", "val", "test"], count, p=[0.7, 0.1, 0.2]),
        }
    )


def ingest(posts: pd.DataFrame, folder: Path) -> Callable[[], object]:
    manifest = folder / "posts.jsonl"
    posts.drop(columns=["root", "image_sha256"]).to_json(manifest, orient="records", lines=True, date_format="iso")
    return lambda: read_manifest(manifest, TASK, SETTINGS.ingest)


def fingerprint(posts: pd.DataFrame, folder: Path) -> Callable[[], object]:
    ingest(posts, folder)
    return lambda: manifest_fingerprint(folder / "posts.jsonl")


def validate(posts: pd.DataFrame, folder: Path) -> Callable[[], object]:
    labels = posts[["post_id", *TASK.question_ids]].copy()
    return lambda: validate_posts(posts, labels, TASK, SETTINGS.validate_, max_images=SETTINGS.ingest.max_images)


def shards(posts: pd.DataFrame, folder: Path) -> Callable[[], object]:
    sequence = SequenceSettings(frames=16, image_size=32, max_text_tokens=196, max_tokens=256)
    tokenizer = build_tokenizer(sample_texts(500, seed=0), 1024)
    limits = ImageLimits(max_bytes=10**6, max_pixels=10**6)
    return lambda: write_shards(folder / "shards", posts, TASK, sequence, tokenizer, limits)


def _attempt(name: str) -> Attempt:
    key = hashlib.sha256(name.encode()).hexdigest()
    return Attempt(key, 1, name, "m", "0,1,2,1,2", (0, 1, 2, 1, 2), None, 700, 10, 1.0, 0.002)


def ledger_write(posts: pd.DataFrame, folder: Path) -> Callable[[], object]:
    def run() -> None:
        with Ledger(f"sqlite:///{folder / 'ledger.db'}") as ledger:
            for name in posts["post_id"]:
                ledger.record(_attempt(name), settled=True)

    return run


def ledger_lookup(posts: pd.DataFrame, folder: Path) -> Callable[[], object]:
    with Ledger(f"sqlite:///{folder / 'ledger.db'}") as ledger:
        for start in range(0, len(posts), 10_000):
            ledger.add_batch_file(BatchFile(str(start), "m", {}, (), None, None, 0.0))
            ledger.collect_batch_file(str(start), [_attempt(name) for name in posts["post_id"][start : start + 10_000]])

    def run() -> None:
        with Ledger(f"sqlite:///{folder / 'ledger.db'}") as ledger:
            found = ledger.lookup(_attempt(name).key for name in posts["post_id"])
        if len(found) != len(posts):
            raise ValueError(f"{len(found)} of {len(posts)} answers found")

    return run


def evaluate(posts: pd.DataFrame, folder: Path) -> Callable[[], object]:
    rng = np.random.default_rng(1)
    scores = 1 / (1 + np.exp(-rng.normal(2 * posts["label"].to_numpy(float) - 1, 1)))
    table = posts[["post_id", "label", *TASK.question_ids]].assign(**{SCORE: scores})
    for question in TASK.questions:
        table[answer_column(question.id)] = np.array(question.classes)[posts[question.id].to_numpy(int)]
        table[probability_column(question.id)] = 1.0
    missing = dict.fromkeys(TASK.question_ids, 0.0)
    return lambda: build_report(
        table,
        table,
        TASK,
        SETTINGS.evaluate,
        variant="agentps",
        seed=0,
        backbone="tiny",
        annotator="human",
        annotated_missing_share=missing,
        calibration=Calibration(scale=1, bias=0),
    )


STAGES = {
    "fingerprint": fingerprint,
    "ingest": ingest,
    "ledger, write": ledger_write,
    "ledger, look up": ledger_lookup,
    "validate": validate,
    "shards' tables": shards,
    "evaluate": evaluate,
}


def measure(stage: str, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = STAGES[stage](posts_of(count, Path(folder)), Path(folder))
        forget_peak()
        before, start, cpu = memory("VmRSS"), time.perf_counter(), cpu_seconds()
        run()
        return {
            "stage": stage,
            "posts": count,
            "seconds": round(time.perf_counter() - start, 3),
            "cpu_seconds": round(cpu_seconds() - cpu, 3),
            "before_MB": round(before),
            "peak_MB": round(memory("VmHWM")),
        }


def tables(record: dict[str, Any]) -> dict[str, str]:
    rows = []
    for stage in STAGES:
        cells = {row["posts"]: row for row in record["rows"] if row["stage"] == stage}
        rows.append(
            [stage]
            + [
                f"{cells[n]['cpu_seconds']:.2f} s, {cells[n]['peak_MB'] - cells[n]['before_MB']:,} MB"
                if n in cells
                else "-"
                for n in SIZES
            ]
        )
    return {"growth": table(["stage", *(f"{size:,}" for size in SIZES)], rows)}


def main() -> None:
    if len(sys.argv) == 3:
        sys.stdout.write(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    record: dict[str, Any] = {"machine": machine("pandas", "pyarrow", "great_expectations", "sqlalchemy"), "rows": []}
    if RECORD.exists():
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    known = {(row["stage"], row["posts"]) for row in record["rows"]}
    for count in SIZES:
        for stage in STAGES:
            # one commit a post, as while annotating: a million take longer than they teach
            if (stage, count) not in known and (stage != "ledger, write" or count <= 100_000):
                command = [sys.executable, "-m", "benchmarks.growth", stage, str(count)]
                found = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                record["rows"].append(json.loads(found.splitlines()[-1]))
                write(RECORD, record)
    put(tables(record))


if __name__ == "__main__":
    main()
