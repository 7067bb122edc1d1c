"""Qwen3-VL: a tower with learned positions, a merger of 2x2 patches, and a Qwen3 with positions over three axes.

Some of the tower's layers have a merger of their own, whose tokens are added behind the language model's first layers
(deepstack): so the tower's states here are those of these layers and of the last, side by side.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3VLModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from ..errors import ConfigError
from ._qwen_vl import QwenVL, block_states


class Qwen3VL(QwenVL):
    model_class = Qwen3VLModel
    projectors = ("visual.merger", "visual.deepstack_merger_list")
    text_types = ("qwen3_vl_text",)

    @property
    def _deep(self) -> list[int]:
        return list(self.vision.deepstack_visual_indexes)

    def check(self) -> None:
        super().check()
        inside = all(0 <= layer < self.vision.depth for layer in self._deep)
        if not inside or len(self._deep) >= self.text.num_hidden_layers or sorted(set(self._deep)) != self._deep:
            raise ConfigError(
                f"deepstack_visual_indexes {self._deep}, of a tower of {self.vision.depth} layers and a language model "
                f"of {self.text.num_hidden_layers}: take the config.json that came with the weights"
            )

    @property
    def tower_width(self) -> int:
        return int(self.vision.hidden_size) * (len(self._deep) + 1)

    def tower_states(self, model: PreTrainedModel, pixels_UCHW: Tensor) -> Tensor:
        visual, vision = cast(Qwen3VLModel, model).visual, self.vision
        grid = pixels_UCHW.shape[-1] // vision.patch_size
        indices_P4, weights_P4 = get_vision_interpolation_indices_and_weights(
            torch.tensor([[1, grid, grid]], device=pixels_UCHW.device),
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=vision.spatial_merge_size,
        )
        hidden_UPW = self.embed_patches(visual.patch_embed, pixels_UCHW)
        position_PW = (visual.pos_embed(indices_P4) * weights_P4[:, :, None]).sum(1)
        hidden_UPW = hidden_UPW + position_PW.to(hidden_UPW.dtype)
        cos_sin = self.rotary(visual, grid, hidden_UPW)
        read = []
        for number, block in enumerate(visual.blocks):
            hidden_UPW = block_states(block, hidden_UPW, cos_sin, hidden_UPW.shape[1])
            if number in self._deep:
                read.append(hidden_UPW)
        return torch.cat([*read, hidden_UPW], dim=-1)

    def frame_tokens(self, model: PreTrainedModel, states_UPW: Tensor) -> list[Tensor]:
        visual = cast(Qwen3VLModel, model).visual
        *deep, last = states_UPW.split(self.vision.hidden_size, dim=-1)
        mergers = [visual.merger, *visual.deepstack_merger_list]
        images = len(states_UPW)
        return [
            merger(states.contiguous()).unflatten(0, (images, -1))
            for merger, states in zip(mergers, (last, *deep), strict=True)
        ]


FAMILY = Qwen3VL
