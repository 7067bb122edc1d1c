"""A small network for a user's own posts, trained from nothing: convolutions, and a Qwen2 that starts at random.

All of it is trained together, by process and final labels. So what other kinds call the tower does nothing here: its
states are the pixels. The convolutions stand in the place of the projector, which is trained, and in training they see
each picture mirrored or not, and moved by a few pixels.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen2Model

from ..errors import ConfigError
from ..family import Family

#: Pictures that pass the convolutions together where nothing is trained.
_AT_ONCE = 16


class OwnVisionConfig(PreTrainedConfig):
    model_type = "agentps_own_vision"

    #: Of each convolution that halves the side.
    channels: tuple[int, ...] | list[int] = (24, 48, 96, 96)
    image_size: int = 64


class OwnConfig(PreTrainedConfig):
    model_type = "agentps_own"
    sub_configs_defaults = {"vision_config": OwnVisionConfig, "text_config": Qwen2Config}

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 1
    tie_word_embeddings: bool = False


class _Block(nn.Module):
    """Half the side, then once more at that size beside what came in."""

    def __init__(self, before: int, after: int, *, deep: bool) -> None:
        super().__init__()
        self.down, self.down_norm = nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after)
        self.same = nn.Conv2d(after, after, 3, 1, 1) if deep else None
        self.same_norm = nn.GroupNorm(4, after) if deep else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down_norm(self.down(x)))
        if self.same is not None and self.same_norm is not None:
            x = F.relu(x + self.same_norm(self.same(x)))
        return x


class Eyes(nn.Module):
    """Pixels (U, 3, S, S) to (U, K, D), row by row of a frame's square."""

    def __init__(self, channels: tuple[int, ...] | list[int], width: int) -> None:
        super().__init__()
        widths = [3, *channels]
        self.blocks = nn.Sequential(*(_Block(a, b, deep=k > 0) for k, (a, b) in enumerate(pairwise(widths))))
        self.out = nn.Linear(channels[-1], width)

    def forward(self, pixels_UCSS: Tensor) -> Tensor:
        if self.training:
            return self._seen(shifted(pixels_UCSS))
        # A convolution of fewer pictures may add in another order: all are seen by so many, the last filled up.
        count = len(pixels_UCSS)
        filled_UCSS = F.pad(pixels_UCSS, (0, 0) * 3 + (0, -count % _AT_ONCE))
        return torch.cat([self._seen(part) for part in filled_UCSS.split(_AT_ONCE)])[:count]

    def _seen(self, pixels_UCSS: Tensor) -> Tensor:
        return cast(Tensor, self.out(self.blocks(pixels_UCSS).flatten(2).transpose(1, 2)))


def shifted(pixels_UCSS: Tensor) -> Tensor:
    """Each picture mirrored or not, and moved by up to a sixteenth of its side; the edge is repeated."""
    most = max(1, pixels_UCSS.shape[-1] // 16)
    count, _, side, _ = pixels_UCSS.shape
    flip_U = torch.rand(count, device=pixels_UCSS.device) < 0.5
    dy_U, dx_U = torch.randint(-most, most + 1, (2, count), device=pixels_UCSS.device)
    at_S = torch.arange(side, device=pixels_UCSS.device)
    x_US = torch.where(flip_U[:, None], side - 1 - at_S, at_S).add(dx_U[:, None]).clamp(0, side - 1)
    y_US = at_S.add(dy_U[:, None]).clamp(0, side - 1)
    rows_UCSS = pixels_UCSS.gather(2, y_US[:, None, :, None].expand_as(pixels_UCSS))
    return rows_UCSS.gather(3, x_US[:, None, None, :].expand_as(pixels_UCSS))


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        text, vision = cast(Qwen2Config, config.text_config), cast(OwnVisionConfig, config.vision_config)
        self.eyes = Eyes(vision.channels, text.hidden_size)
        self.language_model = Qwen2Model(text)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(cast(Tensor, module.bias))
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.language_model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)


class Own(Family):
    model_class = OwnModel
    language_model = "language_model"
    tower = ""
    projectors = ("eyes",)
    text_types = ("qwen2",)
    #: Pixels a side of what stands for a patch.
    _PATCH = 8

    @property
    def token_id(self) -> int:
        return int(self.config.image_token_id)

    @property
    def tower_width(self) -> int:
        return 3 * self._PATCH**2

    def side(self, image_size: int) -> int:
        least, unit = self.vision.image_size, max(2 ** len(self.vision.channels), self._PATCH)
        if image_size != least:
            raise ConfigError(f"preprocess.image_size is {image_size}, the backbone was made for {least}")
        if image_size % unit:
            raise ConfigError(f"preprocess.image_size is {image_size}: a multiple of {unit} is expected")
        return int(image_size // 2 ** len(self.vision.channels))

    def tower_states(self, model: PreTrainedModel, pixels_UCHW: Tensor) -> Tensor:
        return F.pixel_unshuffle(pixels_UCHW, self._PATCH).flatten(2).transpose(1, 2)

    def frame_tokens(self, model: PreTrainedModel, states_UPW: Tensor) -> list[Tensor]:
        side = math.isqrt(states_UPW.shape[1])
        pixels_UCHW = F.pixel_shuffle(states_UPW.transpose(1, 2).unflatten(2, (side, side)), self._PATCH)
        return [cast(OwnModel, model).eyes(pixels_UCHW)]


AutoConfig.register(OwnConfig.model_type, OwnConfig, exist_ok=True)  # else AutoTokenizer warns of an unknown type
FAMILY = Own
