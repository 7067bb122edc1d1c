"""What a language model in 4 bits costs in recall: LoRA on NF4 (QLoRA) beside LoRA on the same weights in full.

    .venv/bin/python -m benchmarks.quantization

No pretrained weights can be loaded here, and random ones have nothing to lose. So the tiny backbone is first trained in
full on a sample of another seed, with heads that are thrown away; that is the pretrained model which both then adapt to
the embedded sample. Writes `benchmarks/quantization.json` and the table of `docs/study.md`. Takes a quarter of an hour.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import machine, put, table, write
from model.backbone import load_tokenizer
from model.checkpoint import build
from model.data import Batches, Shards
from model.images import ImageLimits
from model.schema import POST_ID
from model.settings import BackboneSettings, LoraSettings, Variant
from model.task import Task, load_task
from model.train import fit
from steps.fine_tune.backbone import resolve
from steps.ingest.posts import read_manifest
from steps.ingest.sample import render_sample
from steps.paths import REPOSITORY, home
from steps.preprocess.shards import write_shards
from steps.study.cells import PEOPLE, Cell
from steps.study.settings import StudyRunSettings, load_study_settings
from steps.study.train import Inputs, train_cell

RECORD = REPOSITORY / "benchmarks" / "quantization.json"
PAGE = REPOSITORY / "docs" / "study.md"
VARIANTS: tuple[Variant, ...] = ("vanilla", "multitask", "agentps", "agentps_answers")
SEEDS = (0, 1, 2)
TRAIN_POSTS, EPOCHS = 4_000, 3
PRETRAINING_SEED = 8
LORA = LoraSettings(rank=32, alpha=64)
METRICS = ("average_precision", "recall_at_p80")


def shards_of(settings: StudyRunSettings, task: Task, backbone: BackboneSettings, root: Path) -> Path:
    posts = read_manifest(render_sample(settings.sample, home()), task, settings.ingest).posts
    limits = ImageLimits(max_bytes=settings.ingest.max_image_bytes, max_pixels=settings.ingest.max_image_pixels)
    write_shards(root, posts, task, settings.preprocess, load_tokenizer(backbone), limits)
    return root


def pretrain(settings: StudyRunSettings, task: Task, backbone: BackboneSettings, work: Path) -> BackboneSettings:
    """The backbone, its language model trained in full on the sample of another seed."""
    other = settings.model_copy(update={"sample": settings.sample.model_copy(update={"seed": PRETRAINING_SEED})})
    shards = Shards(shards_of(other, task, backbone, work / "pretraining-shards"))
    train = settings.fine_tune.model_copy(update={"variant": "agentps"})
    network, tokenizer, prompt = build(backbone, task, shards.sequence, train)
    labels = shards.posts[[POST_ID, *task.question_ids]]
    fit(network, Batches(shards, prompt, task, labels), train, work / "pretraining", quiet=True)
    network.base.save_pretrained(work / "pretrained")
    tokenizer.save_pretrained(work / "pretrained")
    return BackboneSettings(name=str(work / "pretrained"))


def run(cell: Cell, inputs: Inputs, work: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    record = train_cell(cell, "", inputs, work)
    return {
        "quantization": inputs.backbone.quantization,
        "variant": cell.variant,
        "seed": cell.seed,
        **{name: record.metrics[name] for name in METRICS},
        "seconds": record.seconds,
    }


def measure() -> dict[str, Any]:
    settings = load_study_settings({"sample": {"gold_share": 1.0}})
    task, tiny = load_task(settings.task), resolve(settings.backbone, home())
    cells = [
        Cell(variant=variant, seed=seed, train_posts=TRAIN_POSTS, labels=PEOPLE, questions=task.question_ids)
        for variant in VARIANTS
        for seed in SEEDS
    ]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(mp_context=context) as pool:
        work = Path(folder)
        pretrained = pretrain(settings, task, tiny, work)
        shards = shards_of(settings, task, tiny, work / "shards")
        running = []
        for backbone in (pretrained, pretrained.model_copy(update={"quantization": "nf4"})):
            inputs = Inputs(
                shards=shards,
                labels=work / "none",  # people's are in the shards
                task=task,
                train=settings.fine_tune.model_copy(update={"lora": LORA, "epochs": EPOCHS}),
                backbone=backbone,
                backbone_id="",
                evaluate=settings.evaluate,
                gold_share=settings.study.gold_share,
                work=work,
            )
            running += [
                pool.submit(run, cell, inputs, work / f"{backbone.quantization}-{cell.variant}-{cell.seed}")
                for cell in cells
            ]
        return {"rows": [future.result() for future in running]}


def tables(record: dict[str, Any]) -> dict[str, str]:
    """Means over the seeds, in percent; the difference with the smallest and the largest of a seed."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in record["rows"]):
        line = [variant]
        for metric in METRICS:
            full, small = (
                [
                    100 * row[metric]
                    for row in record["rows"]
                    if (row["variant"], row["quantization"]) == (variant, form)
                ]
                for form in (None, "nf4")
            )
            gaps = [b - a for a, b in zip(full, small, strict=True)]
            line += [f"{statistics.mean(full):.1f}", f"{statistics.mean(small):.1f}"]
            line.append(f"{statistics.mean(gaps):+.1f} [{min(gaps):+.1f}, {max(gaps):+.1f}]")
        lines.append(line)
    head = ["variant", "AP, LoRA", "AP, QLoRA", "difference", "R@P80, LoRA", "R@P80, QLoRA", "difference"]
    return {"quantization": table(head, lines)}


def main() -> None:
    record = {"machine": machine("torch", "transformers", "peft", "bitsandbytes"), **measure()}
    write(RECORD, record)
    put(tables(json.loads(RECORD.read_text(encoding="utf-8"))), PAGE)


if __name__ == "__main__":
    main()
