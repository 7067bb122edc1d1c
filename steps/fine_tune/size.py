"""What a training takes: parameters, memory and hours, told before anything is loaded (`agentps size`).

The code of the training itself is run on tensors without content (torch's fake tensors), and its FLOPs and the bytes
that it keeps for the backward pass are counted: no formula of a family, and nothing is fetched. What a device makes of
the FLOPs is fitted to the rates in benchmarks/gpu.json (docs/size.md).

Dimensions: B posts of a micro-batch · T tokens · D hidden size
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from model.agentps import AgentPS
from model.backbone import load_config, network_of
from model.backbones import family_of
from model.family import Family
from model.language import hidden_states_at
from model.settings import OWN, TINY, BackboneSettings
from model.task import Task
from steps.fine_tune.shapes import PUBLISHED
from steps.settings import TrainingSettings

#: Bytes of a trained number in all: itself, its gradient and AdamW's two moments, in float32.
_TRAINED = 16
#: Of a weight in NF4: 4 bits, and its part of the quantized constants.
_NF4 = 0.516
#: What the driver, the kernels and torch's allocator hold beside the tensors.
_OVERHEAD = 1.05


@dataclass(frozen=True)
class Device:
    """peak: dense FLOP/s in bfloat16. bandwidth: bytes per second of its memory. memory: bytes."""

    name: str
    peak: float
    bandwidth: float
    memory: float


#: By the makers' data sheets; float32 accumulation.
A100 = Device("A100 80 GB", 312e12, 2.04e12, 80e9)
H100 = Device("H100 80 GB", 989e12, 3.35e12, 80e9)
H200 = Device("H200", 989e12, 4.8e12, 141e9)
CARD = Device("24 GB card (RTX 4090)", 165e12, 1.01e12, 24e9)
DEVICES = (A100, H100, CARD)
#: Of the peak, what matrix products reach; and how often each byte kept for the backward pass is read or written.
_SHARE, _PASSES = 0.5, 9.0


@dataclass(frozen=True)
class Work:
    """What one training asks for, whatever the device.

    Attributes:
        parameters, trained: numbers of the network with its heads; those of them that are trained.
        tokens: of a post that shows all frames and fills its text; average_tokens: of an average one.
        weights, optimizer: bytes. activations: of a micro-batch of the longest posts; checkpointed: the same where they
            are computed again.
        flops: of an average post in training. touched: bytes that it keeps for the backward pass.
        tower_flops: of `flops`, for its pictures; they fall away where the tower's states are kept.
    """

    parameters: int
    trained: int
    tokens: int
    average_tokens: int
    weights: float
    optimizer: float
    activations: float
    checkpointed: float
    flops: float
    touched: float
    tower_flops: float

    def memory(self, *, checkpointing: bool) -> float:
        """Bytes at the peak."""
        kept = self.checkpointed if checkpointing else self.activations
        return _OVERHEAD * (self.weights + self.optimizer + kept)

    def seconds_per_post(self, device: Device, *, checkpointing: bool, kept: bool = False) -> float:
        """
        Args:
            kept: the tower's states are there.
        """
        flops = self.flops - (self.tower_flops if kept else 0)
        again = 4 / 3 if checkpointing else 1
        return again * (flops / (_SHARE * device.peak) + _PASSES * self.touched / device.bandwidth)


def work(settings: TrainingSettings, task: Task, config: PreTrainedConfig, images: float) -> Work:
    """
    Args:
        config: of the backbone (`config_of`).
        images: of an average post.
    """
    train, sequence = settings.fine_tune, settings.preprocess
    family = family_of(config)
    dtype = torch.float32 if train.precision == "float32" else torch.bfloat16
    shown = sequence.frames if sequence.repeat_frames else min(images, sequence.frames)
    longest = family.visual_tokens(sequence) + sequence.max_tokens
    average = round(shown * family.frame_length(sequence)) + bool(family.newline) + sequence.max_tokens
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    base = network_of(config, settings.backbone)
    model = AgentPS(base, task, sequence, train)
    with torch.device("meta"):
        model.set_trainable(train.lora, 0, projector=train.train_projector)
    _place(model, mode, dtype)
    tower = _tower_flops(model, mode, sequence.image_size)
    answers = len(task.questions) + 1 if train.variant.startswith("agentps") else 1
    b = train.micro_batch
    kept, flops = _language(model, mode, dtype, b, longest, answers)
    average_kept, average_flops = _language(model, mode, dtype, b, average, answers)
    layers = family.text.num_hidden_layers
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    numbers = sum(p.numel() for p in model.parameters())
    tower_flops = min(images, sequence.frames) * tower * _tower_passes(family, train.train_projector)
    return Work(
        parameters=numbers,
        trained=trained,
        tokens=longest,
        average_tokens=average,
        weights=_frozen_bytes(model, settings.backbone),
        optimizer=_TRAINED * trained,
        activations=kept,
        checkpointed=kept / layers + layers * b * longest * family.text.hidden_size * dtype.itemsize,
        flops=average_flops / b + tower_flops,
        touched=average_kept / b,
        tower_flops=tower_flops,
    )


def config_of(settings: TrainingSettings, task: Task) -> PreTrainedConfig:
    """The backbone's config; of the profiles' backbones without a hub, of those that are made here without making them.

    Raises:
        ConfigError: as `model.backbone.load_config`.
    """
    name = settings.backbone.name
    if name in (TINY, OWN):
        from model.own import VOCABULARY, own_parts
        from model.tiny import VOCABULARY as TINY_VOCABULARY
        from model.tiny import build_tokenizer, tiny_config

        size = settings.preprocess.image_size
        made: Any = own_parts([], task, size)[0] if name == OWN else tiny_config(build_tokenizer([], 0), size)
        made.text_config.vocab_size = VOCABULARY if name == OWN else TINY_VOCABULARY
        return made
    for shape in PUBLISHED.values():
        if name == shape.hub:
            return shape.config(dict.fromkeys(shape.special, 1) | {"<|endoftext|>": 0})
    return load_config(settings.backbone)


def _place(model: nn.Module, mode: FakeTensorMode, dtype: torch.dtype) -> None:
    """Put parameters and buffers, which are on no device, on a CPU that computes nothing."""
    with mode:
        for module in model.modules():
            for name, given in module._parameters.items():
                if given is not None:
                    kind = torch.float32 if given.requires_grad else dtype  # as `AgentPS.set_trainable`
                    empty = torch.empty(given.shape, dtype=kind)
                    module._parameters[name] = nn.Parameter(empty, requires_grad=given.requires_grad)
            for name, held in module._buffers.items():
                if held is not None:
                    module._buffers[name] = torch.empty(held.shape, dtype=held.dtype)


def _attention(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """FLOPs of causal attention: half of the square (shapes B, heads, T, E)."""
    b, heads, queries, size = query
    return int(2 * b * heads * queries * key[2] * size)


def _attention_back(gradient: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Of its backward pass, which computes the scores again: five products for two."""
    return int(2.5 * _attention(query, key, None))


_COUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
}


def _tower_flops(model: AgentPS, mode: FakeTensorMode, image_size: int) -> float:
    """Of one picture, from its pixels to what the language model reads.

    A tower looks at grids of numbers while it runs, which have no content here: its weights are counted in place of it.
    """
    family, base = model.family, model.base
    if not family.tower:
        with mode, torch.no_grad(), FlopCounterMode(display=False) as counted:
            family.frame_tokens(base, family.tower_states(base, torch.empty(1, 3, image_size, image_size)))
        return float(counted.get_total_flops())
    vision = family.vision
    width, patches = vision.hidden_size, (image_size // vision.patch_size) ** 2
    layers = getattr(vision, "num_hidden_layers", None) or vision.depth
    projectors = list(family.projectors_of(base))
    between = {id(p) for module in projectors for p in module.parameters()}
    whole = sum(
        p.numel()
        for name, p in family.tower_of(base).named_parameters()
        if p.ndim > 1 and "pos" not in name and id(p) not in between
    )
    flops = patches * (2 * whole + 4 * layers * patches * width)
    for module in projectors:
        weights = [p for p in module.parameters() if p.ndim > 1]
        flops += 2 * sum(p.numel() for p in weights) * patches * width / max(width, weights[0].shape[1])
    return float(flops)


def _tower_passes(family: Family, train_projector: bool) -> int:
    """A network of which the tower is nothing trains all that sees pictures."""
    return 3 if train_projector and not family.tower else 1


def _language(
    model: AgentPS, mode: FakeTensorMode, dtype: torch.dtype, b: int, tokens: int, answers: int
) -> tuple[float, float]:
    """Bytes that the language model keeps for the backward pass of `b` posts, and the FLOPs of both passes."""
    family, language = model.family, model.language_model
    positions = family.position_ids(1, torch.ones(b, dtype=torch.long), tokens)
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage.nbytes(), storage)  # held, so that no other gets its address
        return tensor

    own = {p.untyped_storage()._cdata for p in model.parameters()}
    mode_autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with mode, FlopCounterMode(display=False, custom_mapping=_COUNTED) as counted, mode_autocast:
        embeds = torch.empty(b, tokens, family.text.hidden_size, dtype=dtype, requires_grad=True)
        at = torch.zeros(b, answers, dtype=torch.long)
        ids = None if positions is None else torch.empty(positions.shape, dtype=positions.dtype)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = hidden_states_at(language, embeds, at, ids)
        states.float().sum().backward()
    return float(sum(n for key, (n, _) in kept.items() if key not in own)), float(counted.get_total_flops())


def _frozen_bytes(model: AgentPS, backbone: BackboneSettings) -> float:
    """Of the weights that are not trained; those that are count with the optimizer."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    quantized = sum(
        p.numel() for name, p in frozen.items() if backbone.quantization and p.ndim == 2 and ".layers." in name
        and name.startswith(f"backbone.base_model.model.{model.family.language_model}")
    )  # fmt: skip
    whole = sum(p.numel() * p.element_size() for p in frozen.values())
    return whole - quantized * 2 + quantized * _NF4 if quantized else whole
