"""One training in several processes: each optimizer step reads the posts that it reads in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from .data import Batches
from .schema import NO_LABEL

#: In place of a post: a place of a micro-batch that trains nothing.
_NOBODY = -1
#: Processes wait for each other while one of them encodes images, which takes hours where there are many.
_PATIENCE = timedelta(days=7)


def micro_batches(batch: int, micro_batch: int, processes: int) -> int:
    """Those of one process in an optimizer step; where `batch` does not divide, some places stay empty."""
    return -(-batch // (micro_batch * processes))


class StepSampler(torch.utils.data.Sampler[int]):
    """The posts of `order`, each optimizer step filled up with empty places, so that all processes have equal shares.

    Without them, processes fill the end of an epoch with posts of its begin, which one process does not; and a number
    of processes that does not divide `batch` would mix the posts of two steps.
    """

    def __init__(self, order: torch.utils.data.Sampler[int], posts: int, batch: int, places: int) -> None:
        """
        Args:
            posts: in `order`.
            places: of a step, in all processes; `batch` or more.
        """
        self._order, self._posts, self._batch, self._places = order, posts, batch, places

    def set_epoch(self, epoch: int) -> None:
        order: Any = self._order
        order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-self._posts // self._batch) * self._places

    def __iter__(self) -> Iterator[int]:
        order = iter(self._order)
        while step := list(islice(order, self._batch)):
            yield from step
            yield from [_NOBODY] * (self._places - len(step))


class FilledDataset(torch.utils.data.Dataset[int]):
    """As `PostDataset`, for what `StepSampler` gives."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return _NOBODY if index == _NOBODY else int(self.rows[index])


class FilledBatches:
    """As `Batches`, for rows of `FilledDataset`: an empty place is some post without a label, which weighs nothing."""

    def __init__(self, batches: Batches, rows: np.ndarray) -> None:
        self._batches = batches
        self._short = int(rows[np.argmin(batches.n_frames(rows))])  # it costs the least

    def __call__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        empty_B = torch.tensor([row == _NOBODY for row in rows])
        batch = self._batches([self._short if row == _NOBODY else row for row in rows])
        for labels in ("question_labels_BQ", "final_labels_B"):
            batch[labels] = batch[labels].clone()
            batch[labels][empty_B] = NO_LABEL
        return batch


class Node:
    """The processes of this training that run on this machine. A context manager: it lets the others go at its end."""

    def __init__(self) -> None:
        several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        #: Of the whole training.
        self.processes = distributed.get_world_size() if several else 1
        #: Of this process among those of its machine, from 0.
        self.rank = int(os.environ.get("LOCAL_RANK", "0")) if several else 0
        self.size = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if several else 1
        self._number = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))) if several else 0
        # a group of its own: the training's has less patience, and may know GPUs only
        self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE) if several else None

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        if (
            self._group is not None
        ):  # one that is left to the interpreter's end may wait there for a process that is gone
            distributed.destroy_process_group(self._group)
            self._group = None

    @property
    def alone(self) -> bool:
        """All processes of the training are on this machine."""
        return self.processes == self.size

    def share(self, value: Any) -> Any:
        """What the first process of this machine gives; the others wait for it, and give None."""
        if self._group is None:
            return value
        found: list[Any] = [None] * self.processes
        distributed.all_gather_object(found, (self._number, self.rank, value), group=self._group)
        return next(given for number, rank, given in found if (number, rank) == (self._number, 0))

    def wait(self) -> None:
        """Until all processes of the training have come here."""
        if self._group is not None:
            distributed.barrier(group=self._group)
