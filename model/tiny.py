"""The tiny backbone: a LLaVA-OneVision of under a million parameters, for a laptop and for tests.

The same classes as the real one, built from `LlavaOnevisionConfig`; a byte-level tokenizer with the
Qwen2 split; and a tower that is first taught, as SigLIP is, what single images show. Everything
follows from the seed, and it is kept on disk as a directory in the hub's format.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionModel, Qwen2Config, Qwen2Tokenizer, SiglipVisionConfig

from .backbones.llava_onevision import LlavaOnevision
from .files import disk_told, to_disk
from .text import ANS_TOKEN

logger = logging.getLogger(__name__)

#: The split of the Qwen2 tokenizer (transformers, models/qwen2/tokenization_qwen2.py).
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PAD, IMAGE, _VIDEO = "<|endoftext|>", "<image>", "<video>"

#: Tokens of the vocabulary, at most.
VOCABULARY = 1024


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer: any text can be written in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [_PAD, IMAGE, _VIDEO, ANS_TOKEN]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Qwen2Tokenizer(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=_PAD,
        unk_token=_PAD,
        additional_special_tokens=special[1:],
        padding_side="left",
    )


def tiny_config(tokenizer: Qwen2Tokenizer, image_size: int) -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=image_size,
            patch_size=8,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            # The default of 0.02 suits widths of a thousand: here queries and keys would start so close to
            # zero that what a text says is not compared with what the pictures show for many epochs.
            initializer_range=0.1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        ),
        image_token_index=tokenizer.get_vocab()[IMAGE],
        video_token_index=tokenizer.get_vocab()[_VIDEO],
        vision_feature_layer=-1,
    )


def pretrain_tower(
    model: LlavaOnevisionModel, images: np.ndarray, attributes: np.ndarray, *, epochs: int, seed: int, batch: int = 128
) -> float:
    """Teach the tower what single images show; returns the mean accuracy over the last epoch.

    Args:
        images: uint8 (N, H, W, 3).
        attributes: int64 (N, A), each column the class of one attribute.

    The linear read-outs are thrown away. They read the hidden states that the projector will read
    (before the post-layernorm), averaged over the patches.
    """
    generator = torch.Generator().manual_seed(seed)
    family = LlavaOnevision(model.config)
    pixels = family.normalize(torch.from_numpy(images))
    targets = torch.from_numpy(attributes)
    width = family.vision.hidden_size
    readouts = nn.ModuleList(nn.Linear(width, int(n) + 1) for n in attributes.max(0))
    parameters = [*model.vision_tower.parameters(), *readouts.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    steps = epochs * (len(pixels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    correct = seen = 0
    model.vision_tower.train()
    for _ in range(epochs):
        correct = seen = 0
        for rows in torch.randperm(len(pixels), generator=generator).split(batch):
            if len(rows) < batch:
                continue
            states = model.vision_tower(pixels[rows], output_hidden_states=True).hidden_states
            features = states[model.config.vision_feature_layer].mean(1)
            logits = [readout(features) for readout in readouts]
            loss = sum(F.cross_entropy(values, targets[rows, k]) for k, values in enumerate(logits))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]  # a sum of tensors, never the int 0
            optimizer.step()
            schedule.step()
            correct += sum(int((values.argmax(1) == targets[rows, k]).sum()) for k, values in enumerate(logits))
            seen += targets[rows].numel()
    model.vision_tower.eval()
    return correct / max(seen, 1)


def build_tiny(
    directory: Path,
    texts: Sequence[str],
    images: np.ndarray,
    attributes: np.ndarray,
    *,
    vocab_size: int = VOCABULARY,
    epochs: int = 6,
    seed: int = 0,
) -> Path:
    """Build the tiny backbone into `directory`, whole or not at all; returns the directory."""
    if directory.exists():
        return directory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(texts, vocab_size)
        model = LlavaOnevisionModel(tiny_config(tokenizer, images.shape[1]))
        accuracy = pretrain_tower(model, images, attributes, epochs=epochs, seed=seed)
    logger.info("Tiny tower pretrained on %d single images: accuracy %.3f in its last epoch", len(images), accuracy)
    part = directory.with_name(f"{directory.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with disk_told(directory):
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            to_disk(part)
        part.rename(directory)
    except OSError:  # another process was first: the same seed gives the same backbone
        if not directory.exists():
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return directory
