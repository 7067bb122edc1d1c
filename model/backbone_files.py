"""The files of a backbone, looked at before any of them is read by a library.

A library takes what is there for what is meant: it makes up weights that are missing, reads a page of an error for a
tokenizer, fetches another model that an adapter names, offers to run code that lies beside. Here each such file is
named, with what it holds, in one line. Nothing of this imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .backbones import names
from .errors import ConfigError

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
#: One of these sets holds a vocabulary.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
#: The types of a backbone's weights, as safetensors writes them.
FLOATS = ("F32", "F16", "BF16")
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "image_size", "patch_size", "max_position_embeddings",
)  # fmt: skip
#: transformers would list very many, one by one.
_MOST_LAYERS = 1_000
_KERNELS = ("attn_implementation", "_attn_implementation")

#: Gives the path of a file by its name, None where the backbone has none.
Find = Callable[[str], Path | None]


def in_folder(folder: Path) -> Find:
    def find(name: str) -> Path | None:
        return path if (path := folder / name).is_file() else None

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
    if start[:1] == b"<":
        return "it holds a web page in place of the file: fetch it again"
    return f"it is damaged, or cut after {path.stat().st_size:,} bytes: fetch it again"


def read_mapping(path: Path, name: str) -> dict[str, Any]:
    """A JSON file of the backbone `name`.

    Raises:
        ConfigError: it cannot be read, or is no JSON mapping.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
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
    if kind not in names():
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
        for key in _SIZES:
            size = config.get(key, 1)
            if type(size) is not int or size < 1 or (key == "num_hidden_layers" and size > _MOST_LAYERS):
                raise ConfigError(
                    f"backbone {name}: {CONFIG}: {part}.{key}: a whole number of usual size was expected, found "
                    f"{size!r}: take the file that came with the weights"
                )
    for config in (raw, *parts.values()):
        _refuse_extras(config or {}, name)
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


def _refuse_extras(config: dict[str, Any], name: str) -> None:
    if config.get("quantization_config") is not None:
        raise ConfigError(
            f"backbone {name}: {CONFIG}: its weights are stored quantized (quantization_config): give the backbone in "
            "16 or 32 bits; `backbone.quantization: nf4` makes 4 bits of it"
        )
    for key in _KERNELS:
        if "/" in str(config.get(key, "")):
            raise ConfigError(
                f"backbone {name}: {CONFIG}: {key} {config[key]!r} is code of a hub, which is never run: remove the key"
            )


def check_tokenizer(find: Find, name: str) -> None:
    """Raises: ConfigError where no vocabulary is there, or it would be read by code of its own."""
    path = find(TOKENIZER_CONFIG)
    if path is not None:
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
    read_mapping(paths[0], name)


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
            raise ConfigError(f"backbone {name}: {INDEX} names {shard!r}, a file elsewhere: fetch the backbone again")
        path = find(shard)
        if path is None:
            raise ConfigError(
                f"backbone {name}: {shard}, which {INDEX} names, is missing: fetch the backbone again, whole"
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
