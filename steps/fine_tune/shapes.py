"""The shapes of the published backbones: their configs with random weights, a plain use of them, and their FLOPs.

The numbers are those of each `config.json`; where it leaves one out, the default of its class in `transformers`:

    llava-hf/llava-onevision-qwen2-0.5b-ov-hf, -7b-ov-hf    at the revisions that the profiles pin
    Qwen/Qwen2.5-VL-3B-Instruct                             66285546d2b821cf421d4f5eb2576359d3770cd3
    Qwen/Qwen3-VL-4B-Instruct                               ebb281ec70b05090aa6165b016eac8ec08e71b17
    HuggingFaceTB/SmolVLM2-256M-Video-Instruct              067788b187b95ebe7b2e040b3e4299e342e5b8fd

Dimensions: B posts · F frames · S side of a frame, in pixels · T tokens
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)


@dataclass(frozen=True)
class Shape:
    """A backbone's sizes, and the adapter and heads on it."""

    name: str
    tower: tuple[int, int, int, int]  # width, MLP, layers, heads
    image_size: int
    patch_size: int
    language: tuple[int, int, int, int, int]  # width, MLP, layers, heads, key-value heads
    vocabulary: int
    tied: bool
    lora_rank: int
    head_hidden: int
    frames: int = 16
    repeat_frames: bool = True
    frame_pooling: Literal[2, 4] = 2
    family: str = "llava_onevision"
    #: Posts a forward pass.
    micro_batch: int = 4
    #: Of the language model; None: its width by its heads.
    head_dim: int | None = None
    #: Its id at the hub.
    hub: str = ""
    #: What only this family's config has.
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def special(self) -> tuple[str, ...]:
        """The tokenizer's tokens that `config` asks for."""
        return KINDS[self.family].special

    @property
    def queries(self) -> int:
        """Width of all heads together."""
        width, _, _, heads, _ = self.language
        return heads * (self.head_dim or width // heads)

    def config(self, tokens: dict[str, int]) -> PreTrainedConfig:
        """
        Args:
            tokens: the tokenizer's vocabulary, for the placeholders' ids.
        """
        return KINDS[self.family].config(self, tokens)

    def text(self, tokens: dict[str, int]) -> dict[str, Any]:
        """The arguments that all language models' configs have."""
        width, mlp, layers, heads, kv_heads = self.language
        return {
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "pad_token_id": tokens["<|endoftext|>"],
            "eos_token_id": tokens["<|endoftext|>"],
            "bos_token_id": None,
        }


@dataclass(frozen=True)
class Kind:
    """A family as a plain user of `transformers` has it.

    Attributes:
        special: the placeholder of a visual token, and the tokens around a frame.
        plain: (B, F, 3, S, S) pixels to arguments of `whole_class`.
        patch_flops: of the tower and what follows it, for one patch.
    """

    config: Callable[[Shape, dict[str, int]], PreTrainedConfig]
    whole_class: type[PreTrainedModel]
    special: tuple[str, ...]
    plain: Callable[[Shape, Tensor], dict[str, Tensor]]
    patch_flops: Callable[[Shape], float]


# --- LLaVA-OneVision


def _llava_config(shape: Shape, tokens: dict[str, int]) -> PreTrainedConfig:
    width, mlp, layers, heads = shape.tower
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(**shape.text(tokens)),
        image_token_index=tokens["<image>"],
        video_token_index=tokens["<video>"],
        vision_feature_layer=-1,
        tie_word_embeddings=shape.tied,
    )


def _block(width: int, mlp: int, seen: int, *, gated: bool = False) -> float:
    """A patch's in a block of the tower that attends to `seen` patches."""
    return 2 * (4 * width**2 + (3 if gated else 2) * width * mlp) + 4 * seen * width


def patches(shape: Shape) -> int:
    return (shape.image_size // shape.patch_size) ** 2


def _llava_patch(shape: Shape) -> float:
    (width, mlp, layers, _), d = shape.tower, shape.language[0]
    block = _block(width, mlp, patches(shape))
    return 2 * 3 * shape.patch_size**2 * width + layers * block + 2 * (width * d + d * d)  # with embedding, projector


# --- SmolVLM2


def _smolvlm_config(shape: Shape, tokens: dict[str, int]) -> PreTrainedConfig:
    width, mlp, layers, heads = shape.tower
    return SmolVLMConfig(
        vision_config={
            "hidden_size": width,
            "intermediate_size": mlp,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
        },
        text_config={"model_type": "llama", "rope_theta": 100_000.0, **shape.text(tokens)},
        image_token_id=tokens["<image>"],
        tie_word_embeddings=shape.tied,
        **shape.more,
    )


def _smolvlm_patch(shape: Shape) -> float:
    (width, mlp, layers, _), d = shape.tower, shape.language[0]
    return 2 * 3 * shape.patch_size**2 * width + layers * _block(width, mlp, patches(shape)) + 2 * width * d


# --- Qwen2.5-VL and Qwen3-VL

_QWEN = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>")


def _qwen(shape: Shape, tokens: dict[str, int], rope: dict[str, Any], **tower: Any) -> dict[str, Any]:
    width, mlp, layers, heads = shape.tower
    sizes = {"hidden_size": width, "intermediate_size": mlp, "depth": layers, "num_heads": heads}
    return {
        "vision_config": {
            **sizes,
            "patch_size": shape.patch_size,
            "out_hidden_size": shape.language[0],
            **tower,
            **shape.more,
        },
        "text_config": {**shape.text(tokens), "rope_parameters": {"rope_type": "default", **rope}},
        "image_token_id": tokens["<|image_pad|>"],
        "tie_word_embeddings": shape.tied,
    }


def _mrope(shape: Shape, parts: tuple[int, int, int]) -> list[int]:
    """The published sections, scaled to a smaller head."""
    half = shape.queries // shape.language[3] // 2
    low = [part * half // sum(parts) for part in parts[1:]]
    return [half - sum(low), *low]


def _qwen25_config(shape: Shape, tokens: dict[str, int]) -> PreTrainedConfig:
    rope = {"rope_theta": 1_000_000.0, "mrope_section": _mrope(shape, (16, 24, 24))}
    return Qwen2_5_VLConfig(**_qwen(shape, tokens, rope))


def _qwen3_config(shape: Shape, tokens: dict[str, int]) -> PreTrainedConfig:
    rope = {"rope_theta": 5_000_000.0, "mrope_section": _mrope(shape, (24, 20, 20)), "mrope_interleaved": True}
    arguments = _qwen(shape, tokens, rope)
    arguments["text_config"]["head_dim"] = shape.queries // shape.language[3]
    return Qwen3VLConfig(**arguments)


def _merger(shape: Shape) -> float:
    """A patch's part of what makes one token of four patches."""
    width, d = shape.tower[0], shape.language[0]
    return 2 * (4 * width * 4 * width + 4 * width * d) / 4


def _qwen25_patch(shape: Shape) -> float:
    width, mlp, layers, _ = shape.tower
    whole = len(shape.more["fullatt_block_indexes"])
    window = (shape.more["window_size"] // shape.patch_size) ** 2
    blocks = whole * _block(width, mlp, patches(shape), gated=True)
    blocks += (layers - whole) * _block(width, mlp, window, gated=True)
    return 2 * 2 * 3 * shape.patch_size**2 * width + blocks + _merger(shape)


def _qwen3_patch(shape: Shape) -> float:
    width, mlp, layers, _ = shape.tower
    mergers = 1 + len(shape.more["deepstack_visual_indexes"])
    blocks = layers * _block(width, mlp, patches(shape))
    return 2 * 2 * 3 * shape.patch_size**2 * width + blocks + mergers * _merger(shape)


def _qwen_plain(shape: Shape, pixels_BFCHW: Tensor) -> dict[str, Tensor]:
    """As `Qwen2VLImageProcessor`: patches in the order of their merging, each twice for the two moments of one."""
    p, grid = shape.patch_size, shape.image_size // shape.patch_size
    images = pixels_BFCHW.flatten(0, 1)
    cut = images.view(len(images), 3, grid // 2, 2, p, grid // 2, 2, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
    twice = cut.unsqueeze(6).expand(*cut.shape[:6], 2, p, p)
    return {
        "pixel_values": twice.reshape(len(images) * grid**2, -1),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * len(images)),
    }


KINDS = {
    "llava_onevision": Kind(
        _llava_config,
        LlavaOnevisionForConditionalGeneration,
        ("<video>", "<image>"),
        lambda _, pixels: {"pixel_values_videos": pixels},
        _llava_patch,
    ),
    "smolvlm": Kind(
        _smolvlm_config,
        SmolVLMForConditionalGeneration,
        ("<image>", "<fake_token_around_image>", "<global-img>"),
        lambda _, pixels: {"pixel_values": pixels},
        _smolvlm_patch,
    ),
    "qwen2_5_vl": Kind(_qwen25_config, Qwen2_5_VLForConditionalGeneration, _QWEN, _qwen_plain, _qwen25_patch),
    "qwen3_vl": Kind(_qwen3_config, Qwen3VLForConditionalGeneration, _QWEN, _qwen_plain, _qwen3_patch),
}

_SIGLIP = (1152, 4304, 26, 16)
OV_05B = Shape(
    "llava-ov-0.5b",
    _SIGLIP,
    384,
    14,
    (896, 4864, 24, 14, 2),
    152_000,
    True,
    128,
    512,
    hub="llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
)
OV_7B = Shape(
    "llava-ov-7b",
    _SIGLIP,
    384,
    14,
    (3584, 18944, 28, 28, 4),
    152_128,
    False,
    128,
    1024,
    micro_batch=2,
    hub="llava-hf/llava-onevision-qwen2-7b-ov-hf",
)
SMOLVLM2_256M = Shape(
    "smolvlm2-256m",
    (768, 3072, 12, 12),
    512,
    16,
    (576, 1536, 30, 9, 3),
    49_280,
    False,
    64,
    512,
    family="smolvlm",
    hub="HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
    micro_batch=8,
    more={"scale_factor": 4},
)
QWEN25_3B = Shape(
    "qwen2.5-vl-3b",
    (1280, 3420, 32, 16),
    336,
    14,
    (2048, 11008, 36, 16, 2),
    151_936,
    True,
    128,
    1024,
    family="qwen2_5_vl",
    hub="Qwen/Qwen2.5-VL-3B-Instruct",
    micro_batch=2,
    more={"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
)
QWEN3_4B = Shape(
    "qwen3-vl-4b",
    (1024, 4096, 24, 16),
    384,
    16,
    (2560, 9728, 36, 32, 8),
    151_936,
    True,
    128,
    1024,
    family="qwen3_vl",
    hub="Qwen/Qwen3-VL-4B-Instruct",
    micro_batch=2,
    head_dim=128,
    more={"num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]},
)
PUBLISHED = {shape.name: shape for shape in (OV_05B, OV_7B, SMOLVLM2_256M, QWEN25_3B, QWEN3_4B)}
#: For a CPU: the tower takes about as much more than the language model as in the 0.5B backbone (see `flops`).
MID = Shape("mid", (256, 1024, 8, 4), 96, 8, (256, 1024, 6, 8, 2), 8192, True, 32, 128)
TINY = Shape("tiny", (32, 64, 2, 2), 32, 8, (32, 64, 3, 4, 2), 1024, True, 4, 16, frames=4)


def tiny(shape: Shape) -> Shape:
    """The same kind of backbone, for a CPU."""
    sizes: dict[str, tuple[int, dict[str, Any]]] = {
        "llava_onevision": (8, {}),
        "smolvlm": (8, {"scale_factor": 2}),
        "qwen2_5_vl": (4, {"window_size": 16, "fullatt_block_indexes": [1]}),
        "qwen3_vl": (4, {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}),
    }
    patch, more = sizes[shape.family]
    return Shape(
        f"tiny {shape.name}",
        (32, 64, 2, 2),
        32,
        patch,
        (32, 64, 3, 4, 2),
        1024,
        True,
        4,
        16,
        frames=4,
        family=shape.family,
        more=more,
    )


def flops(shape: Shape, images: float, tokens: float, *, training: bool, answers: int | None = None) -> float:
    """The multiplications and additions of one post (two a multiply-add), by docs/speed-network.md.

    Args:
        images: that pass the tower.
        tokens: of the post's sequence, visual ones included.
        answers: where the last layer is computed; None: at every token.
    """
    d, f, depth, heads, kv_heads = shape.language
    q = shape.queries
    kv = q // heads * kv_heads
    tower = images * patches(shape) * KINDS[shape.family].patch_flops(shape)

    def layer(weights: int, adapter: int) -> float:
        """A token's: forward, and in training the gradient by the input; of the adapter also by the weights."""
        return 2 * weights * (2 if training else 1) + 2 * adapter * (3 if training else 1)

    r = shape.lora_rank
    all_tokens = layer(2 * d * kv, r * 2 * (d + kv))  # keys and values
    at_answers = layer(2 * d * q + 3 * d * f, r * (2 * (d + q) + 3 * (d + f)))  # queries, output, MLP
    attention = 2 * tokens * q * (3 if training else 1)  # half of the square: causal
    whole, last = (depth, 0) if answers is None else (depth - 1, 1)
    language = tokens * whole * (all_tokens + at_answers + attention)
    if answers is not None:
        language += last * (tokens * all_tokens + answers * (at_answers + 2 * attention))
    return tower + language
