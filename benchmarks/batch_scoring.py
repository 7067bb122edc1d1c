"""Batches: a stub scorer over very many posts, killed again and again; the real one with and without Ray.

    .venv/bin/python -m benchmarks.batch_scoring kills [POSTS]
    .venv/bin/python -m benchmarks.batch_scoring real [POSTS]

Writes `benchmarks/batch_scoring.json` and the tables of `docs/batch-scoring.md`. `real` takes the champion of
`$AGENTPS_HOME`, that of `make train`, and posts of the embedded sample.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow.dataset as ds
import yaml

from benchmarks.record import machine, put, table, write
from infra.local_stack import tracking_uri
from model.files import write_whole
from model.images import ImageLimits
from model.settings import PostLimits
from model.task import load_task
from scoring.batch import load, score_batch
from scoring.record import Answer, Record, columns_of
from scoring.score import Input
from scoring.settings import SCORING_CONFIG, ScoringSettings
from steps.paths import REPOSITORY, home
from steps.register import history, registry

RECORD, PAGE = REPOSITORY / "benchmarks" / "batch_scoring.json", REPOSITORY / "docs" / "batch-scoring.md"
KILLS, ROUNDS = 10, 2
STUB = registry.RegisteredVersion(name="stub", version="1", run_id=None, source=None)


class StubScore:
    """Says of each post what follows from its id and its hash, in no time. A post called `bad` has an error."""

    limits, post_limits = ImageLimits(max_bytes=10**6, max_pixels=10**6), PostLimits()
    points = ("p80",)

    def __init__(self, version: str = "1") -> None:
        self._version, self._task = version, load_task("ucc")
        self.schema = columns_of(self._task, self.points)

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        return [self._record(post, now or datetime.now(UTC)) for post in inputs]

    def _record(self, post: Input, now: datetime) -> Record:
        error = post.error or ("it is bad" if post.title == "bad" else None)
        said: dict[str, Any] = {"error": error} if error else self._said(post)
        return Record(
            post_id=post.post_id,
            model_name="stub",
            model_version=self._version,
            task=self._task.fingerprint,
            input_sha256=post.sha256,
            scored_at=now,
            **said,
        )

    def _said(self, post: Input) -> dict[str, Any]:
        drawn = hashlib.sha256(f"{post.post_id} {post.sha256}".encode()).digest()[0] / 255
        answers = {id_: Answer(answer="yes", probability=1 - drawn) for id_ in self._task.question_ids}
        return {"logit": drawn - 0.5, "score": drawn, "decisions": {"p80": drawn > 0.5}, "answers": answers}


# --- killed again and again ---------------------------------------------------------------------------------

_TITLES = ("a walk along the sea", "with friends", "and what we saw there", "light")


def write_posts(folder: Path, count: int) -> Path:
    """A manifest whose posts share one file, which a stub need not decode; with ten rows that are no posts."""
    (folder / "a.png").write_bytes(b"\x89PNG" + bytes(200))
    manifest = folder / "posts.jsonl"
    with manifest.open("w", encoding="utf-8") as file:
        for k in range(count):
            post = {"post_id": f"post-{k:09}", "title": _TITLES[k % 4], "text": f"#{k} " * 12, "images": ["a.png"]}
            file.write(json.dumps(post) + "\n")
            if k % (count // 10) == 0:
                file.write(json.dumps(post) + "\n")
    return manifest


def settings_of(**values: Any) -> ScoringSettings:
    """The defaults, with these in place of theirs."""
    return ScoringSettings.model_validate(
        yaml.safe_load(SCORING_CONFIG.read_text(encoding="utf-8"))["scoring"] | values
    )


def score_with_stub(manifest: Path, output: Path) -> None:
    score_batch(STUB, StubScore, settings_of(posts=str(manifest), output=str(output)))


def _shards(output: Path) -> int:
    return len(list(output.glob("day=*/shard-*.parquet")))


def _resident(process: subprocess.Popen[bytes]) -> float:
    """MB; 0 where it has ended."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def _child(manifest: Path, output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "benchmarks.batch_scoring", "child", str(manifest), str(output)])


def kills(count: int, folder: Path) -> dict[str, Any]:
    """KILLS times SIGKILL: the first two while the shards are made, the others in the first half of the scoring. The
    process that then is left alone does the rest, and its memory is looked at meanwhile.
    """
    manifest, output = write_posts(folder, count), folder / "records"
    total = -(-(count + 10) // settings_of().shard)
    start = time.monotonic()
    for k in range(KILLS):
        process = _child(manifest, output)
        if k < 2:
            while not list(output.glob("day=*/_ids.part")) and process.poll() is None:
                time.sleep(0.02)
            time.sleep(0.5 * k)
        else:
            while _shards(output) <= (k - 1) * total // (2 * KILLS) and process.poll() is None:
                time.sleep(0.02)
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    process, seen, before = _child(manifest, output), [], _shards(output)
    while process.poll() is None:
        seen.append((_shards(output), _resident(process)))
        time.sleep(0.1)
    assert process.returncode == 0
    step = (total - before) / 10
    first = max(size for done, size in seen if before < done <= before + step)
    last = max(size for done, size in seen if done >= total - step)
    ids = pa_dataset(output).to_table(columns=["post_id"]).column("post_id")
    counts = json.loads(next(output.glob("day=*/_counts.json")).read_text(encoding="utf-8"))
    assert counts["rejects"] == 10
    return {
        "posts": count,
        "kills": KILLS,
        "seconds": round(time.monotonic() - start),
        "records": len(ids),
        "distinct": len(ids.unique()),
        "left_alone_from_shard": before,
        "shards": total,
        "first_tenth_MB": round(first),
        "last_tenth_MB": round(last),
    }


def pa_dataset(output: Path) -> ds.Dataset:
    return ds.dataset(output, format="parquet", partitioning="hive")


# --- the real scorer ----------------------------------------------------------------------------------------


def real(count: int, name: str = "agentps-ucc") -> dict[str, Any]:
    """The champion over posts of the sample, those of test and val first, by both engines."""
    mlflow.set_tracking_uri(tracking_uri(home()))
    version = history.champion_of(name)
    found = sorted(home().glob("sample/*/posts.jsonl"))
    if not found:
        raise SystemExit("no sample: run `make train` first")
    lines = found[0].read_text(encoding="utf-8").splitlines(keepends=True)
    albums = [line for line in lines if json.loads(line)["images"]]
    chosen = sorted(albums, key=lambda line: json.loads(line)["split"] == "train")[:count]
    manifest = found[0].with_name(".batch-scoring.jsonl")  # pictures are named from the folder that it lies in
    rounds: dict[str, list[dict[str, Any]]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory() as scratch:
        write_whole(manifest, "".join(chosen))
        try:
            outputs = {engine: Path(scratch) / engine for engine in ("local", "ray")}
            for _ in range(ROUNDS):
                for engine, output in outputs.items():
                    shutil.rmtree(output, ignore_errors=True)
                    rounds[engine].append(_timed(engine, version, manifest, output))
            tables = {engine: sorted(output.glob("day=*/*.parquet")) for engine, output in outputs.items()}
            equal = [a.read_bytes() == b.read_bytes() for a, b in zip(*tables.values(), strict=True)]
            records = pd.read_parquet(outputs["local"])
        finally:
            manifest.unlink()
    predictions = registry.predictions_of(version).set_index("post_id")["score"]
    both = records[records["post_id"].isin(predictions.index)]
    gap = (both["score"] - predictions.loc[both["post_id"]].to_numpy()).abs()
    return {
        "posts": len(records),
        "pictures": sum(len(json.loads(line)["images"]) for line in chosen),
        # other work on the machine only ever takes time away
        "engines": [max(found, key=lambda row: row["posts_per_second"]) for found in rounds.values()],
        "files": len(equal),
        "equal_files": sum(equal),
        "evaluated": len(both),
        "largest_difference": float(gap.max()),
    }


#: The time of both engines' jobs: a record has it.
_NOW = datetime(2026, 3, 1, tzinfo=UTC)


def _timed(engine: str, version: registry.RegisteredVersion, manifest: Path, output: Path) -> dict[str, Any]:
    settings = settings_of(posts=str(manifest), output=str(output), engine=engine, shard=200)
    make = partial(load, version, mlflow.get_tracking_uri(), settings.threads)
    start, load_before = time.monotonic(), os.getloadavg()[0]
    folder, counts = score_batch(version, make, settings, _NOW)
    seconds = time.monotonic() - start
    # what the first file of each process took is its start
    times = sorted(path.stat().st_mtime for path in folder.glob("*.parquet"))[(os.cpu_count() or 1) - 1 :]
    rate = 200 * (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    return {
        "engine": engine,
        "seconds": round(seconds),
        "posts_per_second": round(rate),
        "errors": counts.errors,
        "load_before": round(load_before, 1),
    }


def tables(record: dict[str, Any]) -> dict[str, str]:
    found, scored = record["kills"], record["real"]
    killed = [
        ["posts", f"{found['posts']:,}"],
        ["SIGKILL", found["kills"]],
        ["records, distinct posts among them", f"{found['records']:,}, {found['distinct']:,}"],
        ["memory in the first, in the last tenth, MB", f"{found['first_tenth_MB']:,}, {found['last_tenth_MB']:,}"],
    ]
    engines = [
        [row["engine"], f"{scored['posts']:,}", row["posts_per_second"], row["seconds"], row["load_before"]]
        for row in scored["engines"]
    ]
    return {
        "killed": table(("stub scorer", ""), killed),
        "engines": table(("engine", "posts", "posts/s", "seconds with its start", "load before"), engines),
    }


def main(what: str, *arguments: str) -> None:
    if what == "child":
        score_with_stub(*map(Path, arguments))
        return
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if what == "kills":
        with tempfile.TemporaryDirectory() as folder:
            record["kills"] = kills(int(arguments[0] if arguments else 1_000_000), Path(folder))
    else:
        record["real"] = real(int(arguments[0] if arguments else 10_000))
    record["machine"] = machine("ray", "torch", "pyarrow")
    write(RECORD, record)
    if {"kills", "real"} <= record.keys():
        put(tables(record), PAGE)


if __name__ == "__main__":
    main(*sys.argv[1:])
