"""What both sides read: the same posts, the same task, and one backbone in the hub's format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Tokenizer

from benchmarks.workload import TEXT_TOKENS, album_sizes, task_of, text_lengths
from model.schema import TRAIN, VAL
from model.task import Task
from model.tiny import build_tokenizer
from steps.fine_tune.shapes import MID, Shape

#: Posts that count; behind them as many others, of val, which each side scores first to warm up.
POSTS = 8
QUESTIONS = 5
#: Posts per optimizer step and per batch of scoring.
BATCH = 4
_WORDS = ["sunny", "river", "market", "garden", "yellow", "bottle", "window", "summer", "friend", "travel", "photos"]
#: Qwen2's first special token has this id. ms-swift holds the id of `<image>`, three later, as a number in its code.
_FIRST_SPECIAL = 151_643
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")


def write_all(root: Path, shape: Shape = MID) -> None:
    """`root/posts.json` with its JPEG files, `root/task.json` and `root/backbone/`."""
    task = task_of(QUESTIONS)
    posts = _posts(root / "images", shape, task)
    (root / "posts.json").write_text(json.dumps(posts), encoding="utf-8")
    (root / "task.json").write_text(task.model_dump_json(), encoding="utf-8")
    asks = [*(question.ask for question in task.questions), task.final.ask]
    _backbone(root / "backbone", shape, [post["text"] for post in posts] + asks)


def _posts(folder: Path, shape: Shape, task: Task) -> list[dict[str, Any]]:
    """Rows with `post_id`, `split`, `title`, `text`, absolute paths in `images`, `label`, and a class per question."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    rows = []
    most = TEXT_TOKENS[1] - 12  # the title and the line ends take tokens too; nothing is cut off
    for number, (images, words) in enumerate(zip(album_sizes(2 * POSTS, 16), text_lengths(2 * POSTS), strict=True)):
        paths = [folder / f"{number}-{k}.jpg" for k in range(images)]
        for path in paths:
            small = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(small).resize((shape.image_size,) * 2, Image.Resampling.BICUBIC).save(path, quality=90)
        rows.append(
            {
                "post_id": f"post-{number}",
                "split": TRAIN if number < POSTS else VAL,
                "title": " ".join(rng.choice(_WORDS, 3)),
                "text": " ".join(rng.choice(_WORDS, min(int(words), most))),
                "images": list(map(str, paths)),
                "label": number % 2,
            }
            | {question: int(rng.integers(2)) for question in task.question_ids}
        )
    return rows


def _tokenizer(texts: list[str]) -> Qwen2Tokenizer:
    """A word of the posts is a token; the ids of the special tokens are those of LLaVA-OneVision."""
    trained = json.loads(build_tokenizer(texts, vocab_size=500).backend_tokenizer.to_str())
    trained["added_tokens"] = []
    vocabulary = trained["model"]["vocab"]
    for number, token in enumerate([token for token in vocabulary if token.startswith("<") and token.endswith(">")]):
        vocabulary[f"unused {number}"] = vocabulary.pop(token)
    vocabulary |= {f"filler {number}": number for number in range(len(vocabulary), _FIRST_SPECIAL)}
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.add_special_tokens(list(_SPECIAL))
    found = {token: tokenizer.token_to_id(token) for token in _SPECIAL}
    if list(found.values()) != list(range(_FIRST_SPECIAL, _FIRST_SPECIAL + len(_SPECIAL))):
        raise ValueError(f"the special tokens have the ids {found}; they must begin at {_FIRST_SPECIAL}")
    end = _SPECIAL[0]
    return Qwen2Tokenizer(
        tokenizer_object=tokenizer,
        pad_token=end,
        eos_token="<|im_end|>",
        unk_token=end,
        additional_special_tokens=list(_SPECIAL[1:]),
        padding_side="left",
    )


def _backbone(folder: Path, shape: Shape, texts: list[str]) -> None:
    """Random weights, with the files from which `LlavaOnevisionProcessor` is made."""
    tokenizer = _tokenizer(texts)
    config = cast(LlavaOnevisionConfig, replace(shape, vocabulary=152_000).config(tokenizer.get_vocab()))
    config.image_grid_pinpoints = [
        [shape.image_size * rows, shape.image_size * columns] for rows in range(1, 7) for columns in range(1, 7)
    ]
    torch.manual_seed(0)
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": shape.image_size, "width": shape.image_size}
    pixels = {"size": side, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_convert_rgb": True}
    files = {
        "preprocessor_config.json": pixels
        | {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": config.image_grid_pinpoints},
        "video_preprocessor_config.json": pixels | {"video_processor_type": "LlavaOnevisionVideoProcessor"},
        "processor_config.json": {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": (shape.image_size // shape.patch_size) ** 2,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
