"""The convolutions that see the pictures in `backbones.agentps_own`.

Dimensions: U images · C channels · S side of a frame, in pixels · K tokens of a frame · D hidden size
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Pictures that pass the convolutions together where nothing is trained.
_AT_ONCE = 16


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
