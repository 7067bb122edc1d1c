"""Every family of backbones against a plain use of transformers' own classes, one post at a time."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, SmolVLMModel

from model import checkpoint
from model.agentps import AgentPS
from model.backbone import load_backbone, load_config, load_tokenizer
from model.backbones import family_of, is_known, names
from model.data import FRAMES, TEXT_IDS, Shards
from model.device import best_device
from model.errors import AgentPSError, ConfigError
from model.loss import task_loss
from model.reader import PostReader, raw_post
from model.settings import BackboneSettings, LoraSettings, PostLimits, Variant, answers_questions
from model.text import encode_post_text
from model.tower_cache import tower_cache
from model.train import fit
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
    """agentps_own is of nobody else: there is no other class to compare it with."""
    assert names() == ["agentps_own", *FAMILIES]
    assert all(is_known(name) for name in FAMILIES)


@pytest.mark.parametrize("name", ["_qwen_vl", "llava", "..errors", "qwen3_vl.", "os", "", None, ["qwen3_vl"]])
def test_what_is_no_family_is_known_as_none(name: object) -> None:
    assert not is_known(name)


def perturb(model: AgentPS) -> None:
    """Away from where training begins: LoRA's B is zero there."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def on(model: AgentPS, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where the network is: where there is a GPU, it is compared there."""
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


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
    states = model.base(**on(model, arguments)).last_hidden_state[0, -len(ids) - 1 :]  # answers count from 1 here
    last = states[-1]
    read = [states[at] if asks else last for at in (answers or [0] * len(model.heads))]
    final = torch.cat([*read, last]) if model.variant == "agentps_answers" else last
    heads = model.heads.values()
    return [*(mlp(head, state) for head, state in zip(heads, read, strict=True)), mlp(model.final_head, final)]


def batched(model: AgentPS, batches: Callable[[list[int]], dict[str, Tensor]], rows: list[int]) -> list[list[Tensor]]:
    answers = model(**on(model, batches(rows)))
    return [[*(q[k] for q in answers.questions), answers.final_B[k : k + 1]] for k in range(len(rows))]


def largest_difference(left: list[list[Tensor]], right: list[list[Tensor]]) -> float:
    pairs = (pair for x, y in zip(left, right, strict=True) for pair in zip(x, y, strict=True))
    return max(float((a.detach().cpu() - b.detach().cpu()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize(
    ("lora", "repeat"), [(None, True), (LoraSettings(rank=4, alpha=8), False)], ids=["full repeated", "lora unique"]
)
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
    model.eval().to(best_device())
    found = batched(model, batches, ROWS)
    tokenizer = load_tokenizer(backbones[family])
    expected = [reference(family, model, own, tokenizer, row) for row in ROWS]
    assert len(found[0]) == (len(TASK.questions) if answers_questions(variant) else 0) + 1
    assert largest_difference(found, expected) <= 1e-5
    assert largest_difference(found[:1], found[1:2]) > 1e-2, "the posts must differ, or nothing is compared"


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4, alpha=8)], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_transformers_own_forward_one_post_at_a_time(
    backbones: dict[str, BackboneSettings],
    shards: dict[tuple[str, bool], Shards],
    family: str,
    lora: LoraSettings | None,
) -> None:
    """Through tower's projector, all layers and heads; and what is frozen has none."""
    own = shards[family, False]
    model, _, batches = network(backbones[family], own, train_settings(variant="agentps_answers", lora=lora))
    perturb(model)
    model.to(best_device())
    batch = on(model, batches(ROWS))
    model(**batch).loss_sum.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    tokenizer = load_tokenizer(backbones[family])
    weights = [question.weight for question in TASK.questions]
    for place, row in enumerate(ROWS):
        *questions, final = (logits[None] for logits in reference(family, model, own, tokenizer, row))
        labels = (batch["question_labels_BQ"][place, None], batch["final_labels_B"][place, None])
        task_loss(questions, labels[0], weights, final[0], labels[1], 1.0)[0].backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == trained, "every part that is trained matters to the answers"
    for name, parameter in model.named_parameters():
        if name in trained:
            assert parameter.grad is not None
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: n + m)
    assert not any(name.startswith(f"backbone.{model.family.tower}.blocks") for name in trained)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_network_that_is_saved_and_loaded_gives_the_same_scores_of_raw_posts(
    backbones: dict[str, BackboneSettings], shards: dict[tuple[str, bool], Shards], family: str, tmp_path: Path
) -> None:
    """Trained by LoRA; the backbone travels in the checkpoint; the posts come as files of images and as texts."""
    own, backbone = copy.copy(shards[family, False]), backbones[family]
    tokenizer, limits = load_tokenizer(backbone), own.sequence.max_text_tokens
    text_ids = encode_post_text(tokenizer, "a walk", "along the sea", limits)
    own.posts = own.posts.assign(**{TEXT_IDS: [text_ids] * len(own.posts)})
    train = train_settings(variant="agentps_answers", lora=LoraSettings(rank=4, alpha=8), epochs=1)
    model, _, batches = network(backbone, own, train)
    before = batched(model.eval(), batches, ROWS)
    fit(model, batches, train, tmp_path / "work", quiet=True)
    trained = batched(model.eval(), batches, ROWS)
    assert largest_difference(before, trained) > 1e-3
    checkpoint.save(
        tmp_path / "checkpoint",
        model,
        tokenizer,
        task=TASK,
        sequence=own.sequence,
        train=train,
        backbone=backbone,
        embed_backbone=True,
        provenance={},
    )
    loaded = checkpoint.load(tmp_path / "checkpoint")
    albums = [[png(image) for image in own.images(own.posts[FRAMES][row])] for row in ROWS]
    raw = [raw_post({"title": "a walk", "text": "along the sea", "images": album}, PostLimits()) for album in albums]
    reader, read = PostReader(loaded, seen_bytes=0), {}
    batch = reader.batch(raw, [reader.album(post, read) for post in raw], read)
    with torch.no_grad():
        again = batched(loaded.model, lambda _: batch, ROWS)
    assert largest_difference(trained, again) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_states_of_the_tower_that_were_kept_give_the_same_answers(
    backbones: dict[str, BackboneSettings], shards: dict[tuple[str, bool], Shards], family: str, tmp_path: Path
) -> None:
    own = shards[family, False]
    model, _, batches = network(backbones[family], own, train_settings())
    computed = batched(model.eval(), batches, ROWS)
    numbers, _ = batches.images(np.arange(len(own.posts)))
    batches.tower_cache = tower_cache(model, own, numbers, tmp_path / "states", reads=1e9)
    assert batches.tower_cache is not None
    assert "images_UHWC" not in batches(ROWS)
    assert largest_difference(batched(model, batches, ROWS), computed) <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hubs_files_hold_each_weight_and_no_other(backbones: dict[str, BackboneSettings], family: str) -> None:
    backbone = backbones[family]
    whole = families.REAL[family].whole_class.from_pretrained(backbone.name).model
    model, report = family_of(whole.config).model_class.from_pretrained(backbone.name, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert {key.rpartition("lm_head")[1] for key in report["unexpected_keys"]} <= {"lm_head"}
    loaded = load_backbone(backbone, load_tokenizer(backbone), torch.float32).state_dict()
    expected = whole.state_dict()
    assert loaded.keys() == expected.keys() == model.state_dict().keys()
    for name, tensor in expected.items():  # the embedding has grown by the row of <ans>
        assert torch.equal(loaded[name][: len(tensor)], tensor), name


def changed(backbone: BackboneSettings, folder: Path, file: str, content: Any) -> BackboneSettings:
    """The backbone with another file of this name; None: without it."""
    shutil.copytree(backbone.name, folder)
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return BackboneSettings(name=str(folder))


def test_a_config_without_a_mapping_for_the_language_model_is_read(
    backbones: dict[str, BackboneSettings], tmp_path: Path
) -> None:
    """The published files of Qwen2.5-VL are of this older form."""
    nested = json.loads((Path(backbones["qwen2_5_vl"].name) / "config.json").read_text())
    text = nested.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {**text, **nested, "rope_theta": rope["rope_theta"]}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    del flat["layer_types"]
    older = changed(backbones["qwen2_5_vl"], tmp_path / "older", "config.json", flat)
    torch.manual_seed(0)  # for the row of <ans>
    model = load_backbone(older, load_tokenizer(older), torch.float32)
    torch.manual_seed(0)
    expected = load_backbone(backbones["qwen2_5_vl"], load_tokenizer(older), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert model.config.text_config.rope_parameters == {**expected.config.text_config.rope_parameters, "type": "mrope"}


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_pixels_are_scaled_as_the_checkpoints_own_preprocessor_says(
    backbones: dict[str, BackboneSettings], tmp_path: Path, file: str
) -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 0.2]
    scale = {"image_mean": mean, "image_std": std}
    own = backbones["qwen3_vl"]
    bare = changed(own, tmp_path / "bare", "preprocessor_config.json", None)
    said = changed(bare, tmp_path / "said", file, {"image_processor": scale} if file[:11] == "processor_c" else scale)
    pixels = torch.tensor([255, 51, 0], dtype=torch.uint8).view(1, 1, 1, 3)
    for backbone, expected in ((own, [1.0, -0.6, -1.0]), (bare, [1.0, -0.6, -1.0]), (said, [1.8, 0.0, -1.5])):
        config = load_backbone(backbone, load_tokenizer(backbone), torch.float32).config
        torch.testing.assert_close(family_of(config).normalize(pixels).flatten(), torch.tensor(expected))
    prints = [checkpoint._architecture_fingerprint(backbone) for backbone in (own, bare, said)]
    assert prints[0] == prints[1] != prints[2], "a checkpoint is refused on a backbone that reads pixels differently"


@pytest.mark.parametrize("values", [[0.5, 0.5], "0.5", [0.5, 0.0, 0.5], [True, True, True]])
def test_a_preprocessor_without_a_scale_is_refused(
    backbones: dict[str, BackboneSettings], tmp_path: Path, values: object
) -> None:
    broken = changed(backbones["smolvlm"], tmp_path / "broken", "preprocessor_config.json", {"image_std": values})
    with pytest.raises(ConfigError, match=r"preprocessor_config.json: image_std: three numbers"):
        load_config(broken)


@pytest.mark.parametrize(
    ("family", "size", "said"),
    [
        ("llava_onevision", 64, "the tower of the backbone reads 32"),
        ("smolvlm", 40, "reads 32, and"),
        ("smolvlm", 20, "multiples of 8"),
        ("qwen2_5_vl", 24, "multiples of 16"),
        ("qwen3_vl", 20, "multiples of 8"),
    ],
)
def test_a_frame_of_a_size_that_cannot_be_read_is_refused(
    backbones: dict[str, BackboneSettings], family: str, size: int, said: str
) -> None:
    backbone = backbones[family]
    sequence = SEQUENCE.model_copy(update={"image_size": size})
    with pytest.raises(ConfigError, match=said):
        checkpoint.check_fits(load_config(backbone), load_tokenizer(backbone), TASK, sequence)


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_may_be_pooled_once_more(
    backbones: dict[str, BackboneSettings], shards: dict[tuple[str, bool], Shards], family: str
) -> None:
    """A quarter of a frame's 16 tokens; what follows them, positions too, goes on behind the fewer."""
    own = copy.copy(shards[family, False])
    own.sequence = own.sequence.model_copy(update={"frame_pooling": 4})
    model, prompt, batches = network(backbones[family], own, train_settings())
    plain, _, _ = network(backbones[family], shards[family, False], train_settings())
    around = len(families.REAL[family].frame) - 16
    assert len(prompt.visual_ids) == own.sequence.frames * (4 + around) + families.REAL[family].newline
    batch = batches(ROWS)
    states = model.tower_states(batch["images_UHWC"])
    for pooled, whole in zip(model.frame_tokens(states), plain.frame_tokens(states), strict=True):
        expected = whole.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
    model(**batch).loss_sum.backward()


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_and_checkpointing_of_activations_train(
    backbones: dict[str, BackboneSettings], shards: dict[tuple[str, bool], Shards], family: str
) -> None:
    gradients = []
    for checkpointing, precision in ((False, "float32"), (True, "float32"), (True, "bfloat16")):
        settings = train_settings(lora=LoraSettings(rank=4, alpha=8), precision=precision)
        model, _, batches = network(backbones[family], shards[family, True], settings)
        if checkpointing:
            model.language_model.activation_checkpointing_enable()
        model.train()(**batches(ROWS)).loss_sum.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
    assert gradients[2].keys() == gradients[0].keys()
    assert all(torch.isfinite(gradient).all() for gradient in gradients[2].values())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_baseline_without_a_language_model_reads_means_of_states_and_words(
    backbones: dict[str, BackboneSettings], shards: dict[tuple[str, bool], Shards], family: str
) -> None:
    own = shards[family, False]
    model, _, batches = network(backbones[family], own, train_settings(variant="siglip"))
    found = batched(model.eval(), batches, ROWS)
    tokenizer = load_tokenizer(backbones[family])
    for row, answers in zip(ROWS, found, strict=True):
        post = own.posts.iloc[row]
        ids = [*post[TEXT_IDS], *tokenizer.encode(TASK.final.ask + "\n")]
        words = model.base.get_input_embeddings()(torch.tensor(ids)).mean(0)
        images = torch.from_numpy(own.images(post[FRAMES]))
        states = torch.cat([model.tower_states(image[None]) for image in images]).mean((0, 1))
        assert (mlp(model.final_head, torch.cat([states, words])) - answers[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_in_4_bits_are_the_linear_layers_of_the_language_model_and_no_other(
    backbones: dict[str, BackboneSettings], family: str
) -> None:
    backbone = backbones[family].model_copy(update={"quantization": "nf4"})
    model = load_backbone(backbone, load_tokenizer(backbone), torch.float32)
    layers = f"{family_of(model.config).language_model}.layers."
    found = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert found == {name for name in linear if name.startswith(layers)}
    assert len(found) == 4 * 7


@torch.no_grad()
def test_a_last_part_of_a_patch_is_not_read() -> None:
    """SmolVLM2 2.2B reads frames of 384 pixels in patches of 14: 27 of them, and 6 pixels that are left."""
    config = families.REAL["smolvlm"].config(64, 3)
    config.vision_config.patch_size, config.scale_factor = 5, 3  # 32 pixels: 6 patches and 2 pixels
    model, family = SmolVLMModel(config), family_of(config)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    pixels = family.normalize(images)
    (found,) = family.frame_tokens(model, family.tower_states(model, pixels))
    assert found.shape == (2, family.side(32) ** 2, 32) == (2, 4, 32)
    expected = model.get_image_features(pixels[None], return_dict=True).pooler_output
    torch.testing.assert_close(found.flatten(0, 1), torch.cat(list(expected)))


@pytest.mark.parametrize(
    ("family", "part", "key", "value", "said"),
    [
        ("qwen3_vl", "vision_config", "deepstack_visual_indexes", [0, 9], "of a tower of 4 layers"),
        ("qwen3_vl", "vision_config", "deepstack_visual_indexes", [2, 0], r"deepstack_visual_indexes \[2, 0\]"),
        ("qwen3_vl", "vision_config", "patch_size", [4, 4], "cannot be"),
        ("qwen3_vl", "vision_config", "depth", 10**6, r"vision_config\.depth: a whole number"),
        ("qwen3_vl", "vision_config", "spatial_merge_size", 0, "spatial_merge_size: a whole number"),
        ("qwen2_5_vl", "vision_config", "window_size", 7, "multiples of 0 pixels"),
        ("qwen2_5_vl", "text_config", "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}, "mrope_section"),
        ("qwen2_5_vl", "text_config", "head_dim", 0, "head_dim: a whole number"),
        ("qwen2_5_vl", "vision_config", "out_hidden_size", 64, "have another shape than config.json says"),
        ("smolvlm", "vision_config", "image_size", [32, 32], "no network can be made|cannot be used"),
        ("smolvlm", "text_config", "model_type", "mistral", "language model is mistral"),
        ("smolvlm", "text_config", "num_hidden_layers", 6, "no weights for"),
        ("smolvlm", "text_config", "num_hidden_layers", 2, "weights of layers that config.json does not have"),
        ("qwen3_vl", "vision_config", "depth", 3, "weights of layers that config.json does not have"),
    ],
)
def test_a_config_that_is_not_the_weights_own_is_one_line(
    backbones: dict[str, BackboneSettings], tmp_path: Path, family: str, part: str, key: str, value: Any, said: str
) -> None:
    own = backbones[family]
    config = json.loads((Path(own.name) / "config.json").read_text())
    config[part][key] = value
    broken = changed(own, tmp_path / "broken", "config.json", config)
    with pytest.raises(AgentPSError, match=said) as caught:
        load_backbone(broken, load_tokenizer(broken), torch.float32)
    assert "\n" not in str(caught.value)
    assert str(broken.name) in str(caught.value)
