"""A small network for a user's own posts, trained from nothing: convolutions, and a Qwen2 that starts at random.

All of it is trained together, by process and final labels, after the convolutions were taught for a while alone
(`model.eyes`). So what other kinds call the tower does nothing here: its states are the pixels. The convolutions stand
in the place of the projector, which is trained, and in training they see each picture mirrored or not, and moved.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen2Model

from ..errors import ConfigError
from ..eyes import Eyes
from ..family import Family


class OwnVisionConfig(PreTrainedConfig):
    model_type = "agentps_own_vision"

    #: Of each convolution that halves the side.
    channels: tuple[int, ...] | list[int] = (24, 48, 96)
    image_size: int = 64
    #: Whether a token holds the maxima of every block. A backbone of before this was asked holds those of the last.
    all_maxima: bool = False
    #: See `Family.lessons`. A backbone of before this was asked is taught for as many epochs as it is trained.
    lessons: float = 1


class OwnConfig(PreTrainedConfig):
    model_type = "agentps_own"
    sub_configs_defaults = {"vision_config": OwnVisionConfig, "text_config": Qwen2Config}  # type: ignore[dict-item]

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 1
    tie_word_embeddings: bool = False


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        text, vision = cast(Qwen2Config, config.text_config), cast(OwnVisionConfig, config.vision_config)
        self.eyes = Eyes(vision.channels, text.hidden_size, all_maxima=vision.all_maxima)
        self.language_model = Qwen2Model(text)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(cast(Tensor, module.bias))
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

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

    @property
    def lessons(self) -> float:
        return float(self.vision.lessons)

    def side(self, image_size: int) -> int:
        least, unit = self.vision.image_size, max(2 ** len(self.vision.channels), self._PATCH)
        if image_size != least:
            raise ConfigError(f"preprocess.image_size is {image_size}, the backbone was made for {least}")
        if image_size % unit:
            raise ConfigError(f"preprocess.image_size is {image_size}: a multiple of {unit} is expected")
        return 1

    def tower_states(self, model: PreTrainedModel, pixels_UCHW: Tensor) -> Tensor:
        return F.pixel_unshuffle(pixels_UCHW, self._PATCH).flatten(2).transpose(1, 2)

    def frame_tokens(self, model: PreTrainedModel, states_UPW: Tensor) -> list[Tensor]:
        side = math.isqrt(states_UPW.shape[1])
        pixels_UCHW = F.pixel_shuffle(states_UPW.transpose(1, 2).unflatten(2, (side, side)), self._PATCH)
        return [cast(OwnModel, model).eyes(pixels_UCHW)]


AutoConfig.register(OwnConfig.model_type, OwnConfig, exist_ok=True)  # else AutoTokenizer warns of an unknown type
FAMILY = Own
