"""Loading a backbone and its tokenizer, from a model hub or a directory.

What is read is looked at first (`model.backbone_files`), so that each fault is one message: weights that are missing
would be random, and a tokenizer without its vocabulary would read every text as empty.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from .backbone_files import Find, check_config, check_tokenizer, in_folder, pixel_scale, read_headers, weight_files
from .backbones import family_class, family_of
from .errors import CheckpointError, ConfigError
from .settings import BackboneSettings
from .text import ANS_TOKEN, ans_token_id

_HINT = "take all its files anew from where it came; of a hub, see that it can be reached"
#: What transformers raises while it makes a network of a configuration that is none.
_IMPOSSIBLE = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError,
    StrictDataclassError,
)  # fmt: skip
#: Names shown in an error's message.
_SHOWN = 3


def _revision(backbone: BackboneSettings) -> str:
    """The commit to load; a directory has none, and `transformers` reads its default as such."""
    if backbone.revision is None and not os.path.isdir(backbone.name):
        what = "a file, not a directory" if os.path.exists(backbone.name) else "no such directory"
        raise ConfigError(
            f"backbone {backbone.name}: {what}; for a hub's id, set `revision` to a commit of its "
            "repository, so that what is trained on it can be loaded again"
        )
    return backbone.revision or "main"


def _find(backbone: BackboneSettings) -> Find:
    """Finds no file of a hub that cannot be reached, either."""
    revision = _revision(backbone)
    if os.path.isdir(backbone.name):
        return in_folder(Path(backbone.name))
    return functools.partial(_fetched, backbone.name, revision)


@functools.cache
def _fetched(hub_id: str, revision: str, name: str) -> Path | None:
    """Once in a process: a hub that cannot be reached is asked for half a minute for each file that is not there."""
    try:
        found = cached_file(
            hub_id,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"backbone {hub_id}: {name} cannot be fetched ({_short(error)}); {_HINT}") from error
    return None if found is None else Path(found)


def _short(error: BaseException) -> str:
    """A library's message on one line."""
    return " ".join(str(error).split())[:300]


def load_tokenizer(backbone: BackboneSettings) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer with `<ans>` added. It pads nothing: `model.prompt` does, on the right.

    Raises:
        ConfigError: it is not where the settings say, or its hub revision is not pinned; or it has no vocabulary.
    """
    find = _find(backbone)
    check_config(find, backbone.name)  # transformers reads it to tell what the tokenizer is
    check_tokenizer(find, backbone.name)
    tokenizer = read_tokenizer(backbone.name, _revision(backbone))
    tokenizer.add_special_tokens({"additional_special_tokens": [ANS_TOKEN]}, replace_extra_special_tokens=False)
    return tokenizer


def read_tokenizer(name: str, revision: str = "main", *, local: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone or of a checkpoint.

    Raises:
        ConfigError: it cannot be read, or lacks what every batch needs.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=False, local_files_only=local
        )
        if not tokenizer.is_fast:  # only of such a one it is known which characters a token stands for
            raise ValueError(f"{type(tokenizer).__name__} does not read tokenizer.json")
        tokenizer("a", add_special_tokens=False)
    except Exception as error:  # the library `tokenizers` raises Exception itself
        raise ConfigError(f"backbone {name}: no tokenizer can be loaded ({_short(error)}); {_HINT}") from error
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"backbone {name}: its tokenizer has no padding token: name one in tokenizer_config.json")
    return tokenizer


def load_config(backbone: BackboneSettings) -> PreTrainedConfig:
    """The backbone's architecture, and a network of it could be made.

    Of the checkpoint's own preprocessor it keeps `image_mean` and `image_std`, where they are not the family's.

    Raises:
        ConfigError: it cannot be loaded, or is of no family that is known, or its hub revision is not pinned.
    """
    find = _find(backbone)
    family = family_class(check_config(find, backbone.name))
    revision = _revision(backbone)
    try:
        config = cast(type[PreTrainedConfig], family.model_class.config_class).from_pretrained(
            backbone.name, revision=revision, trust_remote_code=False
        )
    except (OSError, *_IMPOSSIBLE) as error:
        raise ConfigError(f"backbone {backbone.name}: config.json cannot be used ({_short(error)}); {_HINT}") from error
    for name, values in pixel_scale(find, backbone.name).items():
        if tuple(values) != getattr(family, name):
            setattr(config, name, values)
    try:
        family(config).check()
    except ConfigError as error:
        raise ConfigError(f"backbone {backbone.name}: {error}") from error
    except _IMPOSSIBLE as error:  # numbers of another type than the family's
        raise ConfigError(f"backbone {backbone.name}: config.json cannot be used ({_short(error)}); {_HINT}") from error
    network_of(config, backbone)
    return config


def network_of(config: PreTrainedConfig, backbone: BackboneSettings) -> PreTrainedModel:
    """The network without weights, which takes no memory.

    Raises:
        ConfigError: the sizes do not go together.
    """
    try:
        with torch.device("meta"):
            return family_of(config).model_class(config)
    except _IMPOSSIBLE as error:
        raise ConfigError(
            f"backbone {backbone.name}: no network can be made of its config.json ({type(error).__name__}: "
            f"{_short(error)}): take the config.json that came with the weights"
        ) from error


def check_weights(backbone: BackboneSettings, config: PreTrainedConfig) -> list[Path]:
    """The files of the weights: whole, of floats, and of the architecture's size. No weight is read.

    Raises:
        ConfigError: they are not.
    """
    paths = weight_files(_find(backbone), backbone.name)
    there = sum(tensor.size for tensor in read_headers(paths, backbone.name).values())
    needed = sum(parameter.numel() for parameter in network_of(config, backbone).parameters())
    if 2 * there < needed:  # transformers would make up the others, of any number, before `_check_report` says so
        raise ConfigError(
            f"backbone {backbone.name}: config.json describes {needed:,} weights, the files hold {there:,} "
            f"({', '.join(path.name for path in paths[:_SHOWN])}): take config and weights of one model, whole"
        )
    return paths


def all_finite(tensor: Tensor) -> bool:
    """Whether no number of it is NaN or infinite."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())  # a NaN comes through; 20 x isfinite


def _check_finite(paths: Iterable[Path], backbone: BackboneSettings) -> None:
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                if not all_finite(file.get_tensor(name)):
                    raise ConfigError(
                        f"backbone {backbone.name}: {path.name}: {name} holds numbers that are NaN or infinite, so "
                        "that every answer would be: fetch the backbone again"
                    )


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers logs what it finds of weights as a table; here it is a message."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def load_backbone(
    backbone: BackboneSettings, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> PreTrainedModel:
    """The pretrained model without its language-model head, its embedding large enough for `<ans>`.

    Raises:
        ConfigError: it cannot be loaded.
        CheckpointError: weights are missing from it, or have another shape: they would be random.
    """
    config = load_config(backbone)
    family = family_of(config)
    _check_finite(check_weights(backbone, config), backbone)
    options = {} if backbone.quantization is None else _in_4_bits(dtype, [family.tower, *family.projectors])
    try:
        with _without_report():
            loaded = family.model_class.from_pretrained(
                backbone.name,
                config=config,
                revision=_revision(backbone),
                dtype=dtype,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are told below
                output_loading_info=True,
                **options,
            )
    except ImportError as error:
        if backbone.quantization is None:
            raise
        raise ConfigError(
            f"backbone.quantization {backbone.quantization}: {error}: install agentps[quantization], or remove it"
        ) from error
    except (OSError, *_IMPOSSIBLE) as error:
        raise ConfigError(f"backbone {backbone.name}: cannot be loaded ({_short(error)}); {_HINT}") from error
    model, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)  # with output_loading_info
    _check_report(report, backbone)
    if backbone.quantization is not None:
        _keep_trainable(model)
    fit_embedding(model, tokenizer)
    return model


def _check_report(report: dict[str, Any], backbone: BackboneSettings) -> None:
    """
    Raises:
        CheckpointError: the weights that were read are not all that the architecture has, in its shapes and layers.
    """
    faults = []
    if mismatched := sorted(report["mismatched_keys"]):
        name, found, expected = mismatched[0]
        faults.append(
            f"{len(mismatched)} weights have another shape than config.json says: {name} is {tuple(found)}, "
            f"{tuple(expected)} was expected"
        )
    if missing := sorted(report["missing_keys"]):
        faults.append(f"no weights for {', '.join(missing[:_SHOWN])}{_more(missing)}")
    if spare := sorted(name for name in report["unexpected_keys"] if ".layers." in name or ".blocks." in name):
        faults.append(f"weights of layers that config.json does not have: {', '.join(spare[:_SHOWN])}{_more(spare)}")
    if faults:
        raise CheckpointError(
            f"backbone {backbone.name}: {'; '.join(faults)}; take a complete backbone, config and weights of one model"
        )


def _more(names: list[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""


def _in_4_bits(dtype: torch.dtype, whole: list[str]) -> dict[str, Any]:
    """NF4 with quantized constants, as in the QLoRA paper, but for the modules `whole`; it computes in `dtype`."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,  # the name is of its older 8-bit form
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


def fit_embedding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the embedding by the row of `<ans>` where it has none to spare, as the real backbones have.

    Raises:
        CheckpointError: the tokenizer has more tokens than that: their rows would be random.
    """
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows + (ans_token_id(tokenizer) == rows):
        raise CheckpointError(
            f"backbone {tokenizer.name_or_path}: its tokenizer has {needed:,} tokens, its embedding {rows:,} rows: "
            "they are of two models: take the tokenizer that came with the weights"
        )
    if needed > rows:
        model.resize_token_embeddings(needed)
