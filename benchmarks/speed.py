"""The network on a CPU against a plain use of `transformers`: training, scoring, each optimisation, growth.

    .venv/bin/python -m benchmarks.speed [--rounds 5] [--threads 2]

Writes `benchmarks/speed.json`, and from it `docs/speed-network.md`. What is compared runs in turn (A B A B …) in this
process; a ratio is that of the medians, and what was done before the clock counts is done for all. Two clocks: wall,
and this process's CPU time, which another load on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import copy
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from benchmarks.peers import network as peers
from benchmarks.record import in_turn, machine, write
from benchmarks.workload import (
    TEXT_TOKENS,
    Plain,
    PlainBatches,
    album_sizes,
    network,
    sequence_of,
    task_of,
    text_lengths,
    train_settings,
    write_posts,
)
from model import agentps, language
from model.agentps import AgentPS
from model.backbones import family_of
from model.data import FRAMES, TEXT_IDS, Batches, PostDataset
from model.files import write_whole
from model.schema import TRAIN, VAL
from model.scorer import in_chunks, predict, predict_rows
from model.train import fit
from steps.fine_tune.shapes import MID, OV_05B, OV_7B, Shape, flops
from steps.paths import REPOSITORY

RECORD = REPOSITORY / "benchmarks" / "speed.json"
PAGE = REPOSITORY / "docs" / "speed-network.md"
QUESTIONS = 5
#: Of these questions and the final one, by the tokenizer of `workload.network`.
QUESTION_TOKENS = 51
EPOCHS = 5  # the paper's
LAST_TOKEN = "plain, a head on the last token"
#: Options that change the result: other shapes of the same posts.
OTHERS = {
    "`repeat_frames: false`": replace(MID, repeat_frames=False),
    "`frame_pooling: 4`": replace(MID, frame_pooling=4),
    "both": replace(MID, repeat_frames=False, frame_pooling=4),
}
NEW_IMAGES = "the tower computed (images that are new)"
#: What is done with a batch.
Run = Callable[[dict[str, Tensor]], object]

# --- each optimisation switched off


def every_frame(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with each frame's image, or states, for itself: nothing shared within or between posts."""
    frames = batch["frame_index_BF"]
    name = "tower_states_UPW" if "tower_states_UPW" in batch else "images_UHWC"
    own = {name: batch[name][frames.flatten()], "frame_index_BF": torch.arange(frames.numel()).view(frames.shape)}
    return {**batch, **own}


def whole_last_layer(model: AgentPS, *, logits: bool) -> Any:
    """The last layer at every token; `logits`: and what `lm_head` would make of it, over the vocabulary."""
    head = Plain(model).whole.lm_head

    def states(module: Any, embeds: Tensor, positions: Tensor, *_: object) -> Tensor:
        whole = module(inputs_embeds=embeds, use_cache=False).last_hidden_state
        if logits:
            head(whole)
        return whole[torch.arange(len(whole)).unsqueeze(1), positions]

    return patch.object(agentps, "hidden_states_at", states)


def with_mask() -> Any:
    """The causal mask as a tensor, which padding on the left would need."""

    def mask(*, inputs_embeds: Tensor, **_: Any) -> Tensor:
        tokens = inputs_embeds.shape[1]
        return torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(len(inputs_embeds), 1, -1, -1)

    return patch.object(language, "create_causal_mask", mask)


@torch.no_grad()
def prompt_an_answer(model: AgentPS, batch: dict[str, Tensor]) -> Tensor:
    """(B, A, D): one forward per answer, of the sequence that ends there."""
    positions = batch["answer_positions_BA"]
    states = [
        model.answer_states(
            batch["tower_states_UPW"], batch["frame_index_BF"], batch["input_ids_BT"][:, : int(at.max()) + 1], at
        )
        for at in positions.split(1, dim=1)
    ]
    return torch.cat(states, dim=1)


# --- what is measured


class Bench:
    """Posts of one kind with the product's network and the plain one, of the same weights."""

    def __init__(
        self, root: Path, shape: Shape, albums: np.ndarray, texts: np.ndarray, questions: int = QUESTIONS
    ) -> None:
        task = task_of(questions)
        self._root = root
        # albums of different sizes are padded to the largest of a micro-batch
        self.settings = train_settings(shape, epochs=EPOCHS, micro_batch=8 if shape.repeat_frames else 2)
        self.shards = write_posts(root / "shards", shape, task, albums, texts)
        self.model, prompt = network(shape, task, self.settings, max_tokens=1024)
        #: As a loaded checkpoint is: the adapter in the weights.
        self.scoring = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.scoring.backbone = cast(PeftModel, self.scoring.backbone).merge_and_unload()
        self.plain = Plain(self.model)
        self.batches = Batches(self.shards, prompt, task)
        self.plain_batches = PlainBatches(self.shards, prompt, self.batches, self.model, shape)
        self.images = float(np.mean(albums))
        sequences = self.batches(range(len(self.shards.posts)))["answer_positions_BA"][:, -1] + 1
        self.tokens = float(sequences.double().mean())

    def with_states(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """The tower's states in place of pixels."""
        batch = self.batches(rows)
        return {**batch, "tower_states_UPW": self.model.tower_states(batch.pop("images_UHWC"))}

    def step(self, batch: dict[str, Tensor]) -> float:
        """Forward and backward of the product's network; the loss."""
        self.model.train().zero_grad()
        answers = self.model(**batch)
        loss = answers.loss_sum / answers.weight_sum
        loss.backward()
        return float(loss.detach())

    def plain_step(self, batch: dict[str, Tensor]) -> float:
        self.plain.train().zero_grad()
        loss = self.plain(**batch)["loss"]
        loss.backward()
        return float(loss.detach())

    def last_token_step(self, batch: dict[str, Tensor]) -> float:
        """As `plain_step`, a prompt and one forward per answer."""
        self.plain.train().zero_grad()
        total = 0.0
        for which in range(len(self.plain.heads) + 1):
            loss = self.plain.answer_loss(which, batch)
            loss.backward()
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def answers(self, model: AgentPS, batch: dict[str, Tensor]) -> Tensor:
        """All logits, in one row."""
        answers = model.eval()(**batch)
        return torch.cat([*(question.flatten() for question in answers.questions), answers.final_B])

    @torch.no_grad()
    def plain_answers(self, batch: dict[str, Tensor]) -> Tensor:
        answers = self.plain.eval()(**batch)
        return torch.cat([*(question.flatten() for question in answers["questions"]), answers["final"]])

    @torch.no_grad()
    def last_token_answers(self, batch: dict[str, Tensor]) -> Tensor:
        answers = [self.plain.eval().answer(which, **batch) for which in range(len(self.plain.heads) + 1)]
        return torch.cat([answer.flatten() for answer in answers])

    def difference(self, rows: Sequence[int]) -> dict[str, float]:
        """The largest between the two: of logits, of the loss, of gradients in parts of their tensor's largest."""
        batch, plain_batch = self.with_states(rows), self.plain_batches(rows)
        expected = self.plain_answers(plain_batch)
        logit = max(float((self.answers(m, batch) - expected).abs().max()) for m in (self.model, self.scoring))
        plain_loss, plain_gradients = self.plain_step(plain_batch), self._gradients()
        loss, gradients = self.step(batch), self._gradients()
        last = float((self.last_token_answers(plain_batch) - expected).abs().max())
        last_loss = abs(self.last_token_step(plain_batch) - plain_loss)
        gradient = max(
            float((found[name] - g).abs().max() / g.abs().max().clamp(min=1e-9))
            for found in (gradients, self._gradients())
            for name, g in plain_gradients.items()
        )
        return {"logit": max(logit, last), "loss": max(abs(loss - plain_loss), last_loss), "gradient": gradient}

    def _gradients(self) -> dict[str, Tensor]:
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}

    def fit(self) -> None:
        """A whole training: `model.train.fit` with its checkpoints and the tower's states on disk."""
        with TemporaryDirectory() as work:
            fit(self.model, self.batches, self.settings, Path(work), quiet=True)

    def plain_fit(self) -> None:
        """The same posts, epochs, batches and evaluations; nothing is saved."""
        settings = self.settings
        arguments = TrainingArguments(
            output_dir=str(self._root / "plain"),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch,
            per_device_eval_batch_size=settings.micro_batch,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            seed=settings.seed,
            data_seed=settings.seed,
            eval_strategy="epoch",
            prediction_loss_only=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["question_labels", "final_labels"],
            use_cpu=True,
        )
        train, val = (PostDataset(self.batches.rows(split, labelled=False)) for split in (TRAIN, VAL))
        trainer = Trainer(self.plain, arguments, self.plain_batches, train, val)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def fit_rounds(rounds: int) -> int:
    """Of whole trainings, which are long and need no warm-up."""
    return max(1, rounds // 2)


def whole_runs(bench: Bench, others: dict[str, Bench], rounds: int) -> dict[str, Any]:
    """A training, and the scoring of (at most) 16 posts, against the plain ones.

    Args:
        others: the same posts by OTHERS.
    """
    rows, size = np.arange(min(16, len(bench.shards.posts))), bench.settings.micro_batch
    with torch.no_grad():
        tower = bench.model.tower_states(torch.from_numpy(bench.shards.images(range(bench.shards.n_images))))

    def seen(part: np.ndarray) -> dict[str, Tensor]:
        batch = bench.batches(part)
        del batch["images_UHWC"]
        return {**batch, "tower_states_UPW": tower[np.unique(np.stack(bench.shards.posts[FRAMES][part].to_list()))]}

    def by(other: Bench) -> Callable[[], object]:
        return lambda: predict_rows(other.scoring, other.batches, rows, other.settings.micro_batch)

    def plain(answers: Callable[[dict[str, Tensor]], Tensor]) -> None:
        for batch in in_chunks(rows, size, bench.plain_batches):
            answers(batch)

    return {
        "scoring": in_turn(
            {
                "plain": partial(plain, bench.plain_answers),
                LAST_TOKEN: partial(plain, bench.last_token_answers),
                "new images": lambda: predict(bench.scoring, in_chunks(rows, size, bench.batches)),
                "images seen before": lambda: predict(bench.scoring, in_chunks(rows, size, seen)),
                **{name: by(other) for name, other in others.items()},
            },
            rounds,
        ),
        "training": in_turn(
            {"plain": bench.plain_fit, "product": bench.fit, **{name: other.fit for name, other in others.items()}},
            fit_rounds(rounds),
            warm=False,
        ),
    }


def ablation(bench: Bench, rows: Sequence[int]) -> dict[str, dict[str, Callable[[], object]]]:
    """By what is measured: the arms, each with one thing switched off; all give the same numbers."""
    states, pixels, plain = bench.with_states(rows), bench.batches(rows), bench.plain_batches(rows)

    def off(context: AbstractContextManager[object], run: Run) -> Callable[[], object]:
        def arm() -> object:
            with context:
                return run(states)

        return arm

    def arms(run: Run, model: AgentPS) -> dict[str, Callable[[], object]]:
        return {
            "all on": lambda: run(states),
            NEW_IMAGES: lambda: run(pixels),
            "and of every frame": lambda: run(every_frame(pixels)),
            "the last layer at every token": off(whole_last_layer(model, logits=False), run),
            "and logits over the vocabulary": off(whole_last_layer(model, logits=True), run),
            "a mask, as padding on the left needs": off(with_mask(), run),
        }

    return {
        "training": {
            **arms(bench.step, bench.model),
            "plain": lambda: bench.plain_step(plain),
            LAST_TOKEN: lambda: bench.last_token_step(plain),
        },
        "scoring": {
            **arms(lambda batch: bench.answers(bench.scoring, batch), bench.scoring),
            "the adapter beside the weights": lambda: bench.answers(bench.model, states),
            "a prompt for each answer": lambda: prompt_an_answer(bench.scoring, states),
            "plain": lambda: bench.plain_answers(plain),
            LAST_TOKEN: lambda: bench.last_token_answers(plain),
        },
    }


def growth(shape: Shape, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Milliseconds per post as one thing grows; the others are 5 images, 5 questions, 100 tokens of title and text.

    Args:
        quick: the first and the last value only, in batches of two.
    """
    posts = 2 if quick else 4
    base = {"images": 5, "questions": QUESTIONS, "text tokens": 100}
    grid = {"images": (1, 4, 8, 16), "questions": (0, 5, 10, 20), "text tokens": (8, 64, 128, TEXT_TOKENS[1])}
    rows = []
    for name, values in grid.items():
        for value in values[:: len(values) - 1] if quick else values:
            at = base | {name: value}
            with TemporaryDirectory() as folder:
                images, texts = np.full(posts, at["images"]), np.full(posts, at["text tokens"])
                bench = Bench(Path(folder), shape, images, texts, at["questions"])
                batch, plain = bench.batches(range(posts)), bench.plain_batches(range(posts))
                arms: dict[str, Callable[[], object]] = {
                    "training": partial(bench.step, batch),
                    "training, plain": partial(bench.plain_step, plain),
                    "scoring": partial(bench.answers, bench.scoring, batch),
                    "scoring, plain": partial(bench.plain_answers, plain),
                }
                found = in_turn(arms, rounds, warm=not quick)
            rows.append(
                {"grows": name, "to": value, "ms": {kind: 1000 / posts * pair["wall"] for kind, pair in found.items()}}
            )
    return rows


def by_length(bench: Bench, rounds: int) -> dict[str, Any]:
    """Posts in micro-batches of four, as they come and sorted by length; and by count, what can be saved."""
    count = min(16, len(bench.shards.posts) // 4 * 4)
    lengths = np.array([len(ids) for ids in bench.shards.posts[TEXT_IDS][:count]])
    order = {"as they come": np.arange(count), "sorted by length": np.argsort(lengths, kind="stable")}
    parts = {name: [bench.with_states(rows) for rows in rows.reshape(-1, 4)] for name, rows in order.items()}
    found = in_turn(
        {name: partial(lambda batches: [bench.step(batch) for batch in batches], part) for name, part in parts.items()},
        rounds,
    )
    return {
        "seconds": found,
        "tokens": {shape.name: _padded(shape, size) for shape, size in ((MID, 8), (OV_05B, 4))},
        "padding": {
            repeat: _padding(replace(OV_05B, repeat_frames=repeat == "repeated"), 4) for repeat in ("repeated", "once")
        },
    }


def visual_tokens_of(shape: Shape) -> int:
    ids = dict.fromkeys(("<|endoftext|>", "<image>", "<video>"), 0)
    return family_of(shape.config(ids)).visual_tokens(sequence_of(shape))


def _padded(shape: Shape, micro_batch: int) -> dict[str, float]:
    """Mean tokens of a row, padding included, of steps of 64 posts cut into micro-batches."""
    fixed = visual_tokens_of(shape) + QUESTION_TOKENS
    steps = text_lengths(64 * 500).reshape(500, 64)
    found = {}
    for name, lengths in (("as they come", steps), ("sorted by length", np.sort(steps, axis=1))):
        found[name] = fixed + float(lengths.reshape(500, -1, micro_batch).max(2).mean())
    return found


def _padding(shape: Shape, micro_batch: int) -> float:
    """The share of padding among the tokens of steps of 64 posts, which are sorted by their albums and cut."""
    texts = text_lengths(64 * 500).reshape(500, 64)
    albums = album_sizes(64 * 500, shape.frames).reshape(500, 64)
    order = np.argsort(albums, axis=1, kind="stable")
    shown = np.full_like(albums, shape.frames) if shape.repeat_frames else np.take_along_axis(albums, order, axis=1)
    a_frame = (visual_tokens_of(shape) - 1) // shape.frames
    tokens = shown * a_frame + 1 + QUESTION_TOKENS + np.take_along_axis(texts, order, axis=1)
    rows = tokens.reshape(500, -1, micro_batch)
    return float(1 - rows.mean() / rows.max(2).mean())


def bounds(shape: Shape, images: float, tokens: float, *, merged: bool) -> dict[str, float]:
    """The plain path's FLOPs over those that must be done, at equal FLOP/s.

    Args:
        merged: scoring has the adapter in the weights.
    """
    head = 2 * tokens * shape.vocabulary * shape.language[0]
    found = {}
    for name, training, read in (
        ("training, new images", True, images),
        ("training, the states kept", True, images / EPOCHS),
        ("a training step, the states there", True, 0),
        ("scoring, new images", False, images),
        ("scoring, images seen before", False, 0),
    ):
        plain = flops(shape, shape.frames, tokens, training=training) + head
        needed = replace(shape, lora_rank=0) if merged and not training else shape
        found[name] = plain / flops(needed, read, tokens, training=training, answers=QUESTIONS + 1)
    return found


def ratio(found: dict[str, dict[str, float]], over: str, under: str) -> str:
    return " | ".join(f"{found[over][clock] / found[under][clock]:.2f}x" for clock in ("wall", "cpu"))


_PAGE = """\
# Speed of the network

## Training and scoring

`benchmarks/speed.py` writes `benchmarks/speed.json` and this page. {machine},
{date}, {threads} of {cores} cores. {load:.1f} processes wanted a core on average, this one included, so ratios count
here, not seconds. What is compared ran in turn in one process. Ratios are of medians, by wall time and by the process's
CPU time, which other work disturbs less. Rounds that counted: {rounds}; of whole trainings: {fit_rounds}.

The plain paths are what a user of `transformers` writes: `LlavaOnevisionForConditionalGeneration` with its logits, all
16 frames through the tower, text padded on the left with an attention mask, `Trainer`. Both have the same weights (the
adapter beside them, as PEFT loads it) and get their pixels ready-made.

- **A head on the last token**, as sequence classifiers have it, reads one answer per forward pass: {questions}
  questions and the final one are {prompts} prompts per post.
- **All heads in one forward** on `output_hidden_states` is what somebody writes who knows the paper. `plain` alone
  means this one on the rest of the page.

The backbone has random weights and {parameters:.1f}M parameters, LoRA and heads included. In a training with 16 images,
its tower takes {tower_share:.2f} times the FLOPs of its language model (LLaVA-OneVision 0.5B: {real_share:.2f}).
Posts have {images:.1f} images and {tokens:.0f} tokens on average; none shares an image with another.

The three give the same numbers: the largest difference is {logit:.1e} in a logit, {loss:.1e} in the loss, and in a
gradient {gradient:.1e} of its tensor's largest value. A test checks this at tiny shapes for each line of the tables
below.

| times as fast as | a head on the last token: wall | CPU | all heads in one forward: wall | CPU | at equal FLOP/s |
|---|---|---|---|---|---|
| training step, new images | {step_new_last} | {step_new} | {bound_step_new:.2f}x |
| training step, the tower's states kept | {step_kept_last} | {step_kept} | {bound_step_kept:.2f}x |
| training, {posts} posts, {epochs} epochs, evaluated after each | – | – | {training} | {bound_training:.2f}x |
| scoring, new images | {scoring_new_last} | {scoring_new} | {bound_new:.2f}x |
| scoring, images seen before | {scoring_seen_last} | {scoring_seen} | {bound_seen:.2f}x |

The last column is the FLOPs of all heads in one forward over those that must be done (formula below): the tower once
per image, the last layer at the answers, in scoring no adapter. What exceeds it runs at more FLOP/s, or gains on what
the formula does not count, such as the masked half of the attention. A whole training also measures what the tower
costs, in two passes over at most 128 images, and saves checkpoints. The fewer the posts, the more that weighs.

**The aims**, 3x in training and 5x in scoring, are held against the strongest form of a public peer. There
[neither is met](#public-peers); against the peer's form with one answer per prompt both are. The plain paths say why:
a head on the last token is passed by far, but against all heads in one forward **new images cannot give 5x in
scoring**, nor a training 3x, at these proportions of tower and language model, by leaving out work alone. Of images
that the scorer has seen (it keeps the tower's states of the last ones, 500 MB in memory), the tower's part falls away,
as it does in training from the second epoch on, where a measurement at the start says that keeping them on disk pays.

Each saving is switched off alone, with the others on. Times are for a batch of {batch} posts, relative to `all on`,
where the tower's states are there already:

| training step | wall | CPU |
|---|---|---|
{ablation_training}

| scoring | wall | CPU |
|---|---|---|
{ablation_scoring}

The adapter is merged into the weights when a float32 checkpoint is loaded. A bfloat16 one is not: its rounding would
lose the adapter's part.

### Options that change the result

`preprocess.repeat_frames: false` reads each image of a short album once, where the paper repeats the album to 16
frames. Within an optimizer step posts are then sorted by the size of their album, so that micro-batches (of 2 here)
have little padding. `preprocess.frame_pooling: 4` pools a frame's tokens 2x2 once more, to a quarter of them. Against
all heads in one forward on repeated frames of {tokens:.0f} tokens per post:

| times as fast | tokens per post | training, {epochs} epochs: wall | CPU | scoring, new images: wall | CPU |
|---|---|---|---|---|---|
{options}

The network then gives other answers and must be trained with the option. What that costs in recall is in the study:
[each image once](study.md#each-image-once), [fewer tokens per frame](study.md#fewer-tokens-per-frame).
A **cascade**, in which `siglip` ranks all posts and the language model reads the highest only, is in the
[results](results.md#a-cascade).

### Public peers

`make bench-peers` (`benchmarks/peers/`) installs [ms-swift](https://github.com/modelscope/ms-swift) 4.6.0 in an
environment of its own and measures it beside AgentPS, on its form for classification (`--task_type seq_cls`). Both
sides train and score the same posts from the same backbone directory: the shapes of this page, but 152,000 rows in the
embedding, as ms-swift needs the token ids of Qwen2; LoRA of rank 32 on the language model; float32; 4 posts per
optimizer step and per batch of scoring; JPEG files of 96 pixels. Each form runs in a process of its own, in turn, on
one thread. Training is the second of two epochs, the making of its batches included; scoring goes from image files to
answers. Loading, evaluation and saving are not counted.

<!-- peers -->
{peers}
<!-- /peers -->

- **Multi-label, album template** is the strongest form: one forward gives all six answers, by one linear layer on the
  last token. The template is ours (`benchmarks/peers/swift_plugin.py`, for `--external_plugins`): it reads the album as
  16 repeated video frames, so that ms-swift gets the tokens of AgentPS, but for the five `<ans>`, and the same pixels.
  It gives less: a question has no classes but yes and no, and a missing label counts as "no", where AgentPS leaves it
  out.
- **Multi-label, shipped template** reads each image once, but as a single picture and not as a video frame. That is
  about 300 tokens per image here in place of 36, and at the published sizes 1,485 in place of 196 for a picture of 384
  pixels. It fails on a batch that mixes albums of one image with longer ones, so it runs in micro-batches of one post.
- **One answer per prompt** takes 6 prompts per post. It is the only form in which a question may have classes other
  than yes and no.

ms-swift makes no logits over the vocabulary; probably that is why it is faster than the plain paths above. Its gradient
checkpointing, on by default, was switched off. Its adapter was left out of scoring, as if it were merged. The shapes
are small: at the published sizes the language model weighs more ([below](#on-the-real-backbones)).

Not measured: [Qwen-VL-Series-Finetune](https://github.com/2U1/Qwen-VL-Series-Finetune) (`scripts/finetune_cls.sh`,
commit 93fef86). It has classes for Qwen2-VL and Qwen2.5-VL only, whose images have other numbers of tokens, and pins
CUDA builds of torch 2.8 and torchvision under DeepSpeed.

### How cost grows

Milliseconds of wall time per post, all images new, in batches of at most four. What does not grow stays at 5 images, 5
questions, 100 tokens of title and text:

| | training | plain | scoring | plain |
|---|---|---|---|---|
{growth}

### Tried, and left out

Figures that the script does not measure are of one measurement on a machine that had other work.

- **Micro-batches by length.** Frames are fixed, so only text varies. Sorted within an optimizer step of 64 posts, in
  micro-batches of 4, a row of the 0.5B backbone has {real_sorted:.0f} tokens in place of {real_plain:.0f}:
  {real_saved:.1f} % less. The mid model's frames are shorter: {mid_saved:.1f} % less in micro-batches of 8; a step in
  micro-batches of 4 is {length}x as fast. On the real backbones the gain stays below 3 %, so it is not built.
- **Packing** puts posts in one row one after another without padding, and can save what is padding. That is, of the
  0.5B backbone's tokens in micro-batches of 4, {padding_repeated:.1f} % with repeated frames and {padding_once:.1f} %
  with each image once and posts sorted by album. On a CPU its block-diagonal attention would need a mask, which costs
  more (above), or a loop over posts. Not built.
- **Sharded weights (FSDP).** With LoRA a training fits one card, by arithmetic: 7B takes 15 GB frozen in bfloat16 and 5
  GB of adapter, its gradient and AdamW's moments; `backbone.quantization: nf4` takes 10 GB less ([its
  cost](study.md#weights-in-four-bits)). So several GPUs each hold the model and share the posts (torchrun, DDP). Only a
  7B trained in full, which the paper does not do, would need shards. Not built.
- **The tower in 8 bits.** Its states are computed once and kept, so a training hardly notices. What scoring new images
  would gain depends on a GPU's 8-bit units and could not be measured. Not built.
- **A shared prefix for several tasks.** Branches of one sequence need one trunk. But each task trains its own adapter,
  or its own language model, so the states of a post differ between tasks from the first layer on: it does not apply.
- **Three bfloat16 products for a float32 one** (AMX, for the frozen tower; relative error 5e-6): 2 to 5 times slower
  than float32, because splitting and joining the operands costs more than the product.
- **LoRA as one product with a backward of its own**, float32: 17 % less CPU time per training step. Not built, because
  it is inexact in bfloat16, in which the profiles with LoRA train.
- **`F.rms_norm` in place of the layers' own; the tower in chunks; smaller micro-batches**: no gain on this CPU.

### On the real backbones

The most that leaving out work can give, at equal FLOP/s, for posts of 5 images and {real_tokens:.0f} tokens:

| | {bound_names} |
|---|---|---|---|---|---|
{real_bounds}

The language model of the 7B backbone is most of its work, and all of that must be done.

## On a GPU

{gpu}

FLOPs of one post, two per multiply-add. W, M, N: the tower's width, MLP and layers, S its patch's side, P its patches;
D, F, L: the language model's, K the width of its keys; T tokens, r the adapter's rank.

- tower, forward only, per image: P · (N · (2 · (4 W² + 2 W M) + 4 P W) + 6 S² W), and P · 2 · (W D + D²) for the
  projector (LLaVA-OneVision; of the other kinds see `steps/fine_tune/shapes.py`);
- a layer's weights, w = 2 D² + 2 D K + 3 D F: 2 w per token, in training 4 w (frozen weights have no gradient);
- its adapter, a = r · (4 D + 2 (D + K) + 3 (D + F)): 2 a, in training 6 a;
- its attention, causal: 2 T D per token, in training 6 T D.

At 16 images and 3,393 tokens that is 18.1 TFLOP per trained post for 0.5B and 112.7 for 7B. The share of peak counts
what must be done: the tower of each distinct image, the last layer at the answers. Peaks are dense bfloat16: A100 312,
H100 989 (PCIe 756), H200 989 TFLOP/s; other cards have no peak here.
"""


def page(record: dict[str, Any]) -> str:
    """docs/speed-network.md."""
    runs, step = record["runs"], record["ablation"]["training"]
    bound = bounds(MID, record["images"], record["tokens"], merged=True)

    def table(kind: str) -> str:
        found = record["ablation"][kind]
        return "\n".join(f"| {name} | {ratio(found, name, 'all on')} |" for name in found)

    tower_share = {
        shape.name: flops(shape, 16, 0, training=True) / flops(shape, 0, tokens, training=True)
        for shape, tokens in ((MID, record["tokens"]), (OV_05B, 3393))
    }
    mid, real = (record["by_length"]["tokens"][shape.name] for shape in (MID, OV_05B))
    mid_saved, real_saved = (100 * (1 - rows["sorted by length"] / rows["as they come"]) for rows in (mid, real))
    as_they_come, by_size = (record["by_length"]["seconds"][name] for name in ("as they come", "sorted by length"))
    real_tokens = visual_tokens_of(OV_05B) + QUESTION_TOKENS + float(np.mean(TEXT_TOKENS))
    real_bounds = {shape.name: bounds(shape, 5, real_tokens, merged=False) for shape in (OV_05B, OV_7B)}
    plain_keys = "machine date threads load cores rounds posts images tokens batch"
    return _PAGE.format(
        gpu=PAGE.read_text(encoding="utf-8").partition("## On a GPU\n")[2].partition("FLOPs of one post")[0].strip(),
        **{key: record[key] for key in plain_keys.split()},
        **record["difference"],
        epochs=EPOCHS,
        fit_rounds=fit_rounds(record["rounds"]),
        parameters=record["parameters"] / 1e6,
        tower_share=tower_share[MID.name],
        real_share=tower_share[OV_05B.name],
        training=ratio(runs["training"], "plain", "product"),
        questions=QUESTIONS,
        prompts=QUESTIONS + 1,
        options="\n".join(
            f"| {name} | {tokens:.0f} | {ratio(runs['training'], 'plain', name)}"
            f" | {ratio(runs['scoring'], 'plain', name)} |"
            for name, tokens in record["tokens_of_others"].items()
        ),
        step_new=ratio(step, "plain", NEW_IMAGES),
        step_kept=ratio(step, "plain", "all on"),
        step_new_last=ratio(step, LAST_TOKEN, NEW_IMAGES),
        step_kept_last=ratio(step, LAST_TOKEN, "all on"),
        scoring_new=ratio(runs["scoring"], "plain", "new images"),
        scoring_seen=ratio(runs["scoring"], "plain", "images seen before"),
        scoring_new_last=ratio(runs["scoring"], LAST_TOKEN, "new images"),
        scoring_seen_last=ratio(runs["scoring"], LAST_TOKEN, "images seen before"),
        bound_step_new=bound["training, new images"],
        bound_step_kept=bound["a training step, the states there"],
        bound_training=bound["training, the states kept"],
        bound_new=bound["scoring, new images"],
        bound_seen=bound["scoring, images seen before"],
        ablation_training=table("training"),
        ablation_scoring=table("scoring"),
        growth="\n".join(
            f"| {row['to']} {row['grows']} | " + " | ".join(f"{ms:.0f}" for ms in row["ms"].values()) + " |"
            for row in record["growth"]
        ),
        peers=peers.table(),
        real_tokens=real_tokens,
        bound_names=" | ".join(bound),
        real_bounds="\n".join(
            f"| {name} | " + " | ".join(f"{times:.2f}x" for times in values.values()) + " |"
            for name, values in real_bounds.items()
        ),
        real_sorted=real["sorted by length"],
        real_plain=real["as they come"],
        real_saved=real_saved,
        **{f"padding_{name}": 100 * share for name, share in record["by_length"]["padding"].items()},
        mid_saved=mid_saved,
        length=f"{as_they_come['cpu'] / by_size['cpu']:.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--posts", type=int, default=40, help="of which four fifths are trained on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="batches of two posts, growth by two values")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers by an old name
    torch.set_num_threads(options.threads)
    here = machine("torch")
    with TemporaryDirectory() as folder:
        albums, texts = album_sizes(options.posts, MID.frames), text_lengths(options.posts)
        bench = Bench(Path(folder) / "repeated", MID, albums, texts)
        others = {
            name: Bench(Path(folder) / str(number), shape, albums, texts)
            for number, (name, shape) in enumerate(OTHERS.items())
        }
        rows = range(2 if options.quick else 8)
        record: dict[str, Any] = {
            "machine": "{processor}, torch {torch}".format_map(here),
            "date": here["date"],
            "threads": options.threads,
            "cores": here["cores"],
            "rounds": options.rounds,
            "posts": options.posts,
            "batch": len(rows),
            "images": bench.images,
            "tokens": bench.tokens,
            "tokens_of_others": {name: other.tokens for name, other in others.items()},
            "parameters": sum(p.numel() for p in bench.model.parameters()),
            "difference": bench.difference(rows),
            "ablation": {kind: in_turn(arms, options.rounds) for kind, arms in ablation(bench, rows).items()},
            "by_length": by_length(bench, options.rounds),
            "runs": whole_runs(bench, others, options.rounds),
            "growth": growth(MID, max(1, options.rounds // 2), options.quick),
            "load": os.getloadavg()[2],
        }
    write(RECORD, record)
    write_whole(PAGE, page(record))


if __name__ == "__main__":
    main()
