"""What `agentps size` says, against what is known: published sizes, measured memory and rates, real bytes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner

from benchmarks.record import table
from cli.main import main
from model import checkpoint
from model.data import Shards
from model.settings import BackboneSettings, SequenceSettings, TrainSettings
from model.task import Task, load_task
from pipelines.config import read_options
from steps.fine_tune import step
from steps.fine_tune.launch import TrainingJob
from steps.fine_tune.size import DEVICES, H200, Device, Work, config_of, too_large, work
from steps.paths import REPOSITORY
from steps.settings import TrainingSettings, load_settings
from tests.support.families import write
from tests.support.tiny import TASK, train_settings

#: Parameters by the hub's pages, with the language-model head where it is no copy of the embedding (it is left out
#: here); and its rows and columns.
PUBLISHED = {
    "smolvlm2-256m": (256_484_928, 49_280 * 576),
    "qwen3-vl-4b": (4_437_815_808, 0),
    "llava-ov-0.5b": (894e6, 0),
    "llava-ov-7b": (8.03e9, 152_128 * 3584),
}
MEASURED = json.loads((REPOSITORY / "benchmarks" / "gpu.json").read_text(encoding="utf-8"))
IMAGES = 5.25  # of a post there


@cache
def profile(name: str) -> tuple[TrainingSettings, Task, Work]:
    settings = load_settings(read_options(REPOSITORY / "configs" / f"{name}.yaml"))
    settings = settings.model_copy(
        update={"preprocess": settings.preprocess.model_copy(update={"repeat_frames": True})}  # as it was measured
    )
    task = load_task(settings.task)
    return settings, task, work(settings.backbone, settings.preprocess, settings.fine_tune, task, IMAGES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_are_the_published_ones(name: str) -> None:
    published, head = PUBLISHED[name]
    _, _, found = profile(name)
    base = found.parameters - found.trained
    assert base + head == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_memory_and_rate_are_those_that_a_gpu_showed(name: str) -> None:
    measured, (_, _, found) = MEASURED[name]["training"], profile(name)
    assert found.memory(checkpointing=False) / 1e9 == pytest.approx(measured["peak_memory_gb"], rel=0.1)
    assert 1 / found.seconds_per_post(H200, checkpointing=False) == pytest.approx(measured["posts_per_s"], rel=0.25)


@pytest.mark.parametrize("family", ["llava_onevision", "smolvlm", "qwen3_vl"])
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_the_bytes_are_those_of_a_real_step(family: str, lora: dict[str, int] | None, tmp_path: Path) -> None:
    backbone = BackboneSettings(name=str(write(family, tmp_path / "backbone")))
    sequence = SequenceSettings(frames=3, image_size=32, max_text_tokens=40, max_tokens=120)
    train = TrainSettings.model_validate(
        {
            "variant": "agentps", "seed": 0, "lora": lora, "train_projector": False, "head_hidden": 8, "epochs": 1,
            "batch": 6, "micro_batch": 6, "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_share": 0.0,
            "max_grad_norm": 1.0, "final_weight": 1.0, "saves_per_epoch": 1, "precision": "float32",
            "gradient_checkpointing": False,
        }
    )  # fmt: skip
    sea = {"id": "sea", "ask": "The sea?", "annotate": "n", "rule": "count >= 1"}
    final = {"ask": "Good?", "classes": ["no", "yes"], "positive": "yes"}
    task = Task.model_validate({"name": "one", "version": 1, "questions": [sea], "final": final})
    found = work(backbone, sequence, train, task, 3)
    model, _, prompt = checkpoint.build(backbone, task, sequence, train)
    model.train()
    room = sequence.max_tokens - len(prompt.question_ids)
    prompt.max_text_tokens = room  # a text that fills all that there is
    batch = prompt.batch([[5] * room] * 6)
    kept: dict[int, tuple[int, object]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    images = torch.zeros(3, 32, 32, 3, dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answers = model(
            **batch, frame_index_BF=torch.tensor([[0, 1, 2]] * 6), images_UHWC=images,
            question_labels_BQ=torch.ones(6, 1, dtype=torch.long), final_labels_B=torch.ones(6, dtype=torch.long),
        )  # fmt: skip
    real = sum(size for at, (size, _) in kept.items() if at not in weights)
    assert found.tokens == batch["input_ids_BT"].shape[1]
    assert found.activations == pytest.approx(real, rel=0.15)
    assert answers.loss_sum is not None
    answers.loss_sum.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim)
    there = moments + sum(p.nbytes + (p.grad.nbytes if p.grad is not None else p.nbytes) for p in trained)
    moments_of_unused = sum(2 * p.nbytes for p in trained if p.grad is None)
    assert found.optimizer == pytest.approx(there + moments_of_unused, rel=0.01)
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    assert found.weights == pytest.approx(frozen, rel=0.01)
    averaged = work(backbone, sequence, train.model_copy(update={"ema_decay": 0.9}), task, 3)
    assert averaged.optimizer - found.optimizer == pytest.approx(sum(p.nbytes for p in trained), rel=0.01)


def test_a_training_that_cannot_fit_is_told_with_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, _, found = profile("smolvlm2-256m")
    for memory, told in ((8e9, True), (12e9, False)):
        monkeypatch.setattr(
            "steps.fine_tune.size.this_machine", lambda _, m=memory: Device("a small card", 1e14, 1e12, m)
        )
        line = too_large(found, settings.fine_tune)
        assert (line is not None) == told
        if line is not None:
            assert "about 9 GB, a small card has 8 GB: lower fine_tune.micro_batch from 8" in line


def test_fine_tune_warns_before_a_training_that_cannot_fit(
    tiny_shards: Shards, tiny_backbone: BackboneSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(step.logger, "warning", lambda line, *values: told.append(line % values))
    job = TrainingJob(
        task=TASK, train=train_settings(), backbone=tiny_backbone, resolved_backbone=tiny_backbone,
        shards=tiny_shards.root, provenance={},
    )  # fmt: skip
    for memory in (1e12, 1e6):
        monkeypatch.setattr(
            "steps.fine_tune.size.this_machine", lambda _, m=memory: Device("a small card", 1e14, 1e12, m)
        )
        step._tell_memory(job)
    assert len(told) == 1
    assert "a small card has 0 GB: lower fine_tune.micro_batch" in told[0]


@pytest.mark.parametrize(("name", "config"), [("tiny", "default"), ("own", "own-posts")])
def test_the_command_tells_of_a_backbone_that_is_made_here_without_making_it(name: str, config: str) -> None:
    path = REPOSITORY / "configs" / f"{config}.yaml"
    result = CliRunner().invoke(main, ["size", "-c", str(path), "--posts", "3000"])
    assert result.exit_code == 0, result.output
    assert f"{name}: " in result.output
    assert "3,000 posts" in result.output
    assert all(device.name in result.output for device in DEVICES)


def test_lessons_cost_a_training_step_of_what_sees_the_pictures_each() -> None:
    """By hand: five convolutions of 3 x 3 over 32, 16, 16, 8 and 8 pixels a side, and 336 numbers to 96."""
    convolutions = 32**2 * 3 * 24 + 16**2 * (24 * 48 + 48 * 48) + 8**2 * (48 * 96 + 96 * 96)
    picture = 2 * (9 * convolutions + 336 * 96)
    settings, task, taught = profile("own-posts")
    config = config_of(settings.backbone, settings.preprocess, task)
    cast(Any, config).vision_config.lessons = 0
    untaught = work(settings.backbone, settings.preprocess, settings.fine_tune, task, IMAGES, config)
    assert taught.flops - untaught.flops == pytest.approx(1.5 * 3 * IMAGES * picture)


def rows() -> list[tuple[str, ...]]:
    found = []
    for name in ("smolvlm2-256m", "llava-ov-0.5b", "qwen3-vl-4b", "llava-ov-7b"):
        settings, _, w = profile(name)
        cells = [name, f"{w.parameters / 1e9:.2f}", f"{w.trained / 1e6:.0f}", f"{w.tokens:,}"]
        cells += [f"{w.memory(checkpointing=c) / 1e9:.0f}" for c in (False, True)]
        for device in DEVICES:
            checkpointing = w.memory(checkpointing=False) > device.memory
            room = w.memory(checkpointing=checkpointing) <= device.memory
            hours = 10_000 * settings.fine_tune.epochs * w.seconds_per_post(device, checkpointing=checkpointing) / 3600
            cells.append(f"{hours:.1f}{'*' if checkpointing else ''}" if room else "no room")
        found.append(tuple(cells))
    return found


def test_the_table_of_the_docs_is_what_the_code_says() -> None:
    header = ["profile", "billion parameters", "million trained", "tokens per post", "GB", "GB*"]
    header += [device.name for device in DEVICES]
    page = (REPOSITORY / "docs" / "size.md").read_text(encoding="utf-8")
    assert table(header, rows()) in page, table(header, rows())
