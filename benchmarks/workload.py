"""What the network's benchmarks share: posts, the product's network at a shape, and the plain baseline.

Weights and posts are random: neither changes how long a forward or backward takes. Needs neither ZenML nor MLflow.

Dimensions: B posts · F frames · S side of a frame, in pixels · T tokens · D hidden size · A answers · Q questions
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from model import checkpoint
from model.agentps import AgentPS
from model.backbones import family_of
from model.data import FRAMES, TEXT_IDS, Batches, Shards, ShardWriter
from model.images import frame_indices
from model.loss import label_weight, task_loss
from model.prompt import Prompt
from model.schema import LABEL, NO_LABEL, POST_ID, SPLIT, TRAIN, VAL
from model.settings import LoraSettings, SequenceSettings, TrainSettings
from model.task import Task
from model.tiny import build_tokenizer
from steps.fine_tune.shapes import KINDS, Shape

#: Title and text of a post are of 8 to 196 tokens, evenly spread.
TEXT_TOKENS = (8, 196)
#: Arguments of a plain class that have one entry a token.
TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")
_WORDS = "Is the album of a post its original work? Which one shows what title and text tell?"


def task_of(questions: int) -> Task:
    """`questions` yes-or-no questions of about six tokens, and the final one."""
    asked = [
        {"id": f"q{k}", "ask": f"Which one shows {k}?", "annotate": "?", "answer": "class"} for k in range(questions)
    ]
    final = {"ask": "Is the post original?", "classes": ["no", "yes"], "positive": "yes"}
    return Task.model_validate({"name": "speed", "version": 1, "questions": asked, "final": final})


def train_settings(shape: Shape, **changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "variant": "agentps",
        "seed": 0,
        "lora": LoraSettings(rank=shape.lora_rank, alpha=2 * shape.lora_rank),
        "train_projector": False,
        "head_hidden": shape.head_hidden,
        "epochs": 3,
        "batch": 8,
        "micro_batch": 8,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "warmup_share": 0.03,
        "max_grad_norm": 1.0,
        "final_weight": 1.0,
        "saves_per_epoch": 1,
        "precision": "float32",
        "gradient_checkpointing": False,
    }
    return TrainSettings.model_validate(values | changes)


def sequence_of(shape: Shape, max_tokens: int = 256) -> SequenceSettings:
    return SequenceSettings(
        frames=shape.frames,
        repeat_frames=shape.repeat_frames,
        frame_pooling=shape.frame_pooling,
        image_size=shape.image_size,
        max_text_tokens=TEXT_TOKENS[1],
        max_tokens=max_tokens,
    )


def album_sizes(n: int, most: int, seed: int = 0) -> np.ndarray:
    """int64 (n,): images per post, 1 to `most`, few more often than many; the mean is 5 where `most` is 16."""
    weights = 0.83 ** np.arange(most)
    return np.random.default_rng(seed).choice(np.arange(1, most + 1), n, p=weights / weights.sum())


def text_lengths(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(TEXT_TOKENS[0], TEXT_TOKENS[1] + 1, n)


def write_posts(
    root: Path, shape: Shape, task: Task, albums: Sequence[int] | np.ndarray, texts: Sequence[int] | np.ndarray
) -> Shards:
    """Shards of posts with so many images and text tokens; every fifth is of val, no two share an image."""
    rng = np.random.default_rng(2)
    with ShardWriter(root, sequence_of(shape, max_tokens=1024), "random") as writer:
        rows = []
        for number, (images, tokens) in enumerate(zip(albums, texts, strict=True)):
            side = shape.image_size
            numbers = [writer.add(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(images)]
            rows.append(
                {
                    POST_ID: str(number),
                    SPLIT: VAL if number % 5 == 4 else TRAIN,
                    LABEL: number // 5 % 2,
                    FRAMES: [numbers[k] for k in frame_indices(images, shape.frames, repeat=shape.repeat_frames)],
                    # bytes: before them and behind the learned words are the special tokens
                    TEXT_IDS: rng.integers(8, 250, tokens).tolist(),
                }
                | {question: int(rng.integers(2)) for question in task.question_ids}
            )
        writer.add_posts(pd.DataFrame(rows).astype(dict.fromkeys((LABEL, *task.question_ids), "Int8")))
    return Shards(root)


def network(
    shape: Shape, task: Task, train: TrainSettings, device: torch.device | str = "cpu", max_tokens: int = 256
) -> tuple[AgentPS, Prompt]:
    """The product's network with random weights, none of them zero, as `train` says."""
    tokenizer = build_tokenizer([_WORDS], vocab_size=400)
    special: dict[str, Any] = {"additional_special_tokens": list(KINDS[shape.family].special)}
    tokenizer.add_special_tokens(special, replace_extra_special_tokens=False)
    config = shape.config(tokenizer.get_vocab())
    sequence = sequence_of(shape, max_tokens)
    torch.manual_seed(0)
    dtype = torch.float32 if train.precision == "float32" else torch.bfloat16
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # the 7B weights are never in float32
    try:
        with torch.device(device):
            base = family_of(config).model_class(config)
    finally:
        torch.set_default_dtype(default)
    with torch.device(device):
        model = checkpoint.wrap(base, tokenizer, task, sequence, train)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # LoRA's B and the biases begin at zero
                parameter.add_(0.05 * torch.randn_like(parameter))
    frames = model.family.placeholders(tokenizer, sequence)
    return model, Prompt(tokenizer, task, train.variant, sequence, frames=frames)


class Plain(nn.Module):
    """The same answers of the same weights, as a user of `transformers` would write it.

    Every frame passes the tower, the `…ForConditionalGeneration` makes logits over the vocabulary, the heads read
    `hidden_states`: all of them in one forward (`forward`), or, as where a head reads the last token, each in the
    forward of a prompt of its own (`answer`). Only the forwards are its own: backbone and heads are those of `model`.
    """

    def __init__(self, model: AgentPS) -> None:
        super().__init__()
        if model.variant != "agentps":
            raise ValueError(f"variant {model.variant!r}: the plain baseline is written for agentps")
        base = model.base
        with torch.device("meta"):
            self.whole: Any = KINDS[base.config.model_type].whole_class(base.config)
        self.whole.model = base
        embedding = base.get_input_embeddings()
        weight = cast(nn.Embedding, getattr(embedding, "original_module", embedding)).weight
        if not base.config.tie_word_embeddings:
            weight = nn.Parameter(torch.randn_like(weight).mul_(0.02), requires_grad=False)
        self.whole.lm_head.weight = weight
        self.heads, self.final_head = model.heads, model.final_head
        self.weights = (model.question_weights, model.final_weight)
        self.autocast = weight.dtype == torch.bfloat16

    def forward(
        self,
        answers_from_end: Tensor,
        question_labels: Tensor | None = None,
        final_labels: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Any]:
        """
        Args:
            inputs: of the backbone's own class.
        """
        read_BAD = self._states(inputs)[:, answers_from_end[0]].float()
        questions = [head(read_BAD[:, k]) for k, head in enumerate(self.heads.values())]
        final = self.final_head(read_BAD[:, -1]).squeeze(-1)
        found: dict[str, Any] = {"final": final, "questions": questions}
        if question_labels is not None and final_labels is not None:
            weights, final_weight = self.weights
            total, weight = task_loss(questions, question_labels, weights, final, final_labels, final_weight)
            found = {"loss": total / weight, **found}
        return found

    def _states(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, T, D)."""
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=self.autocast):
            output = self.whole(**inputs, output_hidden_states=True)
        states_BTD: Tensor = output.hidden_states[-1]
        return states_BTD

    def answer(
        self,
        which: int,
        answers_from_end: Tensor,
        question_labels: Tensor | None = None,
        final_labels: Tensor | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """Logits of one answer, the last the final one: the prompt ends with it, and its head reads the last token."""
        end = inputs["input_ids"].shape[1] + 1 + int(answers_from_end[0, which])
        cut = {name: value[:, :end] if name in TOKENS else value for name, value in inputs.items()}
        states_BD = self._states(cut)[:, -1].float()
        if which == len(self.heads):
            return cast(Tensor, self.final_head(states_BD).squeeze(-1))
        return cast(Tensor, list(self.heads.values())[which](states_BD))

    def answer_loss(self, which: int, batch: dict[str, Tensor]) -> Tensor:
        """What the answer adds to the loss of `forward`."""
        weights, final_weight = self.weights
        questions, final = batch["question_labels"], batch["final_labels"]
        total = label_weight(questions, weights, final, final_weight)
        logits = self.answer(which, **batch)
        if which == len(self.heads):
            return task_loss([], questions, [], logits, final, final_weight)[0] / total
        unlabelled = torch.full_like(final, NO_LABEL)
        own = questions[:, which : which + 1]
        return task_loss([logits], own, [weights[which]], logits.new_zeros(len(own)), unlabelled, 0.0)[0] / total


class PlainBatches:
    """`Plain`'s arguments: every frame of every post, text padded on the left, as the backbone's tokenizer does."""

    def __init__(self, shards: Shards, prompt: Prompt, batches: Batches, model: AgentPS, shape: Shape) -> None:
        self._shards, self._prompt, self._batches = shards, prompt, batches
        self._family, self._shape = model.family, shape

    def __call__(self, rows: Iterable[int]) -> dict[str, Tensor]:
        rows = list(rows)
        prompt, posts = self._prompt, self._shards.posts
        ids = [
            [*prompt.visual_ids, *posts[TEXT_IDS][row][: prompt.max_text_tokens], *prompt.question_ids] for row in rows
        ]
        width = max(map(len, ids))
        padding = [width - len(row) for row in ids]
        pixels = [self._family.normalize(torch.from_numpy(self._shards.images(posts[FRAMES][row]))) for row in rows]
        labels = self._batches(rows)
        kind = KINDS[self._shape.family]
        input_ids = torch.tensor([[prompt.pad_token_id] * n + row for n, row in zip(padding, ids, strict=True)])
        inputs = kind.plain(self._shape, torch.stack(pixels))
        if "image_grid_thw" in inputs:  # what tells images from text, where positions are over three axes
            inputs["mm_token_type_ids"] = (input_ids == self._family.token_id).int()
        return {
            "input_ids": input_ids,
            "attention_mask": torch.tensor([[0] * n + [1] * (width - n) for n in padding]),
            **inputs,
            "answers_from_end": (torch.tensor(prompt.answer_offsets) - len(prompt.question_ids)).repeat(len(rows), 1),
            "question_labels": labels["question_labels_BQ"],
            "final_labels": labels["final_labels_B"],
        }
