"""Every family of backbones against a plain use of transformers' own classes, one post at a time."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from model.agentps import AgentPS
from model.backbone import load_tokenizer
from model.backbones import names
from model.data import FRAMES, TEXT_IDS, Batches, Shards
from model.settings import BackboneSettings, LoraSettings, Variant, answers_questions
from tests.support import families
from tests.support.tiny import SEQUENCE, TASK, UNIQUE, network, train_settings, write_posts

VARIANTS: tuple[Variant, ...] = get_args(Variant)
ROWS = [3, 0, 17, 48, 5]  # posts of 4, 1, 6, 1 and 6 images, and of texts of different lengths
FAMILIES = sorted(families.REAL)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BackboneSettings]:
    root = tmp_path_factory.mktemp("families")
    return {name: BackboneSettings(name=str(families.write(name, root / name))) for name in FAMILIES}


@pytest.fixture(scope="module")
def shards(
    backbones: dict[str, BackboneSettings], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, bool], Shards]:
    """By family, and whether short albums repeat."""
    root = tmp_path_factory.mktemp("shards")
    return {
        (name, repeat): write_posts(root / f"{name}-{repeat}", backbones[name], sequence=sequence)
        for name in FAMILIES
        for repeat, sequence in ((True, SEQUENCE), (False, UNIQUE))
    }


def test_every_family_is_compared() -> None:
    assert names() == FAMILIES


def perturb(model: AgentPS) -> None:
    """Away from where training begins: LoRA's B is zero there."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def mlp(head: torch.nn.Module, state: Tensor) -> Tensor:
    w = dict(head.named_parameters())
    hidden = torch.nn.functional.gelu(state @ w["0.weight"].T + w["0.bias"])
    return hidden @ w["3.weight"].T + w["3.bias"]


def reference(
    family: str, model: AgentPS, shards: Shards, tokenizer: PreTrainedTokenizerBase, row: int
) -> list[Tensor]:
    """[question logits …, final logit] of one post by transformers' own forward."""
    asks, post = model.variant in ("agentps", "agentps_answers"), shards.posts.iloc[row]
    ids, answers = list(post[TEXT_IDS]), []
    for question in TASK.questions if asks else ():
        ids += [*tokenizer.encode(question.ask + "\n"), tokenizer.get_vocab()["<ans>"]]
        answers.append(len(ids))
    ids += tokenizer.encode(TASK.final.ask + "\n")
    arguments = families.plain_arguments(family, tokenizer, shards.images(post[FRAMES]), ids)
    states = model.base(**arguments).last_hidden_state[0, -len(ids) - 1 :]  # answers count from 1 here
    last = states[-1]
    read = [states[at] if asks else last for at in (answers or [0] * len(model.heads))]
    final = torch.cat([*read, last]) if model.variant == "agentps_answers" else last
    heads = model.heads.values()
    return [*(mlp(head, state) for head, state in zip(heads, read, strict=True)), mlp(model.final_head, final)]


def batched(model: AgentPS, batches: Batches, rows: list[int]) -> list[list[Tensor]]:
    answers = model(**batches(rows))
    return [[*(q[k] for q in answers.questions), answers.final_B[k : k + 1]] for k in range(len(rows))]


def largest_difference(left: list[list[Tensor]], right: list[list[Tensor]]) -> float:
    return max(float((a - b).abs().max()) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("repeat", [True, False], ids=["repeated", "unique"])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)], ids=["full", "lora"])
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "siglip"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_batched_logits_equal_transformers_own_forward_one_post_at_a_time(
    backbones: dict[str, BackboneSettings],
    shards: dict[tuple[str, bool], Shards],
    family: str,
    variant: Variant,
    lora: LoraSettings | None,
    repeat: bool,
) -> None:
    own = shards[family, repeat]
    model, _, batches = network(backbones[family], own, train_settings(variant=variant, lora=lora))
    perturb(model)
    model.eval()
    found = batched(model, batches, ROWS)
    tokenizer = load_tokenizer(backbones[family])
    expected = [reference(family, model, own, tokenizer, row) for row in ROWS]
    assert len(found[0]) == (len(TASK.questions) if answers_questions(variant) else 0) + 1
    assert largest_difference(found, expected) <= 1e-5
    assert largest_difference(found[:1], found[1:2]) > 1e-2, "the posts must differ, or nothing is compared"
