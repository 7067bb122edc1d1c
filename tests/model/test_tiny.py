from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer, LlavaOnevisionModel, PreTrainedTokenizerBase

from model.backbone import load_tokenizer
from model.family import sub_config
from model.settings import BackboneSettings
from model.tiny import build_tiny

TEXTS = ["a walk along the sea", "another walk"] * 5


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone: BackboneSettings) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_backbone)


@pytest.mark.parametrize(
    "text", ["a walk", "今天天气很好,我们去海边", "🙂👩‍👩‍👧 🇨🇳", "tab\tand\nline  ", "naïve — “quoted”", ""]
)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ans_image_and_video_are_one_token_each(tokenizer: PreTrainedTokenizerBase) -> None:
    for token in ("<ans>", "<image>", "<video>"):
        assert len(tokenizer.encode(token)) == 1


def test_auto_tokenizer_reads_the_same_tokens(
    tiny_backbone: BackboneSettings, tokenizer: PreTrainedTokenizerBase
) -> None:
    again = AutoTokenizer.from_pretrained(tiny_backbone.name)
    text = "a walk 今天 🙂 <ans>"
    assert again.encode(text) == tokenizer.encode(text)
    assert len(again) == len(tokenizer)


def test_the_same_seed_builds_the_same_backbone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, attributes = rng.integers(0, 256, (128, 32, 32, 3), np.uint8), rng.integers(0, 2, (128, 2))
    weights = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        directory = build_tiny(tmp_path / name, TEXTS, images, attributes, epochs=1, seed=seed)
        weights.append(load_file(directory / "model.safetensors"))
    assert all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(np.array_equal(weights[0][key], weights[2][key]) for key in weights[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"], "nothing half-made is left"


def test_a_backbone_that_is_there_is_not_built_again(tiny_backbone: BackboneSettings) -> None:
    nothing = np.zeros((0, 32, 32, 3), np.uint8)
    assert build_tiny(Path(tiny_backbone.name), [], nothing, nothing) == Path(tiny_backbone.name)


def test_the_tiny_backbone_has_the_real_ones_classes_and_under_a_million_parameters(
    tiny_backbone: BackboneSettings,
) -> None:
    model = LlavaOnevisionModel.from_pretrained(tiny_backbone.name)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert sub_config(model.config, "vision_config").model_type == "siglip_vision_model"
    assert sub_config(model.config, "text_config").model_type == "qwen2"
