"""AgentPS's side: trains and scores the posts, and prints CPU and wall seconds per post as JSON.

.venv/bin/python -m benchmarks.peers.ours FOLDER
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState

from benchmarks.peers.meter import LastEpoch, Meter
from benchmarks.peers.posts import BATCH
from benchmarks.workload import sequence_of, train_settings
from model import checkpoint, checkpoint_info
from model.columns import ERROR
from model.data import FRAMES, TEXT_IDS, Batches, Shards, ShardWriter
from model.images import ImageLimits, frame_indices, read_frame
from model.metrics import Calibration
from model.schema import IMAGES, LABEL, POST_ID, SPLIT, TEXT, TITLE, TRAIN
from model.scorer import Scorer
from model.settings import BackboneSettings
from model.task import Task
from model.text import encode_post_text
from model.train import fit
from steps.fine_tune.shapes import MID

SEQUENCE = sequence_of(MID, max_tokens=1024)
LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=1_000_000)


def shards_of(folder: Path, posts: pd.DataFrame, task: Task, tokenizer: Any) -> Shards:
    """What the preprocess step would write."""
    with ShardWriter(folder, SEQUENCE, "peers") as writer:
        frames, texts = [], []
        for images, title, text in zip(posts[IMAGES], posts[TITLE], posts[TEXT], strict=True):
            numbers = [writer.add(read_frame(image, SEQUENCE.image_size, LIMITS)) for image in images]
            frames.append([numbers[k] for k in frame_indices(len(numbers), SEQUENCE.frames)])
            texts.append(encode_post_text(tokenizer, title, text, SEQUENCE.max_text_tokens))
        kept = posts[[POST_ID, SPLIT, LABEL, *task.question_ids]].astype(dict.fromkeys(task.question_ids, "Int8"))
        kept[FRAMES], kept[TEXT_IDS] = pd.Series(frames, kept.index), pd.Series(texts, kept.index)
        writer.add_posts(kept)
    return Shards(folder)


class Epoch(LastEpoch, TrainerCallback):
    """The second epoch; `kept`: with the tower's states of the first, else with every image encoded again."""

    def __init__(self, posts: int, batches: Batches, *, kept: bool) -> None:
        super().__init__(posts)
        self._batches, self._kept = batches, kept

    def on_epoch_begin(self, *arguments: Any, **named: Any) -> None:
        if not self._kept:
            self._batches.tower_cache = None
        elif self._batches.tower_cache is None:
            raise RuntimeError("the tower's states were not kept: is the disk full?")
        super().on_epoch_begin(*arguments, **named)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = state.epoch is not None and state.epoch >= 2


def main() -> None:
    folder = Path(sys.argv[1])
    posts = pd.read_json(folder / "posts.json", dtype={TITLE: str, TEXT: str})
    task = Task.model_validate_json((folder / "task.json").read_text(encoding="utf-8"))
    backbone = BackboneSettings(name=str(folder / "backbone"))
    # so many epochs that keeping the tower's states pays, however long measuring it takes; Epoch stops after two
    train = train_settings(MID, variant="agentps_answers", epochs=20, batch=BATCH, micro_batch=BATCH, warmup_share=0.0)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        model, tokenizer, prompt = checkpoint.build(backbone, task, SEQUENCE, train)
        batches = Batches(shards_of(Path(work) / "shards", posts, task, tokenizer), prompt, task)
        n_train = len(batches.rows(TRAIN, labelled=False))
        for name, kept in {"training": False, "training, the tower's states kept": True}.items():
            meter = Epoch(n_train, batches, kept=kept)
            fit(model, batches, train, Path(work) / name, callbacks=[meter], quiet=True)
            found[name] = meter.found
        checkpoint.save(
            Path(work) / "checkpoint", model, tokenizer, task=task, sequence=SEQUENCE, train=train, backbone=backbone,
            embed_backbone=False, provenance={},
        )  # fmt: skip
        points = checkpoint_info.OperatingPoints(calibration=Calibration(), thresholds={})
        checkpoint_info.write_operating_points(Path(work) / "checkpoint", points)
        scorer = Scorer.from_directory(Path(work) / "checkpoint", image_root="/")
        is_train = posts[SPLIT] == TRAIN
        for name, part in {
            "warm-up": posts[~is_train],
            "scoring": posts[is_train],
            "scoring, images seen before": posts[is_train],
        }.items():
            clock = Meter()
            errors = scorer.score(part)[ERROR].dropna()
            found[name] = clock.per(len(part))
            if len(errors):
                raise RuntimeError(f"scoring failed: {errors.iloc[0]}")
    del found["warm-up"]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
