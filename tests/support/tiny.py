"""A small task, its posts as shards, and settings of a training that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from model import checkpoint
from model.agentps import AgentPS
from model.backbone import load_tokenizer
from model.data import FRAMES, TEXT_IDS, Batches, Shards, ShardWriter
from model.images import frame_indices
from model.prompt import Prompt
from model.schema import LABEL, POST_ID, SPLIT
from model.settings import BackboneSettings, SequenceSettings, TrainSettings
from model.task import Task
from model.text import encode_post_text

#: Two binary questions and one of three classes, of different weights.
TASK = Task.model_validate(
    {
        "name": "small",
        "version": 1,
        "questions": [
            {"id": "bright", "ask": "Bright?", "annotate": "Is it bright?", "answer": "class"},
            {
                "id": "kind",
                "ask": "Which kind of album is it?",
                "annotate": "Which kind?",
                "answer": "class",
                "classes": ["none", "some", "all"],
                "weight": 0.5,
            },
            {"id": "calm", "ask": "Calm?", "annotate": "Is it calm?", "answer": "class", "weight": 2.0},
        ],
        "final": {"ask": "Is it good?", "classes": ["bad", "good"], "positive": "good"},
    }
)
IMAGE_SIZE = 32
SEQUENCE = SequenceSettings(frames=4, image_size=IMAGE_SIZE, max_text_tokens=24, max_tokens=96)
#: Short albums have as many frames as images.
UNIQUE = SEQUENCE.model_copy(update={"repeat_frames": False})
_WORDS = ("a", "walk", "along", "the", "sea", "今天", "🙂", "with", "friends", "and", "#tag", "light")


def train_settings(**changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "variant": "agentps",
        "seed": 0,
        "lora": None,
        "train_projector": True,
        "head_hidden": 16,
        "epochs": 2,
        "batch": 8,
        "micro_batch": 8,
        "learning_rate": 2e-3,
        "weight_decay": 0.01,
        "warmup_share": 0.1,
        "max_grad_norm": 1.0,
        "final_weight": 1.0,
        "saves_per_epoch": 2,
        "precision": "float32",
        "gradient_checkpointing": False,
    }
    return TrainSettings.model_validate(values | changes)


def write_posts(
    root: Path,
    backbone: BackboneSettings,
    *,
    train: int = 48,
    val: int = 16,
    test: int = 8,
    image_seed: int = 4,
    sequence: SequenceSettings = SEQUENCE,
) -> Shards:
    """Posts of 1 to 6 grey images. The brightness tells every label; some labels are missing in train."""
    rng, image_rng = np.random.default_rng(3), np.random.default_rng(image_seed)
    tokenizer = load_tokenizer(backbone)
    with ShardWriter(root, sequence, tokenizer.name_or_path, images_per_file=50) as writer:
        rows = []
        for split, count in (("train", train), ("val", val), ("test", test)):
            for index in range(count):
                level = index % 3
                frames = image_rng.integers(0, 60, (1 + index % 6, IMAGE_SIZE, IMAGE_SIZE, 3)) + 90 * level
                numbers = [writer.add(frame.astype(np.uint8)) for frame in frames]
                shown = frame_indices(len(numbers), sequence.frames, repeat=sequence.repeat_frames)
                words = " ".join(rng.choice(_WORDS, 1 + index % 9))
                known = split != "train"
                rows.append(
                    {
                        POST_ID: f"{split}-{index}",
                        SPLIT: split,
                        LABEL: int(level == 2) if known or index % 8 else None,
                        "bright": int(level > 0) if known or index % 5 else None,
                        "kind": level if known or index % 4 else None,
                        "calm": int(level == 1),
                        FRAMES: [numbers[k] for k in shown],
                        TEXT_IDS: encode_post_text(tokenizer, words, words[::-1], SEQUENCE.max_text_tokens),
                    }
                )
        table = pd.DataFrame(rows)
        writer.add_posts(table.astype(dict.fromkeys((LABEL, *TASK.question_ids), "Int8")))
    return Shards(root)


def network(
    backbone: BackboneSettings, shards: Shards, train: TrainSettings, task: Task = TASK
) -> tuple[AgentPS, Prompt, Batches]:
    """A network with fresh heads, its prompt, and the batches that fit them; the same for the same settings."""
    import torch

    torch.manual_seed(train.seed)
    model, _, prompt = checkpoint.build(backbone, task, shards.sequence, train)
    return model, prompt, Batches(shards, prompt, task)


def write_images(root: Path, count: int) -> list[Path]:
    """JPEG and PNG files of different sizes."""
    from PIL import Image

    rng = np.random.default_rng(5)
    paths = []
    for k in range(count):
        pixels = rng.integers(0, 256, (6 + k, 9, 3), dtype=np.uint8)
        paths.append(root / f"{k}.{'png' if k % 2 else 'jpg'}")
        Image.fromarray(pixels).resize((40 + 10 * k, 60)).save(paths[-1])
    return paths


def write_checkpoint(
    directory: Path,
    backbone: BackboneSettings,
    train: TrainSettings,
    task: Task = TASK,
    sequence: SequenceSettings = SEQUENCE,
) -> Path:
    """A checkpoint that can decide: no training, but every trained weight moved away from where it begins."""
    import torch

    torch.manual_seed(1)
    model, tokenizer, _ = checkpoint.build(backbone, task, sequence, train)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    checkpoint.save(
        directory,
        model,
        tokenizer,
        task=task,
        sequence=sequence,
        train=train,
        backbone=backbone,
        embed_backbone=True,
        provenance={},
    )
    return directory
