"""What Qwen2.5-VL and Qwen3-VL share: patches, blocks of the tower, and positions over three axes.

A frame is one image: `<|vision_start|><|image_pad|>…<|vision_end|>`. As a video (two frames a temporal patch) an album
would be half as many tokens, but each pair of neighbours would be one state of the tower: what the tower says of an
image could neither be shared by posts nor kept, and pictures of an album that have nothing in common would be summed.
As images each stays alone, which is exact, and what these models were trained on for albums.

All frames are squares of one size, so the tower computes them as one batch; `transformers`' own forward goes through
the images of a batch one by one, and in Qwen2.5-VL through the windows of each.

Dimensions: U distinct images · P patches of a frame · W width of the tower · S patches that attend to each other
            · H heads · E size of a head · B posts · F frames · T tokens · K tokens of a frame
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from ..errors import ConfigError
from ..family import Family


class QwenVL(Family):
    language_model = "language_model"
    tower = "visual"
    before = ("<|vision_start|>",)
    after = ("<|vision_end|>",)

    def check(self) -> None:
        super().check()
        head_dim = getattr(self.text, "head_dim", None) or self.text.hidden_size // self.text.num_attention_heads
        sections = self.text.rope_parameters.get("mrope_section")
        if self.unit < 1 or not isinstance(sections, list) or sum(sections) != head_dim // 2:
            raise ConfigError(
                f"its positions over three axes (mrope_section) are {sections}, of heads of {head_dim}, and its frames "
                f"are multiples of {self.unit} pixels: take the config.json that came with the weights"
            )

    @property
    def token_id(self) -> int:
        return int(self.config.image_token_id)

    @property
    def unit(self) -> int:
        """A frame's side is a multiple of this, in pixels."""
        return int(self.vision.patch_size * self.vision.spatial_merge_size)

    def side(self, image_size: int) -> int:
        if image_size % self.unit:
            raise ConfigError(f"preprocess.image_size is {image_size}: the backbone reads multiples of {self.unit}")
        return int(image_size // (self.vision.patch_size * self.vision.spatial_merge_size))

    def embed_patches(self, patch_embed: Any, pixels_UCHW: Tensor) -> Tensor:
        """(U, P, W): patches in the order of the processor, each 2x2 that will be merged together.

        A still image fills both places of a temporal patch. A linear layer: the convolution's kernels do not overlap,
        and in three dimensions it is far slower.
        """
        vision, size = self.vision, pixels_UCHW.shape[-1]
        p, m = vision.patch_size, vision.spatial_merge_size
        blocks = pixels_UCHW.unflatten(3, (size // (p * m), m, p)).unflatten(2, (size // (p * m), m, p))
        # (U, C, rows, m, p, columns, m, p) -> (U, rows, columns, m, m, C, p, p)
        patches_UPCpp = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 4)
        twice = patches_UPCpp.unsqueeze(3).expand(-1, -1, -1, vision.temporal_patch_size, -1, -1)
        weight = patch_embed.proj.weight
        return F.linear(twice.flatten(2).to(weight.dtype), weight.flatten(1), patch_embed.proj.bias)

    def rotary(self, visual: Any, grid: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(P, E) each: cosines and sines of a frame's patches."""
        grid_13 = torch.tensor([[1, grid, grid]], device=like.device)
        cos, sin = visual.rotary_pos_emb(like, get_vision_position_ids(grid_13, self.vision.spatial_merge_size))
        return cos, sin

    def position_ids(self, side: int, n_frames_B: Tensor, tokens: int) -> Tensor | None:
        """As `get_rope_index`: a frame is at one moment, its tokens at their row and column, and what follows goes on
        behind the larger of the two.
        """
        at_T = torch.arange(tokens, device=n_frames_B.device)
        length, step = side**2 + 2, side + 2  # of a frame: its tokens, and the positions that it takes
        start_T, place_T = at_T // length * step, at_T % length
        cell_T = place_T - 1
        axes_3T = torch.stack((torch.zeros_like(at_T), cell_T // side, cell_T % side)) + start_T + 1
        axes_3T = torch.where(place_T == 0, start_T, axes_3T)
        axes_3T = torch.where(place_T == length - 1, start_T + side + 1, axes_3T)
        is_text_BT = at_T >= (n_frames_B * length).unsqueeze(1)
        text_BT = at_T - (n_frames_B * (length - step)).unsqueeze(1)
        return torch.where(is_text_BT, text_BT, axes_3T.unsqueeze(1))


def block_states(block: Any, hidden_UPW: Tensor, cos_sin: tuple[Tensor, Tensor], segment: int) -> Tensor:
    """(U, P, W): the block's output, where each `segment` patches in order attend to each other alone."""
    attn = block.attn
    normed_UPW = block.norm1(hidden_UPW)
    query, key, value = attn.qkv(normed_UPW).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)  # (U, P, H, E)
    query, key = apply_rotary_pos_emb_vision(query, key, *cos_sin)
    query, key, value = (
        states.reshape(-1, segment, *states.shape[2:]).transpose(1, 2) for states in (query, key, value)
    )
    attended = F.scaled_dot_product_attention(query, key, value, scale=attn.scaling)
    hidden_UPW = hidden_UPW + attn.proj(attended.transpose(1, 2).reshape(hidden_UPW.shape))
    states_UPW: Tensor = hidden_UPW + block.mlp(block.norm2(hidden_UPW))
    return states_UPW
