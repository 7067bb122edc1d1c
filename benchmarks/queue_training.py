"""What a model gains that is trained on the labels of a queue, against labels of random posts: docs/queue.md.

    .venv/bin/python -m benchmarks.queue_training    # an hour of one core; goes on where it was ended

A first model is trained on 6,000 random posts of the sample, with people's labels. It scores the 4,000 others, of which
people label some more: chosen by the rule of `agentps queue`, or at random. The first model's weights are trained
further on all that is labelled by then, as a retraining does (`retrain.start: champion`), and measured on test. Beside
it the same without more labels. Three seeds: of the weights, of the first posts, and of the draws. Each image is read
once (`preprocess.repeat_frames: false`), which takes half the time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import set_seed

from benchmarks.quantization import shards_of
from benchmarks.queue import RANDOM_SHARE, TARGET
from benchmarks.record import machine, put, table, write
from model.checkpoint import build, load_trainable_state
from model.columns import SCORE
from model.data import Batches, Shards
from model.metrics import average_precision, recall
from model.schema import LABEL, POST_ID, SPLIT, TRAIN
from model.scorer import predict_rows
from model.settings import BackboneSettings, TrainSettings
from model.task import Task, load_task
from model.train import fit
from steps.evaluate.predictions import prediction_tables
from steps.evaluate.promise import promised_threshold
from steps.fine_tune.backbone import resolve
from steps.paths import REPOSITORY, home
from steps.queue import draw, inclusion, reach, worth
from steps.study.labels import draws
from steps.study.settings import load_study_settings

RECORD, PAGE = REPOSITORY / "benchmarks" / "queue_training.json", REPOSITORY / "docs" / "queue.md"
FIRST, EPOCHS, BUDGETS, SEEDS = 6_000, 2, (1_000, 2_000, 500), (0, 1, 2)
CONFIDENCE = 0.95
ARMS = ("random", "queue")
METRICS = ("average_precision", "recall_at_p80")


class Ground(NamedTuple):
    """What all trainings share."""

    shards: Shards
    task: Task
    train: TrainSettings
    backbone: BackboneSettings
    work: Path


class Scored(NamedTuple):
    """scores: of every post that is in the shards. threshold: that is served by the model that gave them."""

    scores: NDArray[np.float64]
    threshold: float


def trained(
    ground: Ground, train_rows: NDArray[np.bool_], seed: int, epochs: int, name: str, start: Path | None
) -> tuple[dict[str, float], Scored]:
    """What a model reaches on test that is trained on these posts (bool, every post), and its scores.

    Args:
        start: weights that are trained further; None: the backbone's, with fresh heads.
    """
    keep = train_rows | (ground.shards.posts[SPLIT] != TRAIN).to_numpy()
    part, train = ground.shards.subset(keep), ground.train.model_copy(update={"seed": seed, "epochs": epochs})
    set_seed(seed)
    network, _, prompt = build(ground.backbone, ground.task, part.sequence, train)
    if start is not None:
        load_trainable_state(network, load_file(start), start)
    labels = part.posts[[POST_ID, *ground.task.question_ids]]
    fit(network, Batches(part, prompt, ground.task, labels), train, ground.work / name, quiet=True)
    val, test, calibration = prediction_tables(network, prompt, part, ground.task, train.micro_batch)
    score_N, label_N = (test[column].to_numpy(np.float64) for column in (SCORE, LABEL))
    reached = {
        "average_precision": average_precision(score_N, label_N),
        "recall_at_p80": recall(score_N, label_N, min_precision=TARGET),
    }
    whole = Batches(ground.shards, prompt, ground.task)
    logit_N = predict_rows(network, whole, np.arange(len(ground.shards.posts)), train.micro_batch).final_N
    threshold = promised_threshold(val[SCORE], val[LABEL] == 1, TARGET, CONFIDENCE)
    return reached, Scored(calibration.apply(logit_N), threshold)


def chosen(scored: Scored, pool: NDArray[np.bool_], budget: int, arm: str, seed: int) -> NDArray[np.bool_]:
    """Which posts people label, of the pool: as `agentps queue` draws them."""
    score_N = scored.scores[pool]
    worth_N, _ = worth(score_N, reach(score_N, scored.threshold, float(score_N.mean())), {})
    drawn = np.zeros(len(pool), dtype=np.bool_)
    drawn[np.flatnonzero(pool)[draw(inclusion(worth_N, budget, 1.0 if arm == "random" else RANDOM_SHARE), seed)]] = True
    return drawn


def missing(rows: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Arm, budget and seed of each training that has no row yet."""
    there = {(row["arm"], row["budget"], row["seed"]) for row in rows}
    arms = [("none", 0), *((arm, budget) for budget in BUDGETS for arm in ARMS)]
    return [(*one, seed) for one in arms for seed in SEEDS if (*one, seed) not in there]


def measure(ground: Ground, rows: list[dict[str, Any]], record: Path) -> None:
    """Train what has no row yet; each is written down as it ends."""
    posts = ground.shards.posts
    is_train = (posts[SPLIT] == TRAIN).to_numpy()
    positive = (posts[LABEL] == 1).to_numpy(bool)

    def add(seed: int, arm: str, budget: int, reached: dict[str, float], **more: Any) -> None:
        rounded = {name: round(value, 6) for name, value in reached.items()}
        rows.append({"seed": seed, "arm": arm, "budget": budget, **rounded, **more})
        write(record, {"machine": machine("torch", "transformers"), "first": FIRST, "epochs": EPOCHS, "rows": rows})
        print(rows[-1], flush=True)  # noqa: T201

    firsts: dict[int, tuple[NDArray[np.bool_], Scored]] = {}
    for arm, budget, seed in missing(rows):
        if seed not in firsts:
            place = draws(posts.loc[is_train, POST_ID].tolist(), "queue", str(seed))
            first = np.zeros(len(posts), dtype=np.bool_)
            first[np.flatnonzero(is_train)[np.argsort(place, kind="stable")[:FIRST]]] = True
            reached, scored = trained(ground, first, seed, ground.train.epochs, f"first-{seed}", None)
            firsts[seed] = first, scored
            if not any((row["seed"], row["arm"]) == (seed, "first") for row in rows):
                add(seed, "first", 0, reached)
        first, scored = firsts[seed]
        more = chosen(scored, is_train & ~first, budget, arm, seed) if budget else np.zeros_like(first)
        name, start = f"{arm}-{budget}-{seed}", ground.work / f"first-{seed}" / "best.safetensors"
        reached, _ = trained(ground, first | more, seed, EPOCHS, name, start)
        add(seed, arm, budget, reached, positive=round(float(positive[more].mean()), 4) if budget else None)
        shutil.rmtree(ground.work / name)


def tables(record: dict[str, Any]) -> dict[str, str]:
    """Means over the seeds; in brackets the lowest and the highest."""
    rows = record["rows"]

    def cell(arm: str, budget: int, metric: str) -> str:
        found = [100 * row[metric] for row in rows if (row["arm"], row["budget"]) == (arm, budget)]
        return f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"

    lines = [["0, the first model", *(cell("first", 0, metric) for metric in METRICS for _ in ARMS)]]
    lines.append(["0, trained further", *(cell("none", 0, metric) for metric in METRICS for _ in ARMS)])
    for budget in sorted({row["budget"] for row in rows} - {0}):
        lines.append([f"{budget:,}", *(cell(arm, budget, metric) for metric in METRICS for arm in ARMS)])
    head = ["more labels", "AP, random", "AP, queue", "R@P80, random", "R@P80, queue"]
    return {"training": table(head, lines) + "\n"}


def ground() -> Ground:
    settings = load_study_settings({"sample": {"gold_share": 1.0}, "preprocess": {"repeat_frames": False}})
    task, backbone = load_task(settings.task), resolve(settings.backbone, home())
    work = home() / "work" / "queue_training"
    if not (work / "shards" / "shards.json").exists():
        shards_of(settings, task, backbone, work / "shards")
    train = settings.fine_tune.model_copy(update={"variant": "agentps_answers"})
    return Ground(Shards(work / "shards"), task, train, backbone, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"] if RECORD.exists() else []
    if missing(rows):
        measure(ground(), rows, RECORD)
    put(tables({"rows": rows}), PAGE)


if __name__ == "__main__":
    main()
