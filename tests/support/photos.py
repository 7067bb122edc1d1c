"""Pictures that a perceptual hash takes for photos: large soft shapes, and finer ones over them."""

from __future__ import annotations

import numpy as np
from PIL import Image


def photo(number: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """The same for the same number, at any size; two numbers have nothing in common."""
    rng = np.random.default_rng((7, number))
    layers = [rng.normal(size=(side, side, 3)) * weight for side, weight in ((5, 40.0), (11, 30.0), (23, 15.0))]
    total = sum(np.asarray(_enlarged(layer, size)) for layer in layers)
    return Image.fromarray((128 + total).clip(0, 255).astype(np.uint8))


def _enlarged(layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    channels = [Image.fromarray(layer[..., k].astype(np.float32)) for k in range(3)]
    return np.stack([np.asarray(channel.resize(size, Image.Resampling.BICUBIC)) for channel in channels], axis=-1)
