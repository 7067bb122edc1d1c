"""What can be wrong with a backbone's folder: each function does one such thing to it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from model.backbone import load_backbone, load_config, load_tokenizer
from model.checkpoint import check_fits
from model.settings import BackboneSettings
from tests.support.tiny import SEQUENCE, TASK

Damage = Callable[[Path], object]

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = "<!DOCTYPE html><html><body>404</body></html>"
WEIGHTS = "model.safetensors"


def read(folder: Path) -> None:
    """As preprocess and fine_tune do."""
    backbone = BackboneSettings(name=str(folder))
    config, tokenizer = load_config(backbone), load_tokenizer(backbone)
    check_fits(config, tokenizer, TASK, SEQUENCE)
    load_backbone(backbone, tokenizer, torch.float32)


def write(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def config(*keys: str, **values: Any) -> Damage:
    return in_json("config.json", *keys, **values)


def in_json(name: str, *keys: str, **values: Any) -> Damage:
    def apply(folder: Path) -> None:
        path = folder / name
        raw = part = json.loads(path.read_text())
        for key in keys:
            part = part[key]
        part.update(values)
        path.write_text(json.dumps(raw))

    return apply


def weights(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Damage:
    def apply(folder: Path) -> None:
        tensors = {name: change(name, tensor) for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS)

    return apply


def as_type(dtype: torch.dtype) -> Damage:
    return weights(lambda _, tensor: tensor.to(dtype))


def one_number(value: float) -> Damage:
    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.endswith("layers.1.mlp.up_proj.weight"):
            tensor[1, 2] = value
        return tensor

    return weights(change)


def other_shape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:32].clone() if name == "image_newline" else tensor


def one_layer_more(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    more = {
        name.replace("layers.2.", "layers.3."): t.clone() for name, t in tensors.items() if "language_model" in name
    }
    save_file(more | tensors, folder / WEIGHTS)


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def in_parts(shards: dict[str, str] | None) -> Damage:
    def apply(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        index = {"metadata": {}} if shards is None else {"metadata": {}, "weight_map": shards}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return apply


def more_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"zz{n}" for n in range(9)])
    tokenizer.save_pretrained(folder)


def whole_words(folder: Path) -> None:
    """A vocabulary of two words; any other is the unknown one."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[UNK]"}
    said["extra_special_tokens"] = ["<image>", "<video>"]  # type: ignore[assignment]
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def word_pieces(pieces: str) -> Damage:
    """A vocabulary of these pieces only, lower-cased and without accents; a word that they do not make is unknown."""

    def apply(folder: Path) -> None:
        whole_words(folder)
        vocabulary = {piece: number for number, piece in enumerate(["[UNK]", "<image>", "<video>", *pieces.split()])}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
        tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
        tokenizer.save(str(folder / "tokenizer.json"))

    return apply


def tokenizer_json(*keys: str, **values: Any) -> Damage:
    """With a class that reads all of it; Qwen2's takes vocabulary and merges only."""

    def apply(folder: Path) -> None:
        in_json("tokenizer.json", *keys, **values)(folder)
        tokenizer_config(tokenizer_class="PreTrainedTokenizerFast")(folder)

    return apply


def replaced(pattern: str, by: str) -> Damage:
    """A normalizer that does so."""
    return tokenizer_json(normalizer={"type": "Replace", "pattern": {"Regex": pattern}, "content": by})


def one_id_for_all(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizer_json("model", vocab={piece: min(number, 4) for piece, number in vocabulary.items()})(folder)


def unknown_unnamed(folder: Path) -> None:
    """Nothing says that the token of all other words is the unknown one."""
    whole_words(folder)
    tokenizer_config(unk_token=None, pad_token="hello")(folder)


def tokenizer_config(**values: Any) -> Damage:
    return in_json("tokenizer_config.json", **values)


NAN = float("nan")
#: What is read of a backbone.
READ = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", WEIGHTS,
)  # fmt: skip


def rope(**values: Any) -> Damage:
    return config("text_config", rope_parameters={"rope_theta": 1e4, "rope_type": "default"} | values)


def in_place_of(name: str, make: Callable[[Path], object]) -> Damage:
    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return apply


def folder_named(name: str) -> Damage:
    return in_place_of(name, Path.mkdir)


def link_to_nothing(name: str) -> Damage:
    return in_place_of(name, lambda path: path.symlink_to("/nowhere"))


def fifo(name: str) -> Damage:
    """Whoever opens it waits for ever."""
    return in_place_of(name, os.mkfifo)


def recoded(name: str, encoding: str) -> Damage:
    return lambda folder: (folder / name).write_text((folder / name).read_text(), encoding=encoding)


def too_large(name: str) -> Damage:
    def apply(folder: Path) -> None:
        with (folder / name).open("w") as file:
            file.truncate(300_000_000)  # takes no room

    return apply


def header(length: int) -> Damage:
    """A file of weights that says that its header is so long."""
    return lambda folder: (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + b"{}" + bytes(50))
