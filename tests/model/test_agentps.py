"""The network against an independent, slow reading of the same posts by transformers' own forward."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionModel, SiglipVisionConfig

from model.agentps import AgentPS
from model.backbone import load_tokenizer
from model.backbones.llava_onevision import LlavaOnevision
from model.data import FRAMES, TEXT_IDS, Batches, Shards
from model.schema import NO_FRAME
from model.settings import BackboneSettings, LoraSettings, SequenceSettings, Variant, answers_questions
from model.task import Task
from tests.support.tiny import SEQUENCE, TASK, network, train_settings

VARIANTS: tuple[Variant, ...] = get_args(Variant)
ROWS = [3, 0, 17, 48, 5]  # posts of 4, 1, 6, 1 and 6 images, and of texts of different lengths
NO_QUESTIONS = Task(name="plain", version=1, final=TASK.final)


def perturb(model: AgentPS) -> None:
    """Away from where training begins: LoRA's B is zero there, and biases too."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def mlp(head: nn.Module, state: Tensor) -> Tensor:
    """The head by hand: a linear layer, GELU, a linear layer."""
    w = dict(head.named_parameters())
    hidden = torch.nn.functional.gelu(state @ w["0.weight"].T + w["0.bias"])
    return hidden @ w["3.weight"].T + w["3.bias"]


@torch.no_grad()
def reference(model: AgentPS, shards: Shards, backbone: BackboneSettings, row: int, task: Task) -> list[Tensor]:
    """[question logits …, final logit] of one post: every frame through the tower, no padding, one forward."""
    tokenizer = load_tokenizer(backbone)
    asks = model.variant in ("agentps", "agentps_answers")
    post = shards.posts.iloc[row]
    vocabulary = tokenizer.get_vocab()
    visual = len(post[FRAMES]) * (SEQUENCE.image_size // 8 // 2) ** 2 + 1
    ids = [vocabulary["<video>"]] * visual + list(post[TEXT_IDS])
    answers = []
    for question in task.questions if asks else ():
        ids += [*tokenizer.encode(question.ask + "\n"), vocabulary["<ans>"]]
        answers.append(len(ids) - 1)
    ids += tokenizer.encode(task.final.ask + "\n")
    pixels = torch.from_numpy(shards.images(post[FRAMES])).permute(0, 3, 1, 2)[None].float() / 255
    llava: LlavaOnevisionModel = model.base
    if model.variant == "siglip":
        tower = llava.vision_tower((pixels[0] - 0.5) / 0.5, output_hidden_states=True).hidden_states[-1]
        words = llava.get_input_embeddings()(torch.tensor([id_ for id_ in ids if id_ != vocabulary["<video>"]]))
        return [mlp(model.final_head, torch.cat([tower.mean((0, 1)), words.mean(0)]))]
    states = llava(input_ids=torch.tensor([ids]), pixel_values_videos=(pixels - 0.5) / 0.5).last_hidden_state[0]
    last = states[-1]
    read = [states[at] if asks else last for at in (answers or [0] * len(model.heads))]
    final = torch.cat([*read, last]) if model.variant == "agentps_answers" else last
    heads = model.heads.values()
    return [*(mlp(head, state) for head, state in zip(heads, read, strict=True)), mlp(model.final_head, final)]


@torch.no_grad()
def batched(model: AgentPS, batches: Batches, rows: Sequence[int]) -> list[list[Tensor]]:
    """The module's own answers in one batch, as one list a post."""
    model.eval()
    answers = model(**batches(rows))
    return [[*(q[k] for q in answers.questions), answers.final_B[k : k + 1]] for k in range(len(rows))]


def largest_difference(left: list[list[Tensor]], right: list[list[Tensor]]) -> float:
    return max(float((a - b).abs().max()) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)], ids=["full", "lora"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", [TASK, NO_QUESTIONS], ids=["three questions", "no question"])
@pytest.mark.parametrize("frames", ["tiny_shards", "unique_shards"])
def test_batched_logits_equal_transformers_own_forward_one_post_at_a_time(
    tiny_backbone: BackboneSettings,
    frames: str,
    variant: Variant,
    lora: LoraSettings | None,
    task: Task,
    request: pytest.FixtureRequest,
) -> None:
    shards: Shards = request.getfixturevalue(frames)
    model, _, batches = network(tiny_backbone, shards, train_settings(variant=variant, lora=lora), task)
    perturb(model)
    found = batched(model, batches, ROWS)
    expected = [reference(model, shards, tiny_backbone, row, task) for row in ROWS]
    n_heads = len(task.questions) if answers_questions(variant) else 0
    assert [len(answers) for answers in found] == [n_heads + 1] * len(ROWS)
    if n_heads:
        assert [answer.numel() for answer in found[0]] == [2, 3, 2, 1]
    assert largest_difference(found, expected) <= 1e-5
    assert largest_difference(found[:1], found[1:2]) > 1e-3, "the posts must differ, or nothing is compared"


@pytest.fixture(scope="module")
def perturbed(tiny_backbone: BackboneSettings, tiny_shards: Shards) -> tuple[AgentPS, Batches]:
    model, _, batches = network(tiny_backbone, tiny_shards, train_settings(variant="agentps_answers"))
    perturb(model)
    return model, batches


def test_answers_are_equal_to_the_last_bit_whatever_other_posts_are_in_the_batch_and_in_any_order(
    perturbed: tuple[AgentPS, Batches],
) -> None:
    model, batches = perturbed
    together = batched(model, batches, ROWS)
    for size in (1, 2, 3, 5):
        parts = [ROWS[k : k + size] for k in range(0, len(ROWS), size)]
        assert (
            largest_difference(together, [answers for part in parts for answers in batched(model, batches, part)]) == 0
        )
    assert largest_difference(together, batched(model, batches, ROWS[::-1])[::-1]) == 0


def test_a_distinct_image_passes_the_tower_once_a_batch(
    perturbed: tuple[AgentPS, Batches], tiny_shards: Shards
) -> None:
    _, batches = perturbed
    batch = batches([0, 0, 3])  # the post of one image twice, and one of four images
    assert len(batch["images_UHWC"]) == 5
    assert batch["frame_index_BF"][0].tolist() == [0] * SEQUENCE.frames
    assert torch.equal(batch["frame_index_BF"][0], batch["frame_index_BF"][1])


def test_an_album_read_once_has_no_more_tokens_than_images(
    tiny_backbone: BackboneSettings, unique_shards: Shards
) -> None:
    _, prompt, batches = network(tiny_backbone, unique_shards, train_settings())
    batch = batches([0, 3, 5])  # of one, four and six images, of which four are read
    assert batch["frame_index_BF"].ne(NO_FRAME).sum(1).tolist() == [1, 4, 4]
    per_frame = (len(prompt.visual_ids) - 1) // SEQUENCE.frames
    placeholders = (batch["input_ids_BT"] == prompt.visual_ids[0]).sum(1)
    assert placeholders.tolist() == [n * per_frame + 1 for n in (1, 4, 4)]


def test_gradients_of_albums_of_different_sizes_are_those_of_one_post_at_a_time(
    tiny_backbone: BackboneSettings, unique_shards: Shards
) -> None:
    model, _, batches = network(tiny_backbone, unique_shards, train_settings())
    model(**batches(ROWS)).loss_sum.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row in ROWS:  # alone, no place of a frame is empty in the batch of a post of four
        model(**batches([row])).loss_sum.backward()
    for name, parameter in model.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)
    assert any("multi_modal_projector" in name and grad.abs().max() > 0 for name, grad in found.items())


def test_an_earlier_answer_does_not_see_a_later_question(tiny_backbone: BackboneSettings, tiny_shards: Shards) -> None:
    first = TASK.model_copy(update={"questions": TASK.questions[:1]})
    settings = train_settings()
    whole, _, batches = network(tiny_backbone, tiny_shards, settings)
    short, _, short_batches = network(tiny_backbone, tiny_shards, settings, first)
    short.heads.load_state_dict({k: v for k, v in whole.heads.state_dict().items() if k.startswith("bright.")})
    left = [[answers[0]] for answers in batched(whole, batches, ROWS)]
    right = [[answers[0]] for answers in batched(short, short_batches, ROWS)]
    assert largest_difference(left, right) <= 1e-5


def test_pixels_are_scaled_to_minus_one_to_one() -> None:
    family = LlavaOnevision(LlavaOnevisionConfig())
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert torch.allclose(family.normalize(image).flatten(), torch.tensor([-1.0, -0.6, 1.0]))
    assert family.normalize(torch.zeros((2, 4, 6, 3), dtype=torch.uint8)).shape == (2, 3, 4, 6)


def test_what_is_trained_by_lora_is_the_blocks_seven_layers_the_row_of_ans_the_projector_and_the_heads(
    tiny_backbone: BackboneSettings, tiny_shards: Shards
) -> None:
    model, _, _ = network(tiny_backbone, tiny_shards, train_settings(lora=LoraSettings(rank=4, alpha=8)))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = len(model.language_model.layers)
    assert sum("lora_A" in name for name in names) == sum("lora_B" in name for name in names) == 7 * layers
    rest = [name for name in names if "lora_" not in name]
    tokens = [p for n, p in model.named_parameters() if p.requires_grad and "trainable_tokens" in n]
    assert [p.shape[0] for p in tokens] == [1]
    rest = [name for name in rest if "trainable_tokens" not in name]
    assert all(name.startswith(("heads.", "final_head.")) or "multi_modal_projector" in name for name in rest)
    assert not any("vision_tower" in name for name in names)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)], ids=["full", "lora"])
def test_the_tower_never_gets_a_gradient(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, lora: LoraSettings | None
) -> None:
    model, _, batches = network(tiny_backbone, tiny_shards, train_settings(lora=lora))
    perturb(model)
    model(**batches(ROWS)).loss_sum.backward()
    assert all(parameter.grad is None for parameter in model.tower.parameters())
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)], ids=["full", "lora"])
def test_bfloat16_trains_float32_weights_and_answers_nearly_the_same(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, lora: LoraSettings | None
) -> None:
    single, _, batches = network(tiny_backbone, tiny_shards, train_settings(lora=lora))
    half, _, _ = network(tiny_backbone, tiny_shards, train_settings(lora=lora, precision="bfloat16"))
    half.load_state_dict(single.state_dict())
    assert next(half.tower.parameters()).dtype == torch.bfloat16
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    for answers in batched(half, batches, ROWS):
        assert {answer.dtype for answer in answers} == {torch.float32}
    # 8 bits of a bfloat16: 0.4 % a rounding, on logits below 1
    assert largest_difference(batched(single, batches, ROWS), batched(half, batches, ROWS)) < 0.05
    half(**batches(ROWS)).loss_sum.backward()


def test_inputs_that_are_not_cast_for_the_adapter_change_no_bit(
    tiny_backbone: BackboneSettings, tiny_shards: Shards
) -> None:
    found: list[dict[str, Tensor]] = []
    for cast in (False, True):
        settings = train_settings(lora=LoraSettings(rank=4, alpha=8), precision="bfloat16")
        model, _, batches = network(tiny_backbone, tiny_shards, settings)
        perturb(model)
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        assert {layer.cast_input_dtype_enabled for layer in layers} == {False}
        for layer in layers:
            layer.cast_input_dtype_enabled = cast
        loss = model(**batches(ROWS)).loss_sum
        loss.backward()
        found.append({"loss": loss} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_gradient_checkpointing_changes_no_gradient(tiny_backbone: BackboneSettings, tiny_shards: Shards) -> None:
    gradients: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        model, _, batches = network(tiny_backbone, tiny_shards, train_settings(lora=LoraSettings(rank=4, alpha=8)))
        perturb(model)
        if checkpointing:
            model.language_model.activation_checkpointing_enable()
        model.train()
        model(**batches(ROWS)).loss_sum.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("pooling", "side"), [(2, 14), (4, 7), (8, 4)])
def test_the_grid_is_pooled_two_by_two_and_rounded_up(pooling: Literal[2, 4, 8], side: int) -> None:
    family = LlavaOnevision(LlavaOnevisionConfig(vision_config=SiglipVisionConfig(image_size=384, patch_size=14)))
    sequence = SequenceSettings(frames=16, image_size=384, max_text_tokens=196, max_tokens=256, frame_pooling=pooling)
    assert family.grid(sequence) == side  # of 27 x 27 patches
    assert family.visual_tokens(sequence) == 16 * side**2 + 1


def pooled(shards: Shards, pooling: Literal[2, 4]) -> Shards:
    other = copy.copy(shards)
    other.sequence = SEQUENCE.model_copy(update={"frame_pooling": pooling})
    return other


def test_a_frame_pooled_to_one_token_is_the_mean_of_its_patches(
    tiny_backbone: BackboneSettings, tiny_shards: Shards
) -> None:
    model, _, batches = network(tiny_backbone, pooled(tiny_shards, 4), train_settings())
    assert (model.config.vision_config.image_size, model.config.vision_config.patch_size) == (32, 8)  # 4 x 4 patches
    batch = batches(ROWS)
    with torch.no_grad():
        states_UPW = model.tower_states(batch["images_UHWC"])
        expected = model.base.multi_modal_projector(states_UPW).mean(1, keepdim=True)
        torch.testing.assert_close(model.frame_tokens(states_UPW), [expected], rtol=1e-5, atol=1e-6)
    assert (batch["input_ids_BT"] == model.config.video_token_id).sum(1).tolist() == [SEQUENCE.frames + 1] * len(ROWS)
    model(**batch).loss_sum.backward()


def test_pooling_takes_its_part_of_the_tokens_and_changes_the_answers(
    tiny_backbone: BackboneSettings, tiny_shards: Shards
) -> None:
    """Of the same weights: text and answers stand where the fewer visual tokens end."""
    found = []
    for pooling in (2, 4):
        torch.manual_seed(0)
        model, _, batches = network(tiny_backbone, pooled(tiny_shards, pooling), train_settings())
        batch = batches(ROWS)
        with torch.no_grad():
            found.append((model.eval()(**batch).final_B, batch["answer_positions_BA"]))
    assert torch.equal(found[0][1] - found[1][1], torch.full_like(found[0][1], SEQUENCE.frames * 3))
    assert (found[0][0] - found[1][0]).abs().min() > 1e-4
