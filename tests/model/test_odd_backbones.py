"""Backbones that are odd but legal, as strangers publish them: the same answers as transformers' own, or one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.backbone import load_backbone, load_tokenizer
from model.backbones import family_of
from model.errors import ConfigError
from model.settings import BackboneSettings
from tests.model.test_families import FAMILIES, batched, largest_difference, perturb, reference
from tests.support import families
from tests.support.damage import WEIGHTS, in_json, in_parts
from tests.support.tiny import network, train_settings, write_posts

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = _YARN | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
#: Family, and what its config says otherwise: of itself (""), or of a part.
ODD: list[tuple[str, dict[str, dict[str, Any]]]] = [
    ("llava_onevision", {"": {"vision_feature_layer": [-2, -1]}, "text_config": {"num_key_value_heads": 1}}),
    ("llava_onevision", {"": {"multimodal_projector_bias": False}, "text_config": {"rope_parameters": _YARN}}),
    ("qwen2_5_vl", {"text_config": {"rope_parameters": _YARN}, "vision_config": {"fullatt_block_indexes": []}}),
    ("qwen2_5_vl", {"text_config": {"num_key_value_heads": 4}, "vision_config": {"window_size": 8}}),
    ("qwen3_vl", {"text_config": {"attention_bias": True}, "vision_config": {"deepstack_visual_indexes": []}}),
    ("qwen3_vl", {"text_config": {"rope_parameters": _YARN}, "vision_config": {"num_position_embeddings": 64}}),
    ("smolvlm", {"text_config": {"head_dim": 16, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}}),
    ("smolvlm", {"text_config": {"rope_parameters": _LLAMA3, "num_key_value_heads": 1}}),
]


@pytest.mark.parametrize(("family", "changes"), ODD)
@torch.no_grad()
def test_an_odd_config_gives_the_answers_of_transformers_own_forward(
    family: str, changes: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = families.REAL[family]

    def config(vocabulary: int, placeholder: int) -> Any:
        said = json.loads(real.config(vocabulary, placeholder).to_json_string())
        for part, values in changes.items():
            inside = said[part] if part else said
            for key, value in values.items():
                inside[key] = inside[key] | value if isinstance(value, dict) else value
        return type(real.config(vocabulary, placeholder)).from_dict(said)

    monkeypatch.setitem(families.REAL, family, dataclasses.replace(real, config=config))
    backbone = BackboneSettings(name=str(families.write(family, tmp_path / "backbone")))
    shards = write_posts(tmp_path / "shards", backbone, train=6, val=1, test=1)
    model, _, batches = network(backbone, shards, train_settings())
    perturb(model)
    model.eval()
    rows, tokenizer = [3, 0, 5], load_tokenizer(backbone)
    found = batched(model, batches, rows)
    assert largest_difference(found, [reference(family, model, shards, tokenizer, row) for row in rows]) <= 1e-5
    assert largest_difference(found[:1], found[1:2]) > 1e-2, "the posts must differ, or nothing is compared"


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_16_bits_in_parts_with_the_processors_newer_file_are_read(family: str, tmp_path: Path) -> None:
    folder = families.write(family, tmp_path / "backbone")
    whole = BackboneSettings(name=str(folder))
    expected = load_backbone(whole, load_tokenizer(whole), torch.float32)
    tensors = load_file(folder / WEIGHTS)
    parts = {f"model-0000{k}-of-00002.safetensors": sorted(tensors)[k - 1 :: 2] for k in (1, 2)}
    for part, names in parts.items():
        save_file({name: tensors[name].bfloat16() for name in names}, folder / part)
    in_parts({name: part for part, names in parts.items() for name in names})(folder)
    scale = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": scale, "processor_class": "Any"}))

    model = load_backbone(whole, load_tokenizer(whole), torch.float32)
    embedding = "embed_tokens.weight"  # whose last row is new
    for name, tensor in expected.state_dict().items():
        if not name.endswith(embedding):
            assert torch.equal(model.state_dict()[name], tensor.bfloat16().float()), name
    pixels = torch.tensor([[[[0, 100, 255]]]], dtype=torch.uint8)
    assert torch.equal(family_of(model.config).normalize(pixels), family_of(expected.config).normalize(pixels))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8"])
def test_weights_that_are_stored_quantized_are_refused_with_what_to_take(
    family: str, method: str, tmp_path: Path
) -> None:
    folder = families.write(family, tmp_path / "backbone")
    in_json("config.json", quantization_config={"quant_method": method, "bits": 4})(folder)
    backbone = BackboneSettings(name=str(folder))
    with pytest.raises(ConfigError, match=r"stored quantized .*16 or 32 bits; `backbone\.quantization: nf4`") as told:
        load_backbone(backbone, load_tokenizer(backbone), torch.float32)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantized_weights_whose_config_does_not_say_so_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = families.write("qwen3_vl", tmp_path / "backbone")
    tensors = {name: t.to(dtype) if t.ndim == 2 else t for name, t in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    backbone = BackboneSettings(name=str(folder))
    with pytest.raises(ConfigError, match=r"numbers of type (F8_E4M3|I8); .* take them in 16 or 32 bits"):
        load_backbone(backbone, load_tokenizer(backbone), torch.float32)
