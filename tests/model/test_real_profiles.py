"""The two published backbones, built without weights from their published configuration.

The values are those of `config.json` at the revisions that the profiles pin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

from model import checkpoint
from model.agentps import AgentPS
from model.backbone import load_tokenizer
from model.settings import BackboneSettings
from model.task import load_task
from steps.settings import TrainingSettings, load_settings

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


@dataclass(frozen=True)
class Published:
    profile: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    #: The size on the model card.
    parameters: float


PUBLISHED = [
    Published("llava-ov-0.5b", 896, 24, 14, 2, 4864, 152000, True, 0.9e9),
    Published("llava-ov-7b", 3584, 28, 28, 4, 18944, 152128, False, 8.0e9),
]


def settings_of(published: Published) -> TrainingSettings:
    return load_settings(yaml.safe_load((CONFIGS / f"{published.profile}.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module", params=PUBLISHED, ids=lambda published: published.profile)
def built(
    request: pytest.FixtureRequest, tiny_backbone: BackboneSettings
) -> Iterator[tuple[Published, AgentPS, PreTrainedTokenizerBase, LlavaOnevisionModel]]:
    """The profile's network on the meta device, through the code that `checkpoint.build` runs."""
    published: Published = request.param
    settings = settings_of(published)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            hidden_size=published.hidden,
            num_hidden_layers=published.layers,
            num_attention_heads=published.heads,
            num_key_value_heads=published.kv_heads,
            intermediate_size=published.intermediate,
            vocab_size=published.vocabulary,
            tie_word_embeddings=published.tied,
        ),
    )
    tokenizer = load_tokenizer(tiny_backbone)
    with torch.device("meta"):
        llava = LlavaOnevisionModel(config).to(torch.bfloat16)
        task = load_task(settings.task)
        yield (
            published,
            checkpoint.wrap(llava, tokenizer, task, settings.preprocess, settings.fine_tune),
            tokenizer,
            llava,
        )


Built = tuple[Published, AgentPS, PreTrainedTokenizerBase, LlavaOnevisionModel]


def trained(model: AgentPS) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_profile_states_the_papers_form() -> None:
    for published in PUBLISHED:
        settings = settings_of(published)
        assert settings.variant == "agentps"
        assert settings.backbone.revision is not None
        assert (settings.preprocess.frames, settings.preprocess.image_size) == (16, 384)
        assert (settings.preprocess.max_text_tokens, settings.preprocess.max_tokens) == (196, 256)
        assert settings.fine_tune.lora is not None
        assert (settings.fine_tune.lora.rank, settings.fine_tune.lora.alpha) == (128, 256)


def test_what_is_trained_counts_as_by_hand(built: Built) -> None:
    """LoRA of rank r on a layer of a inputs and b outputs has r (a + b) parameters."""
    published, model, _, _ = built
    d, f, kv = published.hidden, published.intermediate, published.hidden // published.heads * published.kv_heads
    block = 128 * ((d + d) + 2 * (d + kv) + (d + d) + 3 * (d + f))
    h = settings_of(published).fine_tune.head_hidden
    heads = 5 * (d * h + h + 2 * h + 2) + (d * h + h + h + 1)  # five questions of two classes, and the final one
    counts = trained(model)
    assert sum(n for name, n in counts.items() if "lora_" in name) == published.layers * block
    assert sum(n for name, n in counts.items() if name.startswith(("heads.", "final_head."))) == heads
    assert sum(counts.values()) == published.layers * block + heads + d  # and the row of <ans>


def test_what_is_trained_is_float32_over_a_frozen_bfloat16_backbone(built: Built) -> None:
    _, model, _, _ = built
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_the_backbone_has_the_published_size(built: Built) -> None:
    """The model cards count the language-model head too, which is the embedding where they are tied."""
    published, model, _, _ = built
    added = set(trained(model))
    backbone = sum(p.numel() for name, p in model.named_parameters() if name not in added and "lora_" not in name)
    head = 0 if published.tied else published.vocabulary * published.hidden
    assert backbone + head == pytest.approx(published.parameters, rel=0.02)


def test_a_post_is_16_frames_of_196_tokens_and_a_newline(built: Built) -> None:
    published, model, _, _ = built
    assert model.family.visual_tokens(settings_of(published).preprocess) == 16 * 196 + 1
