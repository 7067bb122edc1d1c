"""`backbone.quantization: nf4`: LoRA on a language model whose weights are kept in 4 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn

from model import checkpoint
from model.agentps import AgentPS
from model.backbone import load_backbone, load_tokenizer
from model.data import Batches, Shards
from model.errors import CheckpointError, ConfigError
from model.settings import BackboneSettings, LoraSettings
from model.train import fit
from steps.settings import load_settings
from tests.support.tiny import TASK, network, train_settings, write_checkpoint

SETTINGS = train_settings(variant="agentps_answers", lora=LoraSettings(rank=4, alpha=8))


@pytest.fixture
def nf4(tiny_backbone: BackboneSettings) -> BackboneSettings:
    return tiny_backbone.model_copy(update={"quantization": "nf4"})


def logits(model: AgentPS, batches: Batches) -> list[torch.Tensor]:
    model.eval()
    with torch.no_grad():
        answers = model(**batches([0, 3, 17]))
    return [*answers.questions, answers.final_B]


def in_4_bits(model: AgentPS) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.dtype == torch.uint8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_linear_layer_of_the_language_model_and_no_other_is_in_4_bits(
    nf4: BackboneSettings, dtype: torch.dtype
) -> None:
    model = load_backbone(nf4, load_tokenizer(nf4), dtype)
    found = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert found == {name for name in linear if name.startswith("language_model.layers.")} != set()
    for name in found:
        layer = model.get_submodule(name)
        assert isinstance(layer, Linear4bit)
        assert layer.weight.nbytes == layer.in_features * layer.out_features / 2
        assert layer.weight.quant_state.quant_type == "nf4"
    assert {model.get_submodule(name).weight.dtype for name in linear - found} == {dtype}


def test_it_computes_as_a_model_with_the_rounded_weights(
    tiny_backbone: BackboneSettings, nf4: BackboneSettings
) -> None:
    tokenizer = load_tokenizer(nf4)
    quantized = load_backbone(nf4, tokenizer, torch.float32)
    reference = load_backbone(tiny_backbone, tokenizer, torch.float32)
    ids_BT = torch.arange(40, 72).reshape(2, 16)
    with torch.no_grad():
        full_BTD = reference.language_model(ids_BT).last_hidden_state
        for name, module in quantized.named_modules():
            if isinstance(module, Linear4bit):
                weight = dequantize_4bit(module.weight, module.weight.quant_state)
                reference.get_submodule(name).weight.copy_(weight)
        expected_BTD = reference.language_model(ids_BT).last_hidden_state
        found_BTD = quantized.language_model(ids_BT).last_hidden_state
    torch.testing.assert_close(found_BTD, expected_BTD, rtol=0, atol=1e-4)
    assert (full_BTD - expected_BTD).abs().mean() > 1e-2, "the rounding shows"


def test_it_trains_on_after_an_evaluation(nf4: BackboneSettings, tiny_shards: Shards, tmp_path: Path) -> None:
    """bitsandbytes packs the weights for an evaluation on a CPU with AVX512-BF16 in a form that cannot be trained."""
    model, _, batches = network(nf4, tiny_shards, SETTINGS)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert {layer.support_avx512bf16_for_cpu for layer in layers} == {False}  # also where the CPU has no such kernel
    fresh = logits(model, batches)
    weights = [weight.clone() for weight in in_4_bits(model)]
    fit(model, batches, SETTINGS, tmp_path, quiet=True)  # two epochs, each with an evaluation
    assert all(torch.equal(a, b) for a, b in zip(weights, in_4_bits(model), strict=True))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(fresh, logits(model, batches), strict=True))


def test_a_checkpoint_in_4_bits_gives_the_logits_of_the_network_that_it_was(
    tiny_backbone: BackboneSettings, nf4: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    saved = write_checkpoint(tmp_path / "checkpoint", nf4, SETTINGS)
    loaded = checkpoint.load(saved)
    model, _, batches = network(nf4, tiny_shards, SETTINGS)
    checkpoint.start_from(model, saved, TASK, nf4)
    for a, b in zip(logits(model, batches), logits(loaded.model, batches), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
    assert (loaded.info.backbone.quantization, len(in_4_bits(loaded.model))) == ("nf4", len(in_4_bits(model)))

    full, _, _ = network(tiny_backbone, tiny_shards, SETTINGS)
    with pytest.raises(CheckpointError, match=r"trained with backbone\.quantization nf4, asked for None"):
        checkpoint.start_from(full, saved, TASK, tiny_backbone)


def test_weights_in_4_bits_need_lora() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.quantization nf4 needs fine_tune\.lora"):
        load_settings({"backbone": {"quantization": "nf4"}})


def test_without_its_library_the_option_says_what_to_install(
    nf4: BackboneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigError, match=r"agentps\[quantization\]"):
        load_backbone(nf4, load_tokenizer(nf4), torch.float32)
