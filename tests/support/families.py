"""Every kind of backbone, tiny and random, in the hub's files; and a plain use of it with transformers' own classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
#: Of a language model; the tests' frames have 32 pixels.
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
_QWEN_TOWER = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
}


@dataclass(frozen=True)
class Real:
    """One family as transformers has it.

    Attributes:
        special: tokens that its tokenizer has, the placeholder of a frame first.
        frame: the tokens of one frame, by their names.
        newline: placeholders behind the last frame.
        config: of a vocabulary's size and the placeholder's id.
        pixels: of images (F, S, S, 3) uint8, the arguments of the plain class for one post.
        preprocessor: what its file says of the pixels' scale.
    """

    special: tuple[str, ...]
    frame: tuple[str, ...]
    config: Callable[[int, int], PreTrainedConfig]
    whole_class: type[PreTrainedModel]
    pixels: Callable[[np.ndarray], dict[str, Tensor]]
    preprocessor: dict[str, Any]
    newline: int = 0


def _llava_config(vocabulary: int, placeholder: int) -> PreTrainedConfig:
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
        "vision_use_head": False,
    }
    return LlavaOnevisionConfig(
        vision_config=tower,
        text_config={"model_type": "qwen2", "vocab_size": vocabulary, **TEXT},
        video_token_index=placeholder,
        vision_feature_layer=-1,
    )


def _qwen25_config(vocabulary: int, placeholder: int) -> PreTrainedConfig:
    return Qwen2_5_VLConfig(
        vision_config={**_QWEN_TOWER, "window_size": 16, "fullatt_block_indexes": [1, 3]},
        text_config={"vocab_size": vocabulary, **TEXT, "rope_parameters": _MROPE},
        image_token_id=placeholder,
    )


def _qwen3_config(vocabulary: int, placeholder: int) -> PreTrainedConfig:
    return Qwen3VLConfig(
        vision_config={**_QWEN_TOWER, "num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2]},
        text_config={
            "vocab_size": vocabulary,
            **TEXT,
            "head_dim": 16,  # not the width by the heads, as in the 2B and the 8B
            "rope_parameters": _MROPE | {"mrope_section": [4, 2, 2], "mrope_interleaved": True},
        },
        image_token_id=placeholder,
        tie_word_embeddings=True,
    )


def _smolvlm_config(vocabulary: int, placeholder: int) -> PreTrainedConfig:
    tower = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
    }
    return SmolVLMConfig(
        vision_config=tower,
        text_config={"model_type": "llama", "vocab_size": vocabulary, **TEXT},
        image_token_id=placeholder,
        scale_factor=2,
    )


def _llava_pixels(images: np.ndarray) -> dict[str, Tensor]:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)[None].float() / 255
    return {"pixel_values_videos": (pixels - 0.5) / 0.5}


def _qwen_pixels(scale: dict[str, list[float]]) -> Callable[[np.ndarray], dict[str, Tensor]]:
    def pixels(images: np.ndarray) -> dict[str, Tensor]:
        processor = Qwen2VLImageProcessorPil(do_resize=False, patch_size=4, merge_size=2, **scale)
        return dict(processor(list(images), return_tensors="pt"))

    return pixels


def _smolvlm_pixels(images: np.ndarray) -> dict[str, Tensor]:
    processor = SmolVLMImageProcessorPil(
        do_resize=False, do_image_splitting=False, max_image_size={"longest_edge": 32}, **HALF
    )
    return dict(processor([list(images)], return_tensors="pt"))


_QWEN = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>")
REAL = {
    "llava_onevision": Real(
        special=("<video>", "<image>", "<|endoftext|>"),
        frame=("<video>",) * 16,
        newline=1,
        config=_llava_config,
        whole_class=LlavaOnevisionForConditionalGeneration,
        pixels=_llava_pixels,
        preprocessor=HALF,
    ),
    "qwen2_5_vl": Real(
        special=_QWEN,
        frame=("<|vision_start|>", *("<|image_pad|>",) * 16, "<|vision_end|>"),
        config=_qwen25_config,
        whole_class=Qwen2_5_VLForConditionalGeneration,
        pixels=_qwen_pixels(CLIP),
        preprocessor=CLIP,
    ),
    "qwen3_vl": Real(
        special=_QWEN,
        frame=("<|vision_start|>", *("<|image_pad|>",) * 16, "<|vision_end|>"),
        config=_qwen3_config,
        whole_class=Qwen3VLForConditionalGeneration,
        pixels=_qwen_pixels(HALF),
        preprocessor=HALF,
    ),
    "smolvlm": Real(
        special=("<image>", "<fake_token_around_image>", "<global-img>", "<|im_end|>"),
        frame=(
            "<fake_token_around_image>",
            "<global-img>",
            *("<image>",) * 16,
            "<fake_token_around_image>",
        ),
        config=_smolvlm_config,
        whole_class=SmolVLMForConditionalGeneration,
        pixels=_smolvlm_pixels,
        preprocessor=HALF,
    ),
}


def tokenizer_of(special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without `<ans>`; the last special token pads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(special[::-1]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a walk along the sea with friends, is it good?"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[-1], additional_special_tokens=list(special[:-1])
    )


def write(family: str, folder: Path, *, seed: int = 0) -> Path:
    """A random backbone of the family as the hub has it: with its language-model head and its preprocessor's file."""
    real = REAL[family]
    tokenizer = tokenizer_of(real.special)
    config = real.config(len(tokenizer), tokenizer.get_vocab()[real.special[0]])
    torch.manual_seed(seed)
    model = real.whole_class(config)
    with torch.no_grad():
        for parameter in model.parameters():  # each part of the network is to matter: also norms and biases, which
            random = 0.2 * torch.randn_like(parameter)  # begin at ones and zeros
            parameter.copy_(parameter + random if parameter.ndim == 1 else random)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(real.preprocessor), encoding="utf-8")
    return folder


def plain_arguments(family: str, tokenizer: Any, images: np.ndarray, text_ids: list[int]) -> dict[str, Tensor]:
    """The arguments of the family's plain class for one post."""
    real, vocabulary = REAL[family], tokenizer.get_vocab()
    visual = list(real.frame) * len(images) + [real.special[0]] * real.newline
    ids = torch.tensor([[*(vocabulary[name] for name in visual), *text_ids]])
    arguments = {"input_ids": ids, **real.pixels(images)}
    if "image_grid_thw" in arguments:
        arguments["mm_token_type_ids"] = (ids == vocabulary[real.special[0]]).int()
    return arguments
