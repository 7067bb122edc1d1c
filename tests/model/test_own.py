"""The backbone that is made for a user's own posts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch

from model import checkpoint
from model.agentps import AgentPS
from model.backbone import load_tokenizer
from model.backbones import family_of
from model.backbones.agentps_own import OwnConfig, OwnModel
from model.data import FRAMES, TEXT_IDS, Batches, Shards, ShardWriter
from model.eyes import shifted, teach
from model.own import build_own, own_parts
from model.prompt import Prompt
from model.schema import LABEL, POST_ID, SPLIT
from model.schema import TRAIN as TRAIN_SPLIT
from model.settings import BackboneSettings, SequenceSettings, TrainSettings
from model.task import Task
from model.text import encode_post_text

SEQUENCE = SequenceSettings(
    frames=4, repeat_frames=False, frame_pooling=2, image_size=64, max_text_tokens=196, max_tokens=256
)
TRAIN = TrainSettings(
    variant="agentps_answers", seed=0, lora=None, train_projector=True, head_hidden=8, epochs=1, batch=4,
    micro_batch=4, learning_rate=1e-3, weight_decay=0.0, warmup_share=0.0, max_grad_norm=1.0, final_weight=1.0,
    saves_per_epoch=1, precision="float32", gradient_checkpointing=False,
)  # fmt: skip
#: Words that no text of the posts has.
WORDS = [
    "does", "any", "photograph", "of", "this", "album", "show", "scratches",
    "cracks", "stains", "or", "other", "visible", "wear", "underneath", "plain",
    "daylight", "whether", "somebody", "holds", "a", "handwritten", "price", "beside",
    "the", "thing", "itself", "before", "neutral", "paper", "backgrounds",
]  # fmt: skip


def question(number: int) -> dict[str, object]:
    ask = " ".join(WORDS[number : number + 15])
    return {"id": f"q{number}", "ask": f"{ask.capitalize()}?", "annotate": "Count.", "rule": "count >= 1"}


TASK = Task.model_validate(
    {
        "name": "long", "version": 1, "questions": [question(number) for number in range(5)],
        "final": {"ask": "Should a moderator take this offer down?", "classes": ["fine", "remove"],
                  "positive": "remove"},
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> BackboneSettings:
    directory = tmp_path_factory.mktemp("own") / "backbone"
    return BackboneSettings(name=str(build_own(directory, ["a red mug", "hardly used, like new"], TASK, 64)))


def test_five_questions_of_fifteen_words_leave_150_tokens_for_title_and_text(own: BackboneSettings) -> None:
    assert all(len(q.ask.split()) == 15 for q in TASK.questions)
    _, _, prompt = checkpoint.build(own, TASK, SEQUENCE, TRAIN)
    assert isinstance(prompt, Prompt)
    assert prompt.max_text_tokens >= 150


def pictures(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8))


def test_what_sees_the_pictures_is_trained_by_the_labels_of_the_posts(own: BackboneSettings) -> None:
    model, _, prompt = checkpoint.build(own, TASK, SEQUENCE, TRAIN)
    model.train()
    answers = model(
        **prompt.batch([[5, 6], [7]], [2, 1]),
        frame_index_BF=torch.tensor([[0, 1, -1, -1], [2, -1, -1, -1]]),
        images_UHWC=pictures(3),
        question_labels_BQ=torch.ones(2, 5, dtype=torch.long),
        final_labels_B=torch.tensor([0, 1]),
    )
    assert answers.loss_sum is not None
    answers.loss_sum.backward()
    base = model.base
    assert isinstance(base, OwnModel)
    assert all(p.requires_grad and p.grad is not None and p.grad.abs().sum() > 0 for p in base.eyes.parameters())


def test_the_states_of_the_tower_are_the_pixels_as_they_were(own: BackboneSettings) -> None:
    model, _, _ = checkpoint.build(own, TASK, SEQUENCE, TRAIN)
    model.eval()
    base, images = model.base, pictures(3)
    assert isinstance(base, OwnModel)
    pixels = model.family.normalize(images)
    seen = model.family.frame_tokens(base, model.tower_states(images))[0]
    assert torch.equal(seen, base.eyes(pixels))
    assert seen.shape == (3, 1, 96)


def test_a_picture_is_seen_mirrored_and_moved_in_training_only() -> None:
    torch.manual_seed(0)
    pixels = torch.arange(64 * 64, dtype=torch.float32).view(1, 1, 64, 64).repeat(40, 3, 1, 1)
    found = set()
    for row in shifted(pixels):
        inner = row[0, 8:-8, 8:-8]
        ways = [
            (mirrored, dy, dx)
            for mirrored in (False, True)
            for dy in range(-4, 5)
            for dx in range(-4, 5)
            if torch.equal(
                inner,
                (pixels[0, 0].flip(1) if mirrored else pixels[0, 0])[
                    8 + dy : 56 + dy, (8 - dx if mirrored else 8 + dx) : (56 - dx if mirrored else 56 + dx)
                ],
            )
        ]
        assert len(ways) == 1, "each is the whole picture, mirrored or not, moved by a whole number of pixels"
        found.add(ways[0])
    assert len(found) > 20
    assert {mirrored for mirrored, _, _ in found} == {False, True}


def test_a_saved_network_answers_as_the_trained_one_and_needs_no_other_folder(
    own: BackboneSettings, tmp_path: Path
) -> None:
    model, tokenizer, prompt = checkpoint.build(own, TASK, SEQUENCE, TRAIN)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    checkpoint.save(
        tmp_path / "saved", model, tokenizer, task=TASK, sequence=SEQUENCE, train=TRAIN, backbone=own,
        embed_backbone=True, provenance={},
    )  # fmt: skip
    loaded = checkpoint.load(tmp_path / "saved")
    batch = prompt.batch([[5, 6], [7]], [2, 1])
    frames = torch.tensor([[0, 1, -1, -1], [2, -1, -1, -1]])
    model.eval()
    with torch.no_grad():
        one, two = (m(**batch, frame_index_BF=frames, images_UHWC=pictures(3)) for m in (model, loaded.model))
    assert torch.equal(one.final_B, two.final_B)


def test_the_same_posts_make_the_same_backbone(tmp_path: Path) -> None:
    made = [build_own(tmp_path / name, ["a red mug"], TASK, 64) for name in ("one", "two")]
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()


def test_a_backbone_made_before_is_read_as_it_was_and_taught_one_epoch_per_epoch(own: BackboneSettings) -> None:
    """Channels of 24, 48 and 96: the means of all, and the maxima of the last or of all."""
    config = OwnModel.from_pretrained(own.name).config
    assert OwnModel(config).eyes.out.in_features == 2 * (24 + 48 + 96)
    said = config.to_dict()
    del said["vision_config"]["all_maxima"], said["vision_config"]["lessons"]
    before = OwnModel(OwnConfig.from_dict(said))
    assert before.eyes.out.in_features == 24 + 48 + 96 + 96
    assert (family_of(config).lessons, family_of(before.config).lessons) == (1.5, 1)


def test_a_size_that_does_not_halve_three_times_is_refused_with_those_that_do() -> None:
    config, tokenizer = own_parts([], TASK, 68)
    with pytest.raises(Exception, match="image_size is 68: a multiple of 8 is expected"):
        checkpoint.check_fits(config, tokenizer, TASK, SEQUENCE.model_copy(update={"image_size": 68}))


COLOURS = {"crimson": (200, 30, 40), "navy": (30, 40, 160), "olive": (110, 120, 40)}


@pytest.fixture
def coloured(tmp_path: Path) -> tuple[AgentPS, Batches, dict[str, int]]:
    """Albums of one colour, which the title says and no label; and each colour's token."""
    texts = [f"{name} mug" for name in COLOURS]
    backbone = BackboneSettings(name=str(build_own(tmp_path / "backbone", texts * 50, TASK, 64)))
    tokenizer, rng = load_tokenizer(backbone), np.random.default_rng(0)
    tokens = {name: tokenizer.encode(name, add_special_tokens=False)[0] for name in COLOURS}
    with ShardWriter(tmp_path / "shards", SEQUENCE, "own") as writer:
        rows = []
        for number in range(96):
            name = list(COLOURS)[number % 3]
            shown = 1 + number % 4
            noise = rng.normal(0, 20, (shown, 64, 64, 3)) + COLOURS[name]
            rows.append(
                {POST_ID: str(number), SPLIT: TRAIN_SPLIT, LABEL: number // 3 % 2,
                 **dict.fromkeys(TASK.question_ids, number // 6 % 2),
                 FRAMES: [writer.add(one) for one in noise.clip(0, 255).astype(np.uint8)],
                 TEXT_IDS: encode_post_text(tokenizer, f"{name} mug", "", 24)}
            )  # fmt: skip
        writer.add_posts(pd.DataFrame(rows).astype(dict.fromkeys((LABEL, *TASK.question_ids), "Int8")))
    torch.manual_seed(0)
    model, _, prompt = checkpoint.build(backbone, TASK, SEQUENCE, TRAIN)
    return model, Batches(Shards(tmp_path / "shards"), prompt, TASK), tokens


def share_beside_their_word(model: AgentPS, tokens: dict[str, int]) -> float:
    """Of new pictures of one colour, those whose nearest word of the three is their colour's."""
    model.eval()
    rng = np.random.default_rng(1)
    words_3D = cast(torch.nn.Embedding, model.base.get_input_embeddings()).weight[list(tokens.values())]
    found = []
    for index, colour in enumerate(COLOURS.values()):
        noise = rng.normal(0, 20, (8, 64, 64, 3)) + colour
        images = torch.from_numpy(noise.clip(0, 255).astype(np.uint8))
        with torch.no_grad():
            mean_UD = model.frame_tokens(model.tower_states(images))[0].mean(1)
        found += ((mean_UD @ words_3D.T).argmax(1) == index).tolist()
    return float(np.mean(found))


def test_pictures_get_a_place_beside_the_words_of_their_titles(
    coloured: tuple[AgentPS, Batches, dict[str, int]],
) -> None:
    model, batches, tokens = coloured
    assert share_beside_their_word(model, tokens) < 0.7
    teach(model, batches, TRAIN.model_copy(update={"epochs": 21}))
    assert share_beside_their_word(model, tokens) == 1.0


def test_lessons_are_the_same_for_the_same_seed_and_teach_neither_language_model_nor_heads(
    coloured: tuple[AgentPS, Batches, dict[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    model, batches, _ = coloured
    caplog.set_level(logging.INFO)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = []
    for _ in range(2):
        model.load_state_dict(start)
        teach(model, batches, TRAIN.model_copy(update={"epochs": 3}))
        found.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert "5 epochs for what sees the pictures alone, then 3 for all" in caplog.text
    assert all(torch.equal(found[0][name], found[1][name]) for name in start)
    changed = {name for name in start if not torch.equal(start[name], found[0][name])}
    assert {name.removeprefix("backbone.").split(".")[0] for name in changed} == {"eyes", "language_model"}
    assert {name for name in changed if "language_model" in name} == {"backbone.language_model.embed_tokens.weight"}
