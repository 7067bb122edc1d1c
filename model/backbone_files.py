"""The files of a backbone, looked at before any of them is read by a library.

A library takes what is there for what is meant: it makes up weights that are missing, reads a page of an error for a
tokenizer, fetches another model that an adapter names, offers to run code that lies beside. Here each such file is
named, with what it holds, in one line. Nothing of this imports torch.
"""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .backbones import is_known, names
from .errors import ConfigError

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
#: One of these sets holds a vocabulary.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
#: The types of a backbone's weights, as safetensors writes them.
FLOATS = ("F32", "F16", "BF16")
_SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "image_size", "patch_size", "max_position_embeddings", "num_heads", "out_hidden_size", "spatial_merge_size",
    "temporal_patch_size", "window_size", "num_position_embeddings", "scale_factor",
)  # fmt: skip
#: From which number to which (whole ones, where these are): others would answer NaN, or take all time or memory.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_SIZES, (1, 10**9)),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_labels"), (1, 1_000)),  # transformers lists them, one by one
    **dict.fromkeys(("rope_theta", "factor"), (1.0, 1e12)),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "attention_dropout"), (0.0, 1.0)),
    "lessons": (0.0, 1_000.0),
}
#: What makes the network answer as `model.agentps` reads it.
_AS_READ = {"return_dict": True}
_KERNELS = ("attn_implementation", "_attn_implementation")
#: Bytes of a file of JSON, and weights in a file, at most: the largest backbones have a fifth and a fiftieth of it.
_MOST_BYTES, _MOST_WEIGHTS = 200_000_000, 100_000
#: Beside the vocabulary, what transformers reads of a tokenizer.
_TOKENIZER_FILES = (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")

#: Gives the path of a file by its name, None where the backbone has none.
Find = Callable[[str], Path | None]


def in_folder(folder: Path) -> Find:
    def find(name: str) -> Path | None:
        """Raises: ConfigError where a folder, a broken link or another such thing stands in the file's place."""
        path = folder / name
        if os.path.isfile(path):
            return path
        if os.path.lexists(path):
            raise ConfigError(f"backbone {folder}: {name!r} is no file, or a link to none: fetch it again")
        return None

    return find


@dataclass(frozen=True)
class Tensor:
    """One weight as the header of its file describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def listed(folder: Path) -> str:
    """The names of a folder's files, for a message."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "nothing"


def _beside(name: str) -> str:
    """What is there where a file is missing, for a message."""
    if Path(name).is_dir():
        return f" (found {listed(Path(name))})"
    return " (or its hub cannot be reached)"


def instead(path: Path) -> str:
    """What a file holds in place of what its name says, for a message."""
    with path.open("rb") as file:
        start = file.read(200).lstrip()
    if not start:
        return "it is empty: fetch it again"
    if start.startswith(b"version https://git-lfs"):
        return "it holds a Git LFS pointer in place of the file: run `git lfs pull` in its folder"
    if start.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "it begins with a byte order mark: save it as UTF-8 without one"
    if start[:1] == b"<":
        return "it holds a web page in place of the file: fetch it again"
    return f"it is damaged, or cut after {path.stat().st_size:,} bytes: fetch it again"


class _UnclearError(Exception):
    """What a reader of JSON takes without a word."""


def _clear(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _UnclearError(f"the key {key!r} stands there twice: keep the right one")
        if any(isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
            raise _UnclearError(f"{key}: finite numbers were expected, found {value!r:.100}: fetch the file again")
        found[key] = value
    return found


def read_mapping(path: Path, name: str) -> dict[str, Any]:
    """A JSON file of the backbone `name`.

    Raises:
        ConfigError: it cannot be read, is no JSON mapping, holds what may be read in two ways, or names code.
    """
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise ConfigError(f"backbone {name}: {path.name}: {size:,} bytes; {_MOST_BYTES:,} at most: fetch it again")
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_clear)
    except _UnclearError as error:
        raise ConfigError(f"backbone {name}: {path.name}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, OSError) else instead(path)
        raise ConfigError(f"backbone {name}: {path.name} cannot be read as JSON: {what}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"backbone {name}: {path.name}: a mapping was expected, found {type(raw).__name__}")
    if "auto_map" in raw:
        raise ConfigError(
            f"backbone {name}: {path.name} names code of its own (auto_map), which is never run: use a backbone that "
            "transformers reads without it, for example llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
        )
    return raw


def check_config(find: Find, name: str) -> str:
    """The type of the backbone, one of `model.backbones`.

    Raises:
        ConfigError: there is no backbone, or one whose weights transformers would not take as they are.
    """
    if find(ADAPTER) is not None:
        raise ConfigError(
            f"backbone {name}: {ADAPTER}: this is an adapter, and reading it would fetch the model that it names: "
            "give that model itself, or merge the two first"
        )
    path = find(CONFIG)
    if path is None:
        raise ConfigError(
            f"backbone {name}: no {CONFIG}{_beside(name)}: give the folder of a backbone in the hub's format"
        )
    raw = read_mapping(path, name)
    kind = raw.get("model_type")
    if not is_known(kind):
        raise ConfigError(
            f"backbone {name}: {CONFIG} describes a model of type {kind!r}; one of {', '.join(names())} is expected"
        )
    flat = raw if "hidden_size" in raw else None  # older files have the language model's sizes outside of a mapping
    parts = {"text_config": raw.get("text_config", flat), "vision_config": raw.get("vision_config")}
    for part, config in parts.items():
        if not isinstance(config, dict):
            raise ConfigError(
                f"backbone {name}: {CONFIG}: {part}: a mapping was expected, found {type(config).__name__}: take the "
                "file that came with the weights"
            )
    waiting = [("", raw)]
    while waiting:
        place, config = waiting.pop()
        _refuse_extras(config, name)
        for key, value in config.items():
            if isinstance(value, dict):
                waiting.append((f"{place}{key}.", value))
            elif key in _RANGES and value is not None:
                for number in value if isinstance(value, list) else (value,):  # a size may be one of each side
                    _check_range(f"{place}{key}", number, *_RANGES[key], name)
    return str(kind)


def pixel_scale(find: Find, name: str) -> dict[str, list[float]]:
    """`image_mean` and `image_std` of the checkpoint's preprocessor, three numbers each; absent where it names none.

    Raises:
        ConfigError: they are no such numbers.
    """
    path = find(PREPROCESSOR)
    raw = read_mapping(path, name) if path is not None else {}
    if path is None and (path := find(PROCESSOR)) is not None:  # where newer versions of transformers write it
        raw = read_mapping(path, name).get("image_processor") or {}
    found = {key: raw[key] for key in ("image_mean", "image_std") if raw.get(key) is not None}
    for key, values in found.items():
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != 3 or (key == "image_std" and min(values) <= 0):
            raise ConfigError(
                f"backbone {name}: {path.name if path else ''}: {key}: three numbers were expected, found "
                f"{values!r:.100}: take the file that came with the weights"
            )
    return found


def _check_range(place: str, value: object, least: float, most: float, name: str) -> None:
    whole = isinstance(least, int)
    if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:  # type: ignore[operator]
        raise ConfigError(
            f"backbone {name}: {CONFIG}: {place}: a {'whole ' if whole else ''}number from {least:,.0f} to {most:,.0f} "
            f"was expected, found {value!r:.100}: take the file that came with the weights"
        )


def _refuse_extras(config: dict[str, Any], name: str) -> None:
    if config.get("quantization_config") is not None:
        raise ConfigError(
            f"backbone {name}: {CONFIG}: its weights are stored quantized (quantization_config): give the backbone in "
            "16 or 32 bits; `backbone.quantization: nf4` makes 4 bits of it"
        )
    for key, wanted in _AS_READ.items():
        if config.get(key, wanted) != wanted:
            raise ConfigError(
                f"backbone {name}: {CONFIG}: {key}: {wanted!r} was expected, found {config[key]!r:.100}: take the file "
                "that came with the weights"
            )
    for key in _KERNELS:
        if "/" in str(config.get(key, "")):
            raise ConfigError(
                f"backbone {name}: {CONFIG}: {key} {config[key]!r} is code of a hub, which is never run: remove the key"
            )


def check_tokenizer(find: Find, name: str) -> None:
    """Raises: ConfigError where no vocabulary is there, or it would be read by code of its own, or each time anew."""
    for file in _TOKENIZER_FILES:
        if (path := find(file)) is not None:
            read_mapping(path, name)
    for files in VOCABULARIES:
        paths = [path for file in files if (path := find(file)) is not None]
        if len(paths) == len(files):
            break
    else:
        raise ConfigError(
            f"backbone {name}: no {VOCABULARIES[0][0]}{_beside(name)}, so there is no vocabulary and every text would "
            "be empty: copy that file from where the backbone came from"
        )
    model = read_mapping(paths[0], name).get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise ConfigError(
            f"backbone {name}: {paths[0].name}: model.dropout {model['dropout']!r:.100} would read a text as other "
            "tokens each time: set it to null"
        )


def weight_files(find: Find, name: str) -> list[Path]:
    """The files that hold the weights.

    Raises:
        ConfigError: there are none in the format of safetensors, or one of several is missing.
    """
    if (single := find(WEIGHTS)) is not None:
        return [single]
    index = find(INDEX)
    if index is None:
        raise ConfigError(
            f"backbone {name}: no {WEIGHTS}{_beside(name)}: weights are read in the format of safetensors only, for a "
            "pickle (pytorch_model.bin) can run any code while it is read: take the backbone in that format, or "
            "convert it where it can be trusted (safetensors.torch.save_file)"
        )
    shards = read_mapping(index, name).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ConfigError(f"backbone {name}: {INDEX} names no files (weight_map): fetch it again")
    paths = []
    for shard in sorted(set(shards.values())):
        if "/" in shard or "\\" in shard:
            raise ConfigError(
                f"backbone {name}: {INDEX} names {shard!r:.200}, a file elsewhere: fetch the backbone again"
            )
        path = find(shard)
        if path is None:
            raise ConfigError(
                f"backbone {name}: {shard!r:.200}, which {INDEX} names, is missing: fetch the backbone again, whole"
            )
        paths.append(path)
    return paths


def read_headers(paths: Iterable[Path], name: str) -> dict[str, Tensor]:
    """What the files hold, by the weights' names; no weight is read.

    Raises:
        ConfigError: a file is no whole safetensors file, or holds numbers of another type than `FLOATS`.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="np") as file:
                if (count := len(file.keys())) > _MOST_WEIGHTS:
                    raise ConfigError(
                        f"backbone {name}: {path.name} holds {count:,} weights; {_MOST_WEIGHTS:,} at most: take another"
                    )
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
                found |= {key: Tensor(part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}
        except OSError as error:
            raise ConfigError(f"backbone {name}: {path.name} cannot be read: {error}") from error
        except SafetensorError as error:
            raise ConfigError(f"backbone {name}: {path.name} is no whole safetensors file: {instead(path)}") from error
    for key, tensor in found.items():
        if tensor.dtype not in FLOATS:
            raise ConfigError(
                f"backbone {name}: the weights {key} are numbers of type {tensor.dtype}; one of {', '.join(FLOATS)} is "
                "expected: take them in 16 or 32 bits"
            )
    return found
