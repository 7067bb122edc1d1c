"""Qwen2.5-VL: a tower whose blocks attend in windows, a merger of 2x2 patches, and a Qwen2 with positions over three
axes. Its frames are squares of whole windows (112 pixels), so that all windows of a batch are computed at once.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2_5_VLModel
from transformers.vision_utils import get_vision_window_index

from ._qwen_vl import QwenVL, block_states


class Qwen25VL(QwenVL):
    model_class = Qwen2_5_VLModel
    projectors = ("visual.merger",)
    image_mean = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    image_std = (0.26862954, 0.26130258, 0.27577711)
    text_types = ("qwen2_5_vl_text",)

    @property
    def tower_width(self) -> int:
        return int(self.vision.hidden_size)

    @property
    def unit(self) -> int:
        merged = super().unit
        return int(self.vision.window_size // merged * merged)

    def _windows(self, side: int) -> Tensor:
        """(K,): the frame's tokens, row by row, in the order of the windows."""
        vision = self.vision
        merge = vision.spatial_merge_size
        grid_13 = torch.tensor([[1, side * merge, side * merge]])
        index, _ = get_vision_window_index(grid_13, merge, vision.window_size, vision.patch_size)
        return index

    def tower_states(self, model: PreTrainedModel, pixels_UCHW: Tensor) -> Tensor:
        visual, vision = cast(Qwen2_5_VLModel, model).visual, self.vision
        merged = vision.spatial_merge_size**2
        side = self.side(pixels_UCHW.shape[-1])
        order_K = self._windows(side).to(pixels_UCHW.device)

        def by_window(patches: Tensor, dim: int) -> Tensor:
            return patches.unflatten(dim, (-1, merged)).index_select(dim, order_K).flatten(dim, dim + 1)

        hidden_UPW = by_window(self.embed_patches(visual.patch_embed, pixels_UCHW), 1)
        cos, sin = self.rotary(visual, side * vision.spatial_merge_size, hidden_UPW)
        cos_sin = by_window(cos, 0), by_window(sin, 0)
        window = (self.unit // vision.patch_size) ** 2
        for number, block in enumerate(visual.blocks):
            whole = number in vision.fullatt_block_indexes
            hidden_UPW = block_states(block, hidden_UPW, cos_sin, hidden_UPW.shape[1] if whole else window)
        return hidden_UPW

    def frame_tokens(self, model: PreTrainedModel, states_UPW: Tensor) -> list[Tensor]:
        visual = cast(Qwen2_5_VLModel, model).visual
        tokens_UKD = visual.merger(states_UPW).unflatten(0, (len(states_UPW), -1))
        side = round(tokens_UKD.shape[1] ** 0.5)
        return [tokens_UKD[:, torch.argsort(self._windows(side)).to(tokens_UKD.device)]]


FAMILY = Qwen25VL
