"""Training and scoring at the shapes of the published backbones, on this machine's GPU, against a plain use.

    make bench-gpu                                        # or .venv/bin/python -m benchmarks.gpu [--compile]
    .venv/bin/python -m benchmarks.gpu --backbone qwen3-vl-4b --seconds 2    # one of them, or several
    .venv/bin/python -m benchmarks.gpu --tiny                # the same code at tiny shapes, on a CPU too

Prints one JSON object; needs neither ZenML nor MLflow. Weights and posts are random. `docs/speed-network.md` has the
formula of the FLOPs and the two paths. Both train in bfloat16 autocast with fused AdamW, 8 posts an optimizer step.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.workload import (
    Plain,
    PlainBatches,
    album_sizes,
    network,
    task_of,
    text_lengths,
    train_settings,
    write_posts,
)
from model.data import Batches, PostDataset
from steps.fine_tune.shapes import OV_05B, OV_7B, PUBLISHED, Shape, flops, tiny

QUESTIONS = 5
BATCH = 8
POSTS = 2 * BATCH  # the two optimizer steps that warm up read them all
#: Dense bfloat16 FLOP/s, by a part of the device's name; the first that fits.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}
#: Trained posts per second and A100 in the paper (150k albums, 5 epochs, 16 A100s: 10 h and 18 h).
PAPER = {OV_05B.name: 1.30, OV_7B.name: 0.72}
#: As in the profiles.
LOADER_WORKERS = 2

Batch = dict[str, Tensor]
Step = Callable[[Iterator[Batch]], None]
Collate = Callable[[list[int]], Batch]


def peak_of(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s; None for a device that is not known."""
    return next((peak for part, peak in PEAKS.items() if part in device_name), None)


class Runner:
    """One backbone's two paths on one device."""

    def __init__(self, root: Path, shape: Shape, device: torch.device, seconds: float, *, compiled: bool) -> None:
        self.shape, self.device, self.seconds = shape, device, seconds
        self.micro = shape.micro_batch
        albums, texts, task = album_sizes(POSTS, shape.frames), text_lengths(POSTS), task_of(QUESTIONS)
        settings = train_settings(shape, precision="bfloat16", batch=BATCH, micro_batch=self.micro)
        shards = write_posts(root, shape, task, albums, texts)
        self.model, prompt = network(shape, task, settings, device)
        self.plain = Plain(self.model)
        self.batches = Batches(shards, prompt, task)
        self.plain_batches = PlainBatches(shards, prompt, self.batches, self.model, shape)
        self.images = float(albums.mean())
        self.tokens = float(texts.mean()) + len(prompt.visual_ids) + len(prompt.question_ids)
        if compiled:  # both paths: they share these modules
            layers = cast(nn.ModuleList, self.model.language_model.layers)
            for module in (self.model.tower, *layers):
                module.compile()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def loader(self, collate: Collate) -> Iterator[Batch]:
        """Micro-batches without end, made ahead as the profiles' `loader_workers` do, moved to the device.

        What needs the device itself, to compute the tower's states once, is made in this process.
        """
        apart = self.on_gpu and isinstance(collate, Batches | PlainBatches)
        rows = PostDataset(np.tile(np.arange(POSTS), 10_000))  # an epoch's end would stop those who work ahead
        workers = LOADER_WORKERS if apart else 0
        data = DataLoader(rows, self.micro, collate_fn=collate, pin_memory=self.on_gpu, num_workers=workers)
        for batch in data:
            yield {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _sync(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def _seconds(self, step: Step, feed: Iterator[Batch]) -> float:
        """A step's, over as many as `self.seconds` hold; the first two also prepare kernels."""
        step(feed)
        self._sync()
        started = time.perf_counter()
        step(feed)
        self._sync()
        count = max(1, math.ceil(self.seconds / (time.perf_counter() - started)))
        started = time.perf_counter()
        for _ in range(count):
            step(feed)
        self._sync()
        return (time.perf_counter() - started) / count

    def train(self, module: nn.Module) -> Step:
        def step(feed: Iterator[Batch]) -> None:
            module.train()
            for _ in range(BATCH // self.micro):
                answers = module(**next(feed))
                loss = answers["loss"] if isinstance(answers, dict) else answers.loss_sum / answers.weight_sum
                (loss / (BATCH // self.micro)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        return step

    def score(self, module: nn.Module) -> Step:
        @torch.no_grad()
        def step(feed: Iterator[Batch]) -> None:
            module.eval()
            for _ in range(BATCH // self.micro):
                module(**next(feed))

        return step

    def measure(self, step: Step, collate: Collate, *, training: bool, images: float) -> dict[str, float | None]:
        """
        Args:
            images: that the tower must read for a post.
        """
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with_loader = self._seconds(step, self.loader(collate))
        ready = self._ready(collate)
        without = self._seconds(step, ready)
        rate = BATCH / with_loader
        needed = flops(self.shape, images, self.tokens, training=training, answers=QUESTIONS + 1)
        peak = peak_of(torch.cuda.get_device_name()) if self.on_gpu else None
        paper = PAPER.get(self.shape.name) if training else None
        return {
            "posts_per_s": rate,
            "tokens_per_s": rate * self.tokens,
            "tflop_per_s": rate * needed / 1e12,
            "share_of_peak": rate * needed / peak if peak else None,
            "waiting_for_data": max(0.0, 1 - without / with_loader),
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else None,
            "times_the_papers_rate": rate / (paper * peak / PEAKS["A100"]) if paper and peak else None,
        }

    def _ready(self, collate: Collate) -> Iterator[Batch]:
        """The posts' micro-batches, on the device before the clock runs."""
        feed = self.loader(collate)
        batches = [next(feed) for _ in range(BATCH // self.micro)]
        while True:
            yield from batches

    def states(self) -> Collate:
        """Batches of the tower's states, computed once and kept in main memory as a tower cache would on disk."""
        kept: dict[tuple[int, ...], Batch] = {}

        def collate(rows: list[int]) -> Batch:
            key = tuple(rows)
            if key not in kept:
                batch = self.batches(rows)
                images = batch.pop("images_UHWC").to(self.device)
                kept[key] = {**batch, "tower_states_UPW": self.model.tower_states(images).cpu()}
            return kept[key]

        return collate

    def run(self) -> dict[str, Any]:
        """By arm, what was measured, or why it could not be."""
        states = self.states()
        arms: dict[str, tuple[Step, Collate, bool, float]] = {
            "training": (self.train(self.model), self.batches, True, self.images),
            "training, the tower's states kept": (self.train(self.model), states, True, 0.0),
            "training, plain": (self.train(self.plain), self.plain_batches, True, self.images),
            "scoring": (self.score(self.model), self.batches, False, self.images),
            "scoring, images seen before": (self.score(self.model), states, False, 0.0),
            "scoring, plain": (self.score(self.plain), self.plain_batches, False, self.images),
        }
        found: dict[str, Any] = {"images": self.images, "tokens": self.tokens, "micro_batch": self.micro}
        for name, (step, collate, training, images) in arms.items():
            found[name] = self._fitting(partial(self.measure, step, collate, training=training, images=images))
        for name, result in found.items():
            plain = found.get(f"{name.partition(',')[0]}, plain")
            if isinstance(result, dict) and plain and "posts_per_s" in result and "posts_per_s" in plain:
                result["times_plain"] = result["posts_per_s"] / plain["posts_per_s"]
        return found

    def _fitting(self, measure: Callable[[], dict[str, float | None]]) -> dict[str, Any]:
        """Activation checkpointing only where the memory does not hold the activations."""
        model = self.model.language_model
        for checkpointing in (False, True):
            if checkpointing:
                model.activation_checkpointing_enable()
            try:
                return {**measure(), "activation_checkpointing": checkpointing}
            except torch.OutOfMemoryError as error:
                self.optimizer.zero_grad()
                reason = str(error).partition(".")[0]
            finally:
                if checkpointing:
                    model.activation_checkpointing_disable()
        return {"out_of_memory": reason}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", choices=PUBLISHED, default=list(PUBLISHED), metavar="NAME")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile of tower and layers")
    parser.add_argument("--seconds", type=float, default=5, help="that each measurement takes, at least")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("error: no CUDA device here; --tiny runs the same code at tiny shapes on a CPU")
    warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers by an old name
    torch.set_float32_matmul_precision("high")  # TF32 for what is not in bfloat16
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "compile": options.compile,
    }
    for name in options.backbone:
        shape = tiny(PUBLISHED[name]) if options.tiny else PUBLISHED[name]
        with TemporaryDirectory() as folder:
            runner = Runner(Path(folder), shape, device, options.seconds, compiled=options.compile)
            record[name] = runner.run()
            del runner
    sys.stdout.write(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
