"""A checkpoint: a directory that, with the named backbone, can score.

checkpoint.json        format, task, variant, sequence, backbone, training settings, provenance
trained.safetensors    heads, projector, and the language model where it was trained in full
adapter/               LoRA weights and the row of `<ans>`, in PEFT's format, where LoRA was used
tokenizer/             with `<ans>`
backbone/              only of the tiny backbone, which no hub has
operating_points.json  calibration and thresholds, once they are fitted (see `model.checkpoint_info`)
manifest.json          the hashes of all other files, once it is registered (see `model.integrity`)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .agentps import AgentPS
from .backbone import all_finite, load_backbone, load_config, load_tokenizer, read_tokenizer
from .backbone_files import check_tokenizer, in_folder, read_headers
from .backbones import family_of
from .checkpoint_info import FORMAT, CheckpointInfo, check_task, read_info, write_info
from .errors import CheckpointError, ConfigError
from .files import replacing
from .integrity import refuse_pickles
from .prompt import Prompt
from .settings import BackboneSettings, SequenceSettings, TrainSettings, Variant
from .task import Task
from .text import ans_token_id

_TRAINED = "trained.safetensors"


@dataclass
class Loaded:
    """A network with what it needs to read posts."""

    model: AgentPS
    tokenizer: PreTrainedTokenizerBase
    prompt: Prompt
    info: CheckpointInfo


def _architecture_fingerprint(backbone: BackboneSettings) -> str:
    config = json.loads(load_config(backbone).to_json_string())
    for key in ("transformers_version", "_name_or_path", "dtype"):  # where and how it was saved, not what it is
        config.pop(key, None)
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def build(
    backbone: BackboneSettings, task: Task, sequence: SequenceSettings, train: TrainSettings
) -> tuple[AgentPS, PreTrainedTokenizerBase, Prompt]:
    """A network to be trained: pretrained backbone, fresh heads, the right parameters trainable."""
    load_config(backbone)  # first: it says best what is wrong with a folder that is no backbone
    tokenizer = load_tokenizer(backbone)
    model = wrap(load_backbone(backbone, tokenizer, _dtype(train)), tokenizer, task, sequence, train)
    return model, tokenizer, _prompt(tokenizer, task, train.variant, sequence, model.config)


def _dtype(train: TrainSettings) -> torch.dtype:
    return torch.float32 if train.precision == "float32" else torch.bfloat16


def wrap(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    sequence: SequenceSettings,
    train: TrainSettings,
) -> AgentPS:
    """Fresh heads on a pretrained backbone, the right parameters trainable.

    Raises:
        ConfigError: the frames have another size than the tower reads.
    """
    model = AgentPS(base, task, sequence, train)
    model.set_trainable(train.lora, ans_token_id(tokenizer), projector=train.train_projector)
    return model


def check_fits(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, task: Task, sequence: SequenceSettings
) -> None:
    """What a training would refuse later, said before anything is prepared for it.

    Raises:
        ConfigError: the frames have another size than the tower reads, or are more than the language model reads.
        PromptError: as `model.prompt.Prompt`.
    """
    family = family_of(config)
    longest = family.visual_tokens(sequence) + sequence.max_tokens
    places = family.text.max_position_embeddings
    if longest > places:
        raise ConfigError(
            f"preprocess.frames {sequence.frames} with preprocess.max_tokens {sequence.max_tokens} are sequences of "
            f"{longest:,} tokens, the backbone reads {places:,} at most: lower one of them, or raise "
            "preprocess.frame_pooling"
        )
    _prompt(tokenizer, task, "agentps", sequence, config)  # the longest sequence of all variants


def _prompt(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    variant: Variant,
    sequence: SequenceSettings,
    config: PreTrainedConfig,
) -> Prompt:
    return Prompt(tokenizer, task, variant, sequence, frames=family_of(config).placeholders(tokenizer, sequence))


def trainable_state(model: AgentPS) -> dict[str, torch.Tensor]:
    """Every trained parameter by its name in the module."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: AgentPS, state: dict[str, torch.Tensor], source: Path) -> None:
    """Put trained parameters back.

    Raises:
        CheckpointError: a parameter is missing, unknown or of another shape.
    """
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{source}: does not fit the network: missing {missing[:5] or 'nothing'}, "
            f"unknown {unknown[:5] or 'nothing'}; it was made for another task, variant or backbone"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            if parameter.shape != state[name].shape:
                found, expected = tuple(state[name].shape), tuple(parameter.shape)
                raise CheckpointError(
                    f"{source}: {name} has shape {found}, the network {expected}: another backbone or task"
                )
            parameter.copy_(state[name])


def save(
    directory: Path,
    model: AgentPS,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: Task,
    sequence: SequenceSettings,
    train: TrainSettings,
    backbone: BackboneSettings,
    embed_backbone: bool,
    provenance: dict[str, Any],
) -> None:
    """Write a checkpoint, whole or not at all; a directory of that name is replaced."""
    info = CheckpointInfo(
        format=FORMAT,
        task=task,
        task_fingerprint=task.fingerprint,
        sequence=sequence,
        train=train,
        backbone=backbone.model_copy(update={"name": "backbone"}) if embed_backbone else backbone,
        backbone_embedded=embed_backbone,
        backbone_fingerprint=_architecture_fingerprint(backbone),
        provenance=provenance,
    )
    with replacing(directory) as part:
        part.mkdir()
        state = trainable_state(model)
        if isinstance(model.backbone, PeftModel):
            model.backbone.save_pretrained(str(part / "adapter"))
            (part / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
            state = {name: value for name, value in state.items() if not _in_adapter(name)}
        save_file(state, part / _TRAINED)
        tokenizer.save_pretrained(part / "tokenizer")
        if embed_backbone:
            shutil.copytree(backbone.name, part / "backbone")
        write_info(part, info)


def _in_adapter(name: str) -> bool:
    return "lora_" in name or "trainable_tokens_" in name


def load(directory: Path, device: torch.device | None = None) -> Loaded:
    """The network as it was trained, ready to score.

    Raises:
        CheckpointError: a part is missing or does not fit: random heads are never served; or a file
            could run code while it is read.
    """
    refuse_pickles(directory)  # PEFT and transformers fall back to a pickle where there are no safetensors
    info = read_info(directory)
    backbone = info.backbone
    if info.backbone_embedded:
        backbone = backbone.model_copy(update={"name": str(directory / "backbone")})
    _check_backbone(info, backbone, directory)
    tokenizer = _own_tokenizer(directory / "tokenizer")
    base = load_backbone(backbone, tokenizer, _dtype(info.train))
    model = wrap(base, tokenizer, info.task, info.sequence, info.train)
    _restore(model, directory)
    model.eval().requires_grad_(False)
    whole = info.train.precision == "float32" and backbone.quantization is None
    if isinstance(model.backbone, PeftModel) and whole:
        # One product in place of three. A weight of 16 or 4 bits would round the adapter's part away.
        model.backbone = cast(PreTrainedModel, model.backbone.merge_and_unload())
    if device is not None:
        model.to(device)
    prompt = _prompt(tokenizer, info.task, info.train.variant, info.sequence, model.config)
    return Loaded(model, tokenizer, prompt, info)


def _own_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        check_tokenizer(in_folder(folder), str(folder))
        return read_tokenizer(str(folder), local=True)
    except ConfigError as error:
        raise CheckpointError(f"{folder.parent}: its tokenizer is missing or damaged: {error}") from error


def start_from(model: AgentPS, directory: Path, task: Task, backbone: BackboneSettings) -> None:
    """Put a checkpoint's trained weights into a network that `build` made, to train them further.

    Args:
        task, backbone: what the network was built for.

    Raises:
        CheckpointError: the checkpoint answers another task, lies on another backbone, or was trained in another form
            (variant, LoRA, projector).
    """
    _check_origin(directory, task, backbone)
    _restore(model, directory)


def check_start(directory: Path, task: Task, backbone: BackboneSettings, train: TrainSettings) -> None:
    """What `start_from` would refuse, of a network that is yet to be built.

    Raises:
        CheckpointError: as `start_from`.
    """
    form = _check_origin(directory, task, backbone).train
    for key in ("variant", "lora", "train_projector", "head_hidden"):
        found, expected = getattr(form, key), getattr(train, key)
        if key == "lora":
            found, expected = (None if lora is None else lora.rank for lora in (found, expected))
        if found != expected:
            name = {"variant": "variant", "lora": "fine_tune.lora.rank"}.get(key, f"fine_tune.{key}")
            raise CheckpointError(
                f"{directory}: trained with {name} {found}, asked for {expected}: keep the one that it was trained "
                "with, or set retrain.start to scratch"
            )


def _check_origin(directory: Path, task: Task, backbone: BackboneSettings) -> CheckpointInfo:
    refuse_pickles(directory)
    info = read_info(directory)
    check_task(info, task, directory)
    _check_backbone(info, backbone, directory)
    return info


def _check_backbone(info: CheckpointInfo, backbone: BackboneSettings, directory: Path) -> None:
    fingerprint = _architecture_fingerprint(backbone)
    if fingerprint != info.backbone_fingerprint:
        raise CheckpointError(
            f"{directory}: trained on a backbone {info.backbone_fingerprint}, {backbone.name} is {fingerprint}: "
            "load the one that it was trained on"
        )
    if backbone.quantization != info.backbone.quantization:
        raise CheckpointError(
            f"{directory}: trained with backbone.quantization {info.backbone.quantization}, asked for "
            f"{backbone.quantization}: keep the one that it was trained with"
        )


def _restore(model: AgentPS, directory: Path) -> None:
    trained = directory / _TRAINED
    try:
        # of floats, and whole: the readers below would take other numbers for them
        read_headers([trained, *sorted((directory / "adapter").glob("*.safetensors"))], str(directory))
        state = load_file(trained)
        if isinstance(model.backbone, PeftModel):
            outcome = model.backbone.load_adapter(
                directory / "adapter", model.backbone.active_adapter, is_trainable=True
            )
            adapter = {name for name, p in model.named_parameters() if p.requires_grad and _in_adapter(name)}
            missing = sorted(adapter & {f"backbone.{key}" for key in outcome.missing_keys})
            if missing or outcome.unexpected_keys:
                raise CheckpointError(
                    f"{directory}: adapter lacks {missing[:5]}, has {outcome.unexpected_keys[:5]} too many"
                )
            state |= {name: p for name, p in trainable_state(model).items() if _in_adapter(name)}
    except (ConfigError, SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{directory}: a part of the checkpoint is missing or damaged: {what}") from error
    for name, tensor in state.items():
        if not all_finite(tensor):
            raise CheckpointError(
                f"{directory}: {name} holds numbers that are NaN or infinite: the file was changed, or the training "
                "diverged; take another version"
            )
    load_trainable_state(model, state, directory)
