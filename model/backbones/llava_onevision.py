"""LLaVA-OneVision: a SigLIP, a projector and a Qwen2. The album goes its video way: every frame's tokens are pooled
2x2, one newline token ends them.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from transformers import LlavaOnevisionModel, PreTrainedModel

from ..errors import ConfigError
from ..family import Family


class LlavaOnevision(Family):
    model_class = LlavaOnevisionModel
    language_model = "language_model"
    tower = "vision_tower"
    projectors = ("multi_modal_projector",)
    newline = "image_newline"
    text_types = ("qwen2",)

    @property
    def _layers(self) -> list[int]:
        """The tower's layers whose states are read, side by side."""
        layers = self.config.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers)

    def check(self) -> None:
        super().check()
        if self.vision.model_type != "siglip_vision_model":
            raise ConfigError(f"its tower is {self.vision.model_type}; a siglip_vision_model is expected")
        if self.config.vision_feature_select_strategy != "full":  # a SigLIP has no class token that could be left out
            raise ConfigError(
                f"vision_feature_select_strategy: 'full' was expected, found "
                f"{self.config.vision_feature_select_strategy!r:.100}: take the file that came with the weights"
            )
        for layer in self._layers:
            if not -self.vision.num_hidden_layers - 1 <= layer <= self.vision.num_hidden_layers:
                raise ConfigError(
                    f"vision_feature_layer is {layer}, of {self.vision.num_hidden_layers} layers: take the config.json "
                    "that came with the weights"
                )

    @property
    def token_id(self) -> int:
        return int(self.config.video_token_id)

    @property
    def tower_width(self) -> int:
        return int(self.vision.hidden_size) * len(self._layers)

    def side(self, image_size: int) -> int:
        if image_size != self.vision.image_size:
            raise ConfigError(
                f"preprocess.image_size is {image_size}, the tower of the backbone reads {self.vision.image_size}"
            )
        return math.ceil(image_size // self.vision.patch_size / 2)

    def tower_states(self, model: PreTrainedModel, pixels_UCHW: Tensor) -> Tensor:
        states = self.tower_of(model)(pixels_UCHW, output_hidden_states=True).hidden_states
        layers = self._layers
        return states[layers[0]] if len(layers) == 1 else torch.cat([states[k] for k in layers], dim=-1)

    def frame_tokens(self, model: PreTrainedModel, states_UPW: Tensor) -> list[Tensor]:
        llava = cast(LlavaOnevisionModel, model)
        return [llava.apply_pooling(llava.multi_modal_projector(states_UPW))]

    def summary(self, model: PreTrainedModel, pixels_UCHW: Tensor) -> Tensor:
        return cast(Tensor, self.tower_of(model)(pixels_UCHW).last_hidden_state.mean(1))


FAMILY = LlavaOnevision
