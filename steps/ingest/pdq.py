"""PDQ, the perceptual hash that platforms exchange: pictures that look alike have hashes that differ in few bits.

Written after "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm" (Meta, 2019) and its C++
source, because `pdqhash` on PyPI comes as source only, for a compiler; a test compares the two.

Dimensions: N pictures · H, W pixels
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

#: Two pictures are near where at most this many of 256 bits differ, and their quality is at least this (of 100): what
#: the authors advise. Of a picture of less quality (one colour, a gradient) the bits say little.
NEAR, LEAST_QUALITY = 31, 50
#: Pixels a side, to which a larger picture is made smaller first.
SIDE = 512
#: Sides of the picture that is transformed, and of the frequencies that are kept.
_SMALL, _KEPT = 64, 16
#: Of a hash: 16 bands of 16 bits. Of two hashes that differ in 31 bits one band differs in one bit at most.
_BANDS, _BITS = 16, 16
#: Pairs that are compared together.
_PAIRS = 2**21


class Hash(NamedTuple):
    """bits: 32 bytes. quality: 0 to 100."""

    bits: bytes
    quality: int


def pdq(image: Image.Image) -> Hash:
    if max(image.size) > SIDE:
        image = image.resize((min(image.width, SIDE), min(image.height, SIDE)), Image.Resampling.BILINEAR)
    luma_HW = np.asarray(image, dtype=np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    for _ in range(2):  # twice over each axis: nearly a Gaussian
        for axis in (1, 0):
            luma_HW = _blurred(luma_HW, axis)
    rows, columns = (((np.arange(_SMALL) + 0.5) * n / _SMALL).astype(int) for n in luma_HW.shape)
    small = luma_HW[np.ix_(rows, columns)]
    transformed = _cosines() @ small @ _cosines().T
    median = np.sort(transformed, axis=None)[transformed.size // 2 - 1]
    return Hash(np.packbits(transformed > median).tobytes(), _quality(small))


def _blurred(luma_HW: np.ndarray, axis: int) -> np.ndarray:
    """The mean over a window that is as wide as the picture is to be made smaller, cut off at the edges."""
    n = luma_HW.shape[axis]
    window = -(-n // (2 * _SMALL))
    ahead = (window + 2) // 2
    sums = np.insert(np.cumsum(luma_HW, axis=axis, dtype=np.float64), 0, 0, axis=axis)
    places = np.arange(n)
    first, behind = np.maximum(places - (window - ahead), 0), np.minimum(places + ahead, n)
    width = (behind - first).reshape((-1, 1) if axis == 0 else (1, -1))
    means: np.ndarray = (sums.take(behind, axis=axis) - sums.take(first, axis=axis)) / width
    return means


@functools.cache
def _cosines() -> np.ndarray:
    """The rows 1 to 16 of the 64-point DCT-II; the mean, row 0, is left out."""
    rows, columns = np.arange(1, _KEPT + 1)[:, None], np.arange(_SMALL)
    scaled: np.ndarray = np.sqrt(2 / _SMALL) * np.cos(np.pi / 2 / _SMALL * rows * (2 * columns + 1))
    return scaled


def _quality(small: np.ndarray) -> int:
    steps = sum(int(np.abs((np.diff(small, axis=axis) * 100 / 255).astype(int)).sum()) for axis in (0, 1))
    return min(100, steps // 90)


# --- near ones among many ------------------------------------------------------------------------------------


def near_pairs(bits_NB: np.ndarray, most: int = NEAR) -> np.ndarray:
    """int64 (pairs, 2): every two of N hashes, the first with the lower number, that differ in `most` bits or fewer.

    Multi-index hashing (Norouzi and others, 2012): only hashes are compared that share a band, but for one bit of it.

    Args:
        bits_NB: uint8 (N, 32); no two are equal.
        most: below 32.
    """
    words_N4, found = bits_NB.copy().view(np.uint64), [np.empty((0, 2), dtype=np.int64)]
    for band_N in bits_NB.copy().view(np.uint16).T:
        order = np.argsort(band_N, kind="stable")
        edges = np.insert(np.cumsum(np.bincount(band_N, minlength=1 << _BITS)), 0, 0)
        for mask in (0, *(1 << bit for bit in range(_BITS))):
            wanted = band_N.astype(np.int64) ^ mask
            for left, right in _matches(order, edges[wanted], edges[wanted + 1]):
                keep = left < right
                left, right = left[keep], right[keep]
                distance = np.bitwise_count(words_N4[left] ^ words_N4[right]).sum(1, dtype=np.int64)
                found.append(np.stack((left, right), axis=1)[distance <= most])
    return np.unique(np.concatenate(found), axis=0)


def _matches(order: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The numbers k with those in order[starts[k]:ends[k]], as many together as `_PAIRS`, or those of one number."""
    counts = ends - starts
    behind = np.cumsum(counts)
    begin = 0
    while begin < len(order):
        done = behind[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(behind, done + _PAIRS, side="right")))
        part = counts[begin:end]
        left = np.repeat(np.arange(begin, end), part)
        within = np.arange(len(left)) - np.repeat(behind[begin:end] - part - done, part)
        yield left, order[np.repeat(starts[begin:end], part) + within]
        begin = end
