"""Loading a LLaVA-OneVision backbone and its tokenizer, from a model hub or a directory."""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionModel,
    PreTrainedTokenizerBase,
)

from .agentps import sub_config
from .errors import CheckpointError, ConfigError
from .settings import BackboneSettings
from .text import ANS_TOKEN

_HINT = "give a directory, or a hub's id with its revision, and see that the hub can be reached"


def _revision(backbone: BackboneSettings) -> str:
    """The commit to load; a directory has none, and `transformers` reads its default as such."""
    if backbone.revision is None and not os.path.isdir(backbone.name):
        raise ConfigError(
            f"backbone {backbone.name}: no such directory; for a hub's id, set `revision` to a commit of its "
            "repository, so that what is trained on it can be loaded again"
        )
    return backbone.revision or "main"


def load_tokenizer(backbone: BackboneSettings) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer with `<ans>` added. It pads nothing: `model.prompt` does, on the right.

    Raises:
        ConfigError: it is not where the settings say, or its hub revision is not pinned.
    """
    revision = _revision(backbone)
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone.name, revision=revision)
    except (OSError, ValueError) as error:
        raise ConfigError(f"backbone {backbone.name}: no tokenizer can be loaded ({error}); {_HINT}") from error
    tokenizer.add_special_tokens({"additional_special_tokens": [ANS_TOKEN]}, replace_extra_special_tokens=False)
    return tokenizer


def load_config(backbone: BackboneSettings) -> LlavaOnevisionConfig:
    """The backbone's architecture.

    Raises:
        ConfigError: it cannot be loaded, or is no LLaVA-OneVision on a Qwen2, or its hub revision is not pinned.
    """
    revision = _revision(backbone)
    try:
        config = LlavaOnevisionConfig.from_pretrained(backbone.name, revision=revision)
    except (OSError, ValueError) as error:
        raise ConfigError(f"backbone {backbone.name}: cannot be loaded ({error}); {_HINT}") from error
    text = sub_config(config, "text_config")
    windows = set(getattr(text, "layer_types", ())) - {"full_attention"}
    if text.model_type != "qwen2" or windows:  # what `model.language` computes
        raise ConfigError(
            f"backbone {backbone.name}: its language model is {text.model_type} {sorted(windows) or ''}; "
            "a Qwen2 with full attention is expected, as in the LLaVA-OneVision checkpoints"
        )
    return config


def load_backbone(
    backbone: BackboneSettings, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> LlavaOnevisionModel:
    """The pretrained model without its language-model head, its embedding large enough for `<ans>`.

    Raises:
        ConfigError: it cannot be loaded.
        CheckpointError: weights are missing from it: they would be random.
    """
    load_config(backbone)
    options = {} if backbone.quantization is None else _in_4_bits(dtype)
    try:
        loaded = LlavaOnevisionModel.from_pretrained(
            backbone.name, revision=_revision(backbone), dtype=dtype, output_loading_info=True, **options
        )
    except ImportError as error:
        if backbone.quantization is None:
            raise
        raise ConfigError(
            f"backbone.quantization {backbone.quantization}: {error}: install agentps[quantization], or remove it"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"backbone {backbone.name}: cannot be loaded ({error}); {_HINT}") from error
    model, report = cast(tuple[LlavaOnevisionModel, dict[str, Any]], loaded)  # with output_loading_info
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise CheckpointError(f"backbone {backbone.name}: no weights for {missing}; take a complete LLaVA-OneVision")
    if backbone.quantization is not None:
        _keep_trainable(model)
    fit_embedding(model, tokenizer)
    return model


def _in_4_bits(dtype: torch.dtype) -> dict[str, Any]:
    """NF4 with quantized constants, as in the QLoRA paper, for the language model; it computes in `dtype`."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["vision_tower", "multi_modal_projector"],  # the name is of its older 8-bit form
    )
    # As without quantization, and moved later: transformers would take the first GPU, in every process of torchrun.
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def _keep_trainable(model: nn.Module) -> None:
    """On a CPU with AVX512-BF16, bitsandbytes 0.50 packs 4-bit weights at the first evaluation for a kernel of 16 bits
    that has no backward pass, and never unpacks them.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def fit_embedding(model: LlavaOnevisionModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the embedding where the tokenizer has more tokens; the real backbones have spare rows."""
    if len(tokenizer) > cast(nn.Embedding, model.get_input_embeddings()).num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
