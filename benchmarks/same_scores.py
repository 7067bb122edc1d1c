"""The same posts by every door: batch, batch on Ray, service, stream. Are the scores equal to the last bit?

    .venv/bin/python -m benchmarks.same_scores [POSTS]

Takes the champion of `$AGENTPS_HOME`, that of `make train`, and test posts of the embedded sample. Writes
`benchmarks/same_scores.json` and the table of `docs/service.md`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from benchmarks.batch_scoring import settings_of
from benchmarks.load import closed, run
from benchmarks.record import machine, put, table, write
from benchmarks.serving import NAME, PAGE, bodies, posts, service
from infra.local_stack import tracking_uri
from scoring.batch import load, score_batch
from scoring.record import Record
from scoring.score import Input
from scoring.settings import load_stream
from scoring.store import Store
from scoring.stream.run import score_of, stream
from steps.ingest.sample import render_sample
from steps.paths import REPOSITORY, home
from steps.register import history, registry
from steps.settings import load_settings

RECORD = REPOSITORY / "benchmarks" / "same_scores.json"


def numbers(record: Record) -> list[float]:
    """Score and the questions' probabilities."""
    assert record.score is not None, record.error
    return [record.score, *(answer.probability for answer in record.answers.values())]


def by_batch(manifest: Path, scratch: Path, engine: str) -> dict[str, list[float]]:
    version = history.champion_of(NAME)
    settings = settings_of(posts=str(manifest), output=str(scratch / engine), engine=engine, shard=150)
    make = partial(load, version, mlflow.get_tracking_uri(), settings.threads)
    folder, _ = score_batch(version, make, settings)
    found = pd.read_parquet(folder)
    names = ["score", *(name for name in found.columns if name.startswith("probability_"))]
    return dict(zip(found["post_id"], found[names].to_numpy().tolist(), strict=True))


def by_service(inputs: Sequence[Input], scratch: Path) -> dict[str, list[float]]:
    """Requests of one to seven posts, from many clients."""
    single = [json.loads(body)["posts"][0] for body in bodies(inputs)]
    sent: list[bytes] = []
    start = 0
    while start < len(single):
        size = 1 + len(sent) % 7
        sent.append(json.dumps({"posts": single[start : start + size]}).encode())
        start += size
    with service(scratch, mlflow.get_tracking_uri()) as (_, url):
        answers = run(closed(f"{url}/score", sent, 16, len(sent)))
    records = [Record.model_validate(each) for answer in answers for each in json.loads(answer.body)["records"]]
    return {record.post_id: numbers(record) for record in records}


def by_stream(manifest: Path, scratch: Path) -> dict[str, list[float]]:
    source, store = scratch / "source", f"sqlite:///{scratch / 'scores.db'}"
    source.mkdir()
    (source / "posts.jsonl").write_bytes(manifest.read_bytes())
    settings = load_stream({"source": str(source), "images": str(manifest.parent), "store": store, "batch": 37})
    stream(settings, load_settings({}).ingest, score_of(settings, NAME), lambda _: None, once=True)
    wanted = [json.loads(line)["post_id"] for line in manifest.read_text(encoding="utf-8").splitlines()]
    with Store.open(store) as found:
        return {post_id: numbers(record) for post_id, (record, _) in found.current(wanted).items()}


def measure(count: int) -> dict[str, Any]:
    mlflow.set_tracking_uri(tracking_uri(home()))
    inputs = posts(count)
    rendered = render_sample(load_settings({"sample": {"clips": 0}}).sample, home())
    wanted = {post.post_id for post in inputs}
    lines = [
        line for line in rendered.read_text(encoding="utf-8").splitlines(True) if json.loads(line)["post_id"] in wanted
    ]
    manifest = rendered.with_name(".same-scores.jsonl")  # pictures are named from the folder that it lies in
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        manifest.write_text("".join(lines), encoding="utf-8")
        try:
            doors: dict[str, Callable[[], dict[str, list[float]]]] = {
                "batch": lambda: by_batch(manifest, scratch, "local"),
                "batch on Ray": lambda: by_batch(manifest, scratch, "ray"),
                "stream": lambda: by_stream(manifest, scratch),
                "service": lambda: by_service(inputs, scratch),
            }
            found = {door: score() for door, score in doors.items()}
        finally:
            manifest.unlink()
    first = found["batch"]
    evaluated = registry.predictions_of(history.champion_of(NAME)).set_index("post_id")["score"]
    ids = sorted(wanted)
    gaps = {
        door: np.abs(np.subtract([scores[k] for k in ids], [first[k] for k in ids])) for door, scores in found.items()
    }
    gaps["evaluation"] = np.abs(np.subtract(evaluated.loc[ids].to_numpy(), [first[k][0] for k in ids]))
    return {
        "machine": machine("torch", "ray"),
        "posts": len(ids),
        "numbers_per_post": len(first[ids[0]]),
        "largest_difference": {door: float(gap.max()) for door, gap in gaps.items() if door != "batch"},
        "differ": {door: int((gap > 0).sum()) for door, gap in gaps.items() if door != "batch"},
    }


def tables(record: dict[str, Any]) -> dict[str, str]:
    rows = [
        [door, f"{gap:g}", f"{record['differ'][door]:,}"] for door, gap in record["largest_difference"].items()
    ]  # fmt: skip
    head = (f"{record['posts']:,} posts, against the batch", "largest difference", "numbers that differ")
    return {"same scores": table(head, rows)}


def main(count: str = "2000") -> None:
    record = measure(int(count))
    write(RECORD, record)
    put(tables(record), PAGE)


if __name__ == "__main__":
    main(*sys.argv[1:])
