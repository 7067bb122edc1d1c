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
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from model.agentps import AgentPS
from model.backbone import load_config, network_of
from model.backbones import family_of
from model.language import hidden_states_at
from model.own import VOCABULARY as OWN_VOCABULARY
from model.own import own_parts
from model.settings import OWN, TINY, BackboneSettings, SequenceSettings, TrainSettings
from model.task import Task
from model.tiny import VOCABULARY as TINY_VOCABULARY
from model.tiny import build_tokenizer, tiny_config
from steps.fine_tune.shapes import PUBLISHED
from steps.paths import REPOSITORY
from steps.settings import load_settings, read_yaml

#: Bytes of a trained number in all: itself, its gradient and AdamW's two moments, in float32.
_TRAINED = 16
#: With `ema_decay` beside them: its average, in float32.
_AVERAGED = 4
#: Of a weight in NF4: 4 bits, and its part of the quantized constants.
_NF4 = 0.516
#: The smallest pretrained backbone that has a profile.
NEXT_PROFILE = REPOSITORY / "configs" / "smolvlm2-256m.yaml"
#: What the kernels and torch's allocator hold beside the tensors.
_OVERHEAD = 1.04


#: Of an H200, fitted to four backbones (benchmarks/gpu.json): times that matrix products take of what the peak says,
#: passes over each byte kept for the backward pass, seconds in which the kernels of one layer are started.
_PRODUCTS, _PASSES, _LAUNCH = 1.2, 37.0, 7e-3


@dataclass(frozen=True)
class Device:
    """peak: dense FLOP/s. bandwidth: bytes per second of its memory. memory: bytes. starts: seconds, of a layer."""

    name: str
    peak: float
    bandwidth: float
    memory: float
    starts: float = _LAUNCH


#: By the makers' data sheets: bfloat16, sums in float32.
H200 = Device("H200", 989e12, 4.8e12, 141e9)
DEVICES = (
    Device("A100 80 GB", 312e12, 2.04e12, 80e9),
    Device("H100 80 GB", 989e12, 3.35e12, 80e9),
    Device("24 GB card (RTX 4090)", 165e12, 1.01e12, 24e9),
)


@dataclass(frozen=True)
class Work:
    """What one training asks for, whatever the device.

    Attributes:
        parameters, trained: numbers of the network with its heads; those of them that are trained.
        tokens: of a post that shows all frames and fills its text; average_tokens: of an average one.
        weights, optimizer: bytes; what is trained counts with the optimizer. activations: of a micro-batch of the
            longest posts; checkpointed: the same where they are computed again.
        flops, touched: of an average post; the bytes that it keeps for the backward pass.
        layers_started: layers of the language model for a post's part of a micro-batch.
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
    layers_started: float

    def memory(self, *, checkpointing: bool) -> float:
        """Bytes at the peak."""
        kept = self.checkpointed if checkpointing else self.activations
        return _OVERHEAD * (self.weights + self.optimizer + kept)

    def seconds_per_post(self, device: Device, *, checkpointing: bool) -> float:
        """Of training; evaluation on val is not in it."""
        computed = _PRODUCTS * self.flops / device.peak + _PASSES * self.touched / device.bandwidth
        return (4 / 3 if checkpointing else 1) * max(computed, self.layers_started * device.starts)


def work(
    backbone: BackboneSettings,
    sequence: SequenceSettings,
    train: TrainSettings,
    task: Task,
    images: float,
    config: PreTrainedConfig | None = None,
) -> Work:
    """
    Args:
        images: of an average post.
        config: of the backbone; None: see `config_of`.

    Raises:
        ConfigError: as `config_of`; or the backbone cannot read frames of this size.
    """
    config = config or config_of(backbone, sequence, task)
    family = family_of(config)
    dtype = torch.float32 if train.precision == "float32" else torch.bfloat16
    shown = sequence.frames if sequence.repeat_frames else min(images, sequence.frames)
    longest = family.visual_tokens(sequence) + sequence.max_tokens
    average = round(shown * family.frame_length(sequence)) + bool(family.newline) + sequence.max_tokens
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by an old name
        model = AgentPS(network_of(config, backbone), task, sequence, train)
        model.set_trainable(train.lora, 0, projector=train.train_projector)
    _place(model, mode, dtype)
    pictures = min(images, sequence.frames) * _tower_flops(model, mode, sequence.image_size)
    answers = len(task.questions) + 1 if train.variant.startswith("agentps") else 1
    b, layers = train.micro_batch, family.text.num_hidden_layers
    kept, _ = _language(model, mode, dtype, b, longest, answers)
    touched, flops = _language(model, mode, dtype, 1, average, answers)
    numbers = [p.numel() for p in model.parameters()]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Work(
        parameters=sum(numbers),
        trained=trained,
        tokens=longest,
        average_tokens=average,
        weights=_frozen_bytes(model, backbone),
        optimizer=(_TRAINED + (_AVERAGED if train.ema_decay is not None else 0)) * trained,
        activations=kept,
        checkpointed=kept / layers + layers * b * longest * family.text.hidden_size * dtype.itemsize,
        # a family without a tower trains all that sees pictures, and teaches it alone before
        flops=flops + pictures * (1 if family.tower else 3 * (1 + family.lessons)),
        touched=touched,
        layers_started=layers / b,
    )


def config_of(backbone: BackboneSettings, sequence: SequenceSettings, task: Task) -> PreTrainedConfig:
    """The backbone's config; of the profiles' backbones without a hub, of those that are made here without making them.

    Raises:
        ConfigError: as `model.backbone.load_config`.
    """
    if backbone.name == OWN:
        own, _ = own_parts([], task, sequence.image_size)
        cast(Any, own.text_config).vocab_size = OWN_VOCABULARY  # as many as the texts may need
        return own
    if backbone.name == TINY:
        tiny = tiny_config(build_tokenizer([], 0), sequence.image_size)
        cast(Any, tiny.text_config).vocab_size = TINY_VOCABULARY
        return tiny
    for shape in PUBLISHED.values():
        if backbone.name == shape.hub:
            return shape.config(dict.fromkeys((*shape.special, "<|endoftext|>"), 0))
    return load_config(backbone)


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

    Some towers look at grids of numbers while they run, which have no content here: their weights are counted in place
    of a run.
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


def _language(
    model: AgentPS, mode: FakeTensorMode, dtype: torch.dtype, b: int, tokens: int, answers: int
) -> tuple[float, float]:
    """Bytes that the language model keeps for the backward pass of `b` posts, and the FLOPs of both passes."""
    family, language = model.family, model.language_model
    positions = family.position_ids(1, torch.ones(b, dtype=torch.long), tokens)
    kept: dict[int, tuple[int, Any]] = {}

    def keep(tensor: Tensor) -> Tensor:
        # a mask, which is made for these tensors only: the attention is causal
        if tensor.shape[-2:] == (tokens, tokens):
            return tensor
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


# --- this machine


@cache
def this_machine(precision: str) -> Device:
    """Its first GPU, or its processor, measured in a second: as fast as it is where nothing else runs on it."""
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        peak, bandwidth = _rates(torch.device("cuda"), 8192, precision, time.perf_counter)
        return Device(about.name, peak, bandwidth, float(about.total_memory))
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    torch.set_num_threads(1)  # the time of one thread counts no other process
    try:
        peak, bandwidth = _rates(torch.device("cpu"), 1024, precision, time.thread_time)
    finally:
        torch.set_num_threads(threads)
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return Device(f"this machine, {cores} cores", cores * peak, bandwidth, memory, 0.0)


def _rates(device: torch.device, side: int, precision: str, clock: Callable[[], float]) -> tuple[float, float]:
    """FLOP/s of a matrix product, and bytes per second of a copy: the best of five."""
    a = torch.ones(side, side, device=device, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)
    b = torch.empty_like(a)

    def seconds(run: Callable[[], object]) -> float:
        best = math.inf
        for _ in range(6):  # the first also prepares kernels
            started = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, clock() - started)
        return best

    peak = 2 * side**3 / seconds(lambda: torch.mm(a, a, out=b))
    return peak, 2 * a.nbytes / seconds(lambda: b.copy_(a))


def too_large(found: Work, train: TrainSettings) -> str | None:
    """Why this machine will probably not hold the training, and what to change; None where it will."""
    device = this_machine(train.precision)
    needed = found.memory(checkpointing=train.gradient_checkpointing)
    if needed <= device.memory:
        return None
    return (
        f"the training takes about {needed / 1e9:.0f} GB, {device.name} has {device.memory / 1e9:.0f} GB: lower "
        f"fine_tune.micro_batch from {train.micro_batch}, set fine_tune.gradient_checkpointing (then about "
        f"{found.memory(checkpointing=True) / 1e9:.0f} GB) or backbone.quantization: nf4; `agentps size -c FILE` tells "
        "what each gives"
    )


# --- for people


def report(
    backbone: BackboneSettings, sequence: SequenceSettings, train: TrainSettings, task: Task, posts: int, images: float
) -> str:
    """What `agentps size` prints."""
    found = work(backbone, sequence, train, task, images)
    here = this_machine(train.precision)
    lines = [
        f"{backbone.name}: {found.parameters:,} parameters, {found.trained:,} of them trained",
        f"tokens per post: {found.tokens:,} at most, {found.average_tokens:,} with {images:g} images",
        f"memory: weights {_gb(found.weights)}, what is trained with its optimizer {_gb(found.optimizer)}, activations "
        f"of {train.micro_batch} posts {_gb(found.activations)} "
        f"({_gb(found.checkpointed)} with gradient_checkpointing)",
        f"hours for {posts:,} posts x {train.epochs} epochs (this run file: gradient_checkpointing "
        f"{str(train.gradient_checkpointing).lower()}, processes {train.processes}):",
        "",
        f"{'':28}{'GB':>8}{'hours':>9}   {'GB':>5}{'hours':>9}  with gradient_checkpointing",
    ]
    for device in (*DEVICES, here):
        cells = []
        for checkpointing in (False, True):
            needed = found.memory(checkpointing=checkpointing)
            hours = posts * train.epochs * found.seconds_per_post(device, checkpointing=checkpointing) / 3600
            cells.append((f"{needed / 1e9:.1f}", f"{hours:.1f}" if needed <= device.memory else "no room"))
        (gb, hours_), (gb_c, hours_c) = cells
        lines.append(f"{device.name:28}{gb:>8}{hours_:>9}   {gb_c:>5}{hours_c:>9}")
    if (warning := too_large(found, train)) is not None:
        lines += ["", f"warning: {warning}"]
    return "\n".join(lines)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def next_profile(task: Task, posts: int, images: float) -> str:
    """What the backbone `own` is for, and which profile comes next, with its hours on this machine."""
    options = read_yaml(NEXT_PROFILE)
    if not torch.cuda.is_available():  # as the profile says of a laptop
        options["fine_tune"]["precision"] = "float32"
    settings = load_settings(options)
    train = settings.fine_tune
    found = work(settings.backbone, settings.preprocess, train, task, images)
    device = this_machine(train.precision)
    hours = posts * train.epochs * found.seconds_per_post(device, checkpointing=False) / 3600
    return (
        f"The backbone {OWN} has seen nothing but these {posts:,} training posts: it is for trying the pipeline and a "
        f"baseline to beat, not for production. The next profile is {NEXT_PROFILE.relative_to(REPOSITORY)}, a "
        f"pretrained backbone: about {hours:.1f} hours for these posts on {device.name} (an estimate of `agentps size`)"
    )
