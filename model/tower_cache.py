"""What the frozen tower says of every image, kept on disk while a training runs.

An image is read again in every epoch, and by every post that shows it, but the tower does not change. Whether
reading its states back is faster than computing them depends on tower, accelerator and disk: it is measured first.

Dimensions: U images · P patches a frame · W width of the tower's states
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .agentps import AgentPS, normalize
from .data import Shards

logger = logging.getLogger(__name__)

#: Images that are encoded at a time.
_CHUNK = 128
#: Of the free disk, the part that a cache may take.
_DISK_SHARE = 0.5


class TowerCache:
    """States of a shard directory's images by their numbers, memory-mapped."""

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: torch.dtype, *, write: bool = False) -> None:
        self._dtype = dtype
        stored = np.int16 if dtype == torch.bfloat16 else np.float32  # NumPy has no bfloat16: its bits
        self._states_UPW = np.memmap(path, dtype=stored, mode="w+" if write else "r", shape=shape)

    def __getitem__(self, numbers: np.ndarray) -> Tensor:
        """(len(numbers), P, W), in the tower's dtype."""
        return torch.from_numpy(self._states_UPW[numbers]).view(self._dtype)

    def __setitem__(self, numbers: np.ndarray, states_UPW: Tensor) -> None:
        self._states_UPW[numbers] = (
            states_UPW.cpu().contiguous().view(torch.int16 if self._dtype == torch.bfloat16 else self._dtype)
        )


def tower_cache(model: AgentPS, shards: Shards, numbers: np.ndarray, path: Path, reads: float) -> TowerCache | None:
    """The states of the images `numbers`, computed now into `path`; None where that would not pay.

    Args:
        numbers: int64, distinct; only these may be read.
        path: a file that this call replaces; the caller removes it.
        reads: how often an image will be read, on average.
    """
    device = next(model.parameters()).device

    def encode(chunk: np.ndarray) -> Tensor:
        return model.tower_states(normalize(shards.images(chunk)).to(device)).cpu()

    sample = numbers[:_CHUNK]
    encode(sample)  # the first call also prepares kernels
    started = time.perf_counter()
    states = encode(sample)
    encode_s = time.perf_counter() - started
    shape = (shards.n_images, *states.shape[1:])
    size = len(numbers) * states[0].numel() * states.element_size()  # what is never written takes no disk
    free = shutil.disk_usage(path.parent).free
    cache = TowerCache(path, shape, states.dtype, write=True)
    started = time.perf_counter()
    cache[sample] = states
    write_s = time.perf_counter() - started
    started = time.perf_counter()
    cache[sample]
    read_s = time.perf_counter() - started
    saved = len(numbers) / len(sample) * ((reads - 1) * encode_s - write_s - reads * read_s)
    pays = saved > 0 and size < _DISK_SHARE * free
    logger.info(
        "Tower states of %d images: %.2f GB, %.1f GB of disk free, %.0f s less to compute: %s",
        len(numbers),
        size / 1e9,
        free / 1e9,
        saved,
        "kept for this training" if pays else "computed as they are needed",
    )
    if not pays:
        path.unlink()
        return None
    for start in range(len(sample), len(numbers), _CHUNK):
        chunk = numbers[start : start + _CHUNK]
        cache[chunk] = encode(chunk)
    return cache
