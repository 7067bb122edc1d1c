"""The language model's states where answers are read, against transformers' forward over all tokens."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraConfig
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from model.language import hidden_states_at

POSITIONS = torch.tensor([[2, 5, 5], [0, 3, 8]])


def language_model(attention: str, key_value_heads: int) -> Qwen2Model:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=10,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        attn_implementation=attention,
    )
    model = Qwen2Model(config)
    for parameter in model.parameters():  # away from biases of 0 and norms of 1
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_states_and_gradients_are_those_of_the_whole_forward(attention: str, key_value_heads: int) -> None:
    model = language_model(attention, key_value_heads)
    embeds = torch.randn(2, 9, 32, requires_grad=True)
    weight = torch.randn(2, 3, 32)

    def gradients(states: Tensor) -> list[Tensor]:
        used = [embeds, *(p for name, p in model.named_parameters() if name != "embed_tokens.weight")]
        return list(torch.autograd.grad((states * weight).sum(), used))

    whole = model(inputs_embeds=embeds, use_cache=False).last_hidden_state[torch.arange(2).unsqueeze(1), POSITIONS]
    narrow = hidden_states_at(model, embeds, POSITIONS)
    torch.testing.assert_close(narrow, whole, rtol=1e-5, atol=1e-5)
    for found, expected in zip(gradients(narrow), gradients(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_adapters_of_the_last_layer_are_applied() -> None:
    model = language_model("sdpa", 2)
    config = LoraConfig(r=2, target_modules=r"layers\.2\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)")
    adapted = get_peft_model(model, config)
    embeds = torch.randn(2, 9, 32)
    before = hidden_states_at(model, embeds, POSITIONS)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    whole = model(inputs_embeds=embeds, use_cache=False).last_hidden_state[torch.arange(2).unsqueeze(1), POSITIONS]
    narrow = hidden_states_at(model, embeds, POSITIONS)
    assert (narrow - before).abs().max() > 0.1
    torch.testing.assert_close(narrow, whole, rtol=1e-5, atol=1e-5)


def test_what_stands_behind_an_answer_changes_nothing() -> None:
    model = language_model("sdpa", 2)
    embeds = torch.randn(2, 9, 32)
    padded = torch.cat((embeds, torch.full((2, 4, 32), 7.0)), dim=1)
    torch.testing.assert_close(
        hidden_states_at(model, padded, POSITIONS), hidden_states_at(model, embeds, POSITIONS), rtol=1e-5, atol=1e-5
    )
