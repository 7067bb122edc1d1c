"""What the frozen tower says of every image, kept on disk while a training runs.

An image is read again in every epoch, and by every post that shows it, but the tower does not change. Whether
reading its states back is faster than computing them depends on tower, accelerator and disk: it is measured first.

Dimensions: U images · P patches a frame · W width of the tower's states
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .agentps import AgentPS
from .data import Shards
from .files import free_bytes, is_full
from .processes import Node

logger = logging.getLogger(__name__)

#: Images that are encoded at a time.
_CHUNK = 128
#: Of the free disk, the part that a cache may take.
_DISK_SHARE = 0.5
#: Zeros that are written at a time where no room can be taken ahead: macOS has no such call, a file system no such way.
_ZEROS = 2**20
_NO_SUCH_CALL = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class TowerCache:
    """States of some of a shard directory's images by their numbers, memory-mapped.

    Writing to a mapped page that the disk has no room for ends the process by SIGBUS, without a word: `take` has the
    disk give the room first.
    """

    def __init__(
        self, path: Path, numbers: np.ndarray, shape_PW: tuple[int, ...], dtype: torch.dtype, *, joins: bool = False
    ) -> None:
        """
        Args:
            path: a file that this call replaces; `joins`: that another process has made by the same arguments.
            numbers: int64, ascending: of the images that the cache will hold.
        """
        self._numbers, self._dtype = numbers, dtype
        stored = np.int16 if dtype == torch.bfloat16 else np.float32  # NumPy has no bfloat16: its bits
        self._states_NPW = np.memmap(path, dtype=stored, mode="r+" if joins else "w+", shape=(len(numbers), *shape_PW))
        #: `path`, `shape_PW`, `dtype`: for another process, which joins.
        self.made_by = (path, shape_PW, dtype)
        self._path, self._image_bytes = path, self._states_NPW.nbytes // len(numbers)

    def take(self, start: int, end: int) -> None:
        """Take the disk's room for `numbers[start:end]`, which may be written after that.

        Raises:
            OSError: there is none.
        """
        first, size = start * self._image_bytes, (end - start) * self._image_bytes
        if not size:
            return
        with self._path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), first, size)
            except (AttributeError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in _NO_SUCH_CALL:
                    raise
                file.seek(first)
                for left in range(size, 0, -_ZEROS):
                    file.write(bytes(min(left, _ZEROS)))
                file.flush()
                os.fsync(file.fileno())

    def __getitem__(self, numbers: np.ndarray) -> Tensor:
        """(len(numbers), P, W), in the tower's dtype."""
        return torch.from_numpy(self._states_NPW[np.searchsorted(self._numbers, numbers)]).view(self._dtype)

    def __setitem__(self, numbers: np.ndarray, states_UPW: Tensor) -> None:
        self._states_NPW[np.searchsorted(self._numbers, numbers)] = (
            states_UPW.cpu().contiguous().view(torch.int16 if self._dtype == torch.bfloat16 else self._dtype)
        )


def tower_cache(
    model: AgentPS, shards: Shards, numbers: np.ndarray, path: Path, reads: float, node: Node | None = None
) -> TowerCache | None:
    """The states of the images `numbers`, computed now into `path`; None where that would not pay, or has no room.

    Args:
        numbers: int64, ascending; only these may be read.
        path: a file that this call replaces; the caller removes it.
        reads: how often an image will be read on this machine, on average.
        node: all processes of the training call this; each of a machine computes its share into the path of the first.
    """
    node = node or Node()
    device = next(model.parameters()).device

    def encode(chunk: np.ndarray) -> Tensor:
        return model.tower_states(torch.from_numpy(shards.images(chunk)).to(device)).cpu()

    cache = _with_room(encode, numbers, path, reads) if node.rank == 0 else None
    made = node.share(cache.made_by if cache is not None else None)
    if made is None:
        return None
    cache = cache or TowerCache(made[0], numbers, *made[1:], joins=True)
    chunks = range(_CHUNK, len(numbers), _CHUNK)  # the first one was the sample
    for start in chunks[node.rank :: node.size]:
        chunk = numbers[start : start + _CHUNK]
        cache[chunk] = encode(chunk)
    node.wait()
    return cache


def _with_room(
    encode: Callable[[np.ndarray], Tensor], numbers: np.ndarray, path: Path, reads: float
) -> TowerCache | None:
    """A cache that the disk has given its room; None where it would not pay, or has no room."""
    sample = numbers[:_CHUNK]
    encode(sample)  # the first call also prepares kernels
    started = time.perf_counter()
    states = encode(sample)
    encode_s = time.perf_counter() - started
    size = len(numbers) * states[0].numel() * states.element_size()
    free = free_bytes(path)
    if size >= _DISK_SHARE * free:
        _tell_without(path, size, f"they may take {_DISK_SHARE:.0%} of what is free")
        return None
    try:
        cache = TowerCache(path, numbers, tuple(states.shape[1:]), states.dtype)
        cache.take(0, len(sample))
        saved = len(numbers) / len(sample) * _saved(cache, sample, states, reads, encode_s)
        logger.info(
            "Tower states of %d images: %.2f GB, %.1f GB of disk free, %.0f s less to compute: %s",
            len(numbers),
            size / 1e9,
            free / 1e9,
            saved,
            "kept for this training" if saved > 0 else "computed as they are needed",
        )
        if saved > 0:
            cache.take(len(sample), len(numbers))
            return cache
        path.unlink()
    except OSError as error:
        if not is_full(error):
            raise
        path.unlink(missing_ok=True)
        _tell_without(path, size, os.strerror(error.errno or errno.ENOSPC))
    return None


def _saved(cache: TowerCache, sample: np.ndarray, states: Tensor, reads: float, encode_s: float) -> float:
    """Seconds that the cache saves for the images of the sample."""
    started = time.perf_counter()
    cache[sample] = states
    write_s = time.perf_counter() - started
    started = time.perf_counter()
    cache[sample]
    read_s = time.perf_counter() - started
    return (reads - 1) * encode_s - write_s - reads * read_s


def _tell_without(path: Path, size: int, why: str) -> None:
    logger.warning(
        "%s: the tower's states would take %s bytes, %s are free (%s): they are computed as they are needed, in each "
        "epoch anew. To train faster, make room and run again",
        path,
        f"{size:,}",
        f"{free_bytes(path):,}",
        why,
    )
