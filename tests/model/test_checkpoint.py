from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import checkpoint, checkpoint_info
from model.agentps import AgentPS
from model.backbone import load_backbone, load_config, load_tokenizer
from model.data import Batches, Shards
from model.errors import CheckpointError, ConfigError, PromptError
from model.metrics import Calibration, OperatingPoint
from model.settings import BackboneSettings, LoraSettings, TrainSettings
from steps.paths import REPOSITORY
from tests.support.tiny import SEQUENCE, TASK, network, train_settings

ROWS = [0, 3, 17]
LORA = LoraSettings(rank=4, alpha=8)


def one_optimizer_step(model: AgentPS, batches: Batches) -> None:
    """After it LoRA's B is no longer zero, so that an adapter that is not loaded would show."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**batches(list(range(16)))).loss_sum.backward()
    optimizer.step()


def save(directory: Path, model: AgentPS, train: TrainSettings, backbone: BackboneSettings, *, embed: bool) -> Path:
    checkpoint.save(
        directory,
        model,
        load_tokenizer(backbone),
        task=TASK,
        sequence=SEQUENCE,
        train=train,
        backbone=backbone,
        embed_backbone=embed,
        provenance={"data": "abc"},
    )
    return directory


def logits(model: AgentPS, batches: Batches) -> list[torch.Tensor]:
    model.eval()
    with torch.no_grad():
        answers = model(**batches(ROWS))
    return [*answers.questions, answers.final_B]


@pytest.mark.parametrize("embed", [True, False], ids=["with backbone", "backbone by name"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_loaded_checkpoint_gives_the_same_logits(
    tiny_backbone: BackboneSettings,
    tiny_shards: Shards,
    tmp_path: Path,
    lora: LoraSettings | None,
    precision: str,
    embed: bool,
) -> None:
    settings = train_settings(variant="agentps_answers", lora=lora, precision=precision)
    model, _, batches = network(tiny_backbone, tiny_shards, settings)
    fresh = logits(model, batches)
    one_optimizer_step(model, batches)
    trained = logits(model, batches)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(fresh, trained, strict=True))
    loaded = checkpoint.load(save(tmp_path / "checkpoint", model, settings, tiny_backbone, embed=embed))
    again = logits(loaded.model, Batches(tiny_shards, loaded.prompt, TASK))
    # Merged into float32 weights, an adapter's part is added before the product and no more after it.
    tolerance = 1e-5 if lora and precision == "float32" else 0.0
    for a, b in zip(trained, again, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=tolerance)
    assert loaded.info.task == TASK
    assert loaded.info.provenance == {"data": "abc"}
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"], "nothing half-written is left"


@pytest.fixture(scope="module")
def saved(tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = train_settings(lora=LORA)
    model, _, batches = network(tiny_backbone, tiny_shards, settings)
    one_optimizer_step(model, batches)
    return save(tmp_path_factory.mktemp("saved") / "checkpoint", model, settings, tiny_backbone, embed=True)


def edit_info(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / "checkpoint.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def edit_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / name)
        change(tensors)
        save_file(tensors, directory / name)

    return apply


def other_backbone(directory: Path) -> None:
    path = directory / "backbone" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["rope_parameters"] = {"rope_theta": 5.0, "rope_type": "default"}
    path.write_text(json.dumps(config))


def other_task(directory: Path) -> None:
    path = directory / "checkpoint.json"
    info = json.loads(path.read_text())
    info["task"]["questions"][0]["ask"] = "Dark?"
    path.write_text(json.dumps(info))


def first_adapter_tensor(tensors: dict[str, torch.Tensor]) -> object:
    return tensors.pop(next(name for name in sorted(tensors) if "lora_B" in name))


def empty_vocabulary(directory: Path) -> None:
    path = directory / "tokenizer" / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"] |= {"vocab": {}, "merges": []}
    path.write_text(json.dumps(raw))


HEAD = "heads.kind.3.weight"
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "checkpoint.json").unlink(), r"no checkpoint\.json: this is no checkpoint"),
        (lambda d: (d / "checkpoint.json").write_text("{"), r"the checkpoint is damaged"),
        (lambda d: (d / "trained.safetensors").unlink(), r"a part of the checkpoint is missing"),
        (
            lambda d: (d / "trained.safetensors").write_bytes(b"short"),
            r"a part of the checkpoint is missing or damaged",
        ),
        (lambda d: (d / ADAPTER).unlink(), r"a part of the checkpoint is missing"),
        (lambda d: shutil.rmtree(d / "adapter"), r"a part of the checkpoint is missing"),
        (lambda d: shutil.rmtree(d / "tokenizer"), r"its tokenizer is missing or damaged"),
        (edit_tensors("trained.safetensors", lambda t: t.pop(HEAD)), rf"missing \['{HEAD}'\], unknown nothing"),
        (
            edit_tensors("trained.safetensors", lambda t: t.update(x=t[HEAD].clone())),
            r"missing nothing, unknown \['x'\]",
        ),
        (
            edit_tensors("trained.safetensors", lambda t: t.update({HEAD: t[HEAD][:2].contiguous()})),
            rf"{HEAD} has shape \(2, 16\), the network \(3, 16\)",
        ),
        (
            edit_tensors("trained.safetensors", lambda t: t[HEAD].view(-1)[:1].fill_(math.nan)),
            rf"{HEAD} holds numbers that are NaN or infinite",
        ),
        (
            edit_tensors(ADAPTER, lambda t: t[sorted(t)[0]].view(-1)[:1].fill_(math.inf)),
            r"holds numbers that are NaN or infinite",
        ),
        (
            edit_tensors("trained.safetensors", lambda t: t.update({HEAD: t[HEAD].int()})),
            rf"{HEAD} are numbers of type I32",
        ),
        (
            edit_tensors(ADAPTER, lambda t: t.update({name: t[name].to(torch.int8) for name in t})),
            r"are numbers of type I8",
        ),
        (
            edit_tensors(ADAPTER, lambda t: t.update({name: t[name][:1].clone() for name in t})),
            r"a part of the checkpoint is missing or damaged: .*size mismatch",
        ),
        (lambda d: (d / "checkpoint.json").write_text("[]"), r"a mapping was expected, found list"),
        (lambda d: (d / "checkpoint.json").write_bytes(b"\xff\xfe"), r"the checkpoint is damaged"),
        (
            lambda d: (d / "tokenizer" / "tokenizer.json").unlink(),
            r"tokenizer is missing or damaged: .*no tokenizer\.json",
        ),
        (empty_vocabulary, r"knows 0% of the characters of the wording 'Bright\?'"),
        (edit_tensors(ADAPTER, first_adapter_tensor), r"adapter lacks \['backbone\..*lora_B"),
        (edit_info(format=2), r"format 2, this version reads 1"),
        (edit_info(task_fingerprint="0" * 16), r"its task was changed after training"),
        (other_task, r"its task was changed after training"),
        (lambda d: (d / "adapter" / "adapter_model.bin").write_bytes(b""), r"adapter_model\.bin: a pickle"),
        (edit_info(extra=1), r"extra: unknown key"),
        (other_backbone, r"trained on a backbone [0-9a-f]{16}, .*backbone is [0-9a-f]{16}"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_checkpoint_that_does_not_fit_says_what_differs(
    saved: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(saved, directory)
    checkpoint.load(directory)
    damage(directory)
    with pytest.raises((CheckpointError, PromptError), match=message):
        checkpoint.load(directory)


def test_frames_of_another_size_than_the_tower_reads_are_refused(tiny_backbone: BackboneSettings) -> None:
    sequence = SEQUENCE.model_copy(update={"image_size": 48})
    with pytest.raises(ConfigError, match=r"preprocess\.image_size is 48, the tower of the backbone reads 32"):
        checkpoint.build(tiny_backbone, TASK, sequence, train_settings())


def test_a_backbone_without_all_its_weights_is_refused(tiny_backbone: BackboneSettings, tmp_path: Path) -> None:
    directory = tmp_path / "backbone"
    shutil.copytree(tiny_backbone.name, directory)
    edit_tensors("model.safetensors", lambda t: t.pop("image_newline"))(directory)
    broken = BackboneSettings(name=str(directory))
    with pytest.raises(CheckpointError, match="no weights for image_newline"):
        load_backbone(broken, load_tokenizer(broken), torch.float32)


@pytest.mark.parametrize(
    ("text_config", "named"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}, "sliding_attention"),
    ],
)
def test_a_language_model_of_another_kind_is_refused(
    tiny_backbone: BackboneSettings, tmp_path: Path, text_config: dict[str, object], named: str
) -> None:
    config = json.loads((Path(tiny_backbone.name) / "config.json").read_text())
    config["text_config"] = text_config
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"language model is .*{named}.*; a qwen2 with full attention is expected"):
        load_config(BackboneSettings(name=str(tmp_path)))


@pytest.mark.parametrize("load", [load_tokenizer, load_config])
def test_a_hubs_backbone_must_be_pinned(load: Callable[[BackboneSettings], object]) -> None:
    with pytest.raises(ConfigError, match=r"some/model: no such directory; .* set `revision` to a commit"):
        load(BackboneSettings(name="some/model"))


@pytest.mark.parametrize("revision", ["main", "v1.0", "74dd0bf", "g" * 40])
def test_a_revision_that_can_move_is_refused(revision: str) -> None:
    with pytest.raises(ValueError, match="a branch or tag can move"):
        BackboneSettings(name="some/model", revision=revision)


def test_operating_points_come_back_with_a_threshold_of_inf(tmp_path: Path) -> None:
    points = checkpoint_info.OperatingPoints(
        calibration=Calibration(scale=2.0, bias=-0.5),
        thresholds={
            "p60": OperatingPoint(min_precision=0.6, threshold=0.25, recall=0.5, precision=0.625),
            "p80": OperatingPoint(min_precision=0.8, threshold=math.inf, recall=0.0, precision=None),
        },
    )
    checkpoint_info.write_operating_points(tmp_path, points)
    again = checkpoint_info.read_operating_points(tmp_path)
    assert again == points


def test_a_checkpoint_without_operating_points_cannot_decide(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no operating_points\.json: only a registered checkpoint has thresholds"
    ):
        checkpoint_info.read_operating_points(saved)
    (tmp_path / "operating_points.json").write_text('{"calibration": {}}')
    with pytest.raises(CheckpointError, match="thresholds: is missing"):
        checkpoint_info.read_operating_points(tmp_path)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_training_starts_from_the_checkpoints_weights(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path, lora: LoraSettings | None
) -> None:
    settings = train_settings(variant="agentps_answers", lora=lora)
    model, _, batches = network(tiny_backbone, tiny_shards, settings)
    one_optimizer_step(model, batches)
    directory = save(tmp_path / "checkpoint", model, settings, tiny_backbone, embed=True)
    other, _, _ = network(tiny_backbone, tiny_shards, settings.model_copy(update={"seed": 1, "learning_rate": 1e-5}))
    trainable = {name for name, p in other.named_parameters() if p.requires_grad}
    checkpoint.start_from(other, directory, TASK, tiny_backbone)
    assert all(torch.equal(a, b) for a, b in zip(logits(model, batches), logits(other, batches), strict=True))
    assert {name for name, p in other.named_parameters() if p.requires_grad} == trainable != set()


def test_a_training_does_not_start_from_what_does_not_fit(
    saved: Path, tiny_backbone: BackboneSettings, tiny_shards: Shards
) -> None:
    model, _, _ = network(tiny_backbone, tiny_shards, train_settings(lora=LORA))
    with pytest.raises(CheckpointError, match="asked for other"):
        checkpoint.start_from(model, saved, TASK.model_copy(update={"name": "other"}), tiny_backbone)
    full, _, _ = network(tiny_backbone, tiny_shards, train_settings())
    with pytest.raises(CheckpointError, match="does not fit the network"):
        checkpoint.start_from(full, saved, TASK, tiny_backbone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lora": None},
            r"trained with fine_tune\.lora\.rank 4, asked for None: keep .*retrain\.start to scratch",
        ),
        ({"lora": {"rank": 8, "alpha": 8}}, r"trained with fine_tune\.lora\.rank 4, asked for 8"),
        ({"variant": "vanilla"}, r"trained with variant agentps, asked for vanilla"),
        ({"head_hidden": 8}, r"trained with fine_tune\.head_hidden 16, asked for 8"),
        ({"train_projector": False}, r"trained with fine_tune\.train_projector True, asked for False"),
    ],
)
def test_what_a_training_could_not_start_from_is_told_before_a_network_is_built(
    saved: Path, tiny_backbone: BackboneSettings, changes: dict[str, Any], message: str
) -> None:
    same = {"lora": LORA.model_dump(), "learning_rate": 1e-5, "epochs": 9}
    checkpoint.check_start(saved, TASK, tiny_backbone, train_settings(**same))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check_start(saved, TASK, tiny_backbone, train_settings(**same | changes))
    with pytest.raises(CheckpointError, match="asked for other"):
        checkpoint.check_start(
            saved, TASK.model_copy(update={"name": "other"}), tiny_backbone, train_settings(**same | changes)
        )


def test_sequences_of_more_tokens_than_the_language_model_reads_are_refused(tiny_backbone: BackboneSettings) -> None:
    config, tokenizer = load_config(tiny_backbone), load_tokenizer(tiny_backbone)
    # 2,048 places; four tokens a frame, one after the last, 96 of text
    fits, too_many = ((2048 - 96 - 1) // 4, (2048 - 96 - 1) // 4 + 1)
    checkpoint.check_fits(config, tokenizer, TASK, SEQUENCE.model_copy(update={"frames": fits}))
    with pytest.raises(ConfigError, match=r"frames 488 .* sequences of 2,049 tokens, the backbone reads 2,048 at most"):
        checkpoint.check_fits(config, tokenizer, TASK, SEQUENCE.model_copy(update={"frames": too_many}))


def test_loading_says_nothing_about_kernels(saved: Path) -> None:
    code = "import sys; from pathlib import Path; from model.checkpoint import load; load(Path(sys.argv[1]))"
    said = subprocess.run(
        [sys.executable, "-c", code, saved], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    assert "kernel" not in said.stdout + said.stderr
