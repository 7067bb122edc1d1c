"""Makes the backbone for a user's own posts: a tokenizer of their words, and the network of `backbones.agentps_own`.

Nothing is pretrained. The network's first weights follow from the seed, the tokenizer from the task and the texts of
the training posts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2Tokenizer

from .backbones.agentps_own import OwnConfig, OwnModel, OwnVisionConfig
from .files import replacing
from .task import Task
from .tiny import IMAGE, build_tokenizer

#: Tokens of the vocabulary, at most.
VOCABULARY = 4096
#: How often a wording of the task stands among the texts: so often that each of its words becomes one token.
_WORDINGS = 1_000


def wordings(task: Task) -> list[str]:
    """What the model reads of a task."""
    return [*(question.ask for question in task.questions), task.final.ask]


def own_parts(texts: Iterable[str], task: Task, image_size: int) -> tuple[OwnConfig, Qwen2Tokenizer]:
    """The network's sizes, and the tokenizer of these texts and of the task's wordings."""
    tokenizer = build_tokenizer([*_WORDINGS * wordings(task), *texts], VOCABULARY)
    config = OwnConfig(
        vision_config=OwnVisionConfig(image_size=image_size, all_maxima=True, lessons=1.5),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            initializer_range=0.1,  # as in `model.tiny`
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        ),
        image_token_id=tokenizer.get_vocab()[IMAGE],
    )
    return config, tokenizer


def build_own(directory: Path, texts: Iterable[str], task: Task, image_size: int, *, seed: int = 0) -> Path:
    """Build the backbone into `directory`, whole or not at all; returns the directory.

    Args:
        texts: of the training posts, and of no others.
    """
    config, tokenizer = own_parts(texts, task, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OwnModel(config)
    with replacing(directory) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return directory
