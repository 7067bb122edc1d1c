"""What one process reads in an optimizer step, several read together; and a machine's processes share one file."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from model import tower_cache
from model.data import Shards
from model.processes import FilledBatches, FilledDataset, Node, StepSampler, micro_batches
from model.schema import NO_LABEL
from model.settings import BackboneSettings
from tests.support.tiny import network, train_settings

PATIENCE = 240.0  # seconds, on a busy machine


class Order(torch.utils.data.Sampler[int]):
    def __init__(self, posts: int) -> None:
        self.posts, self.epoch = posts, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter(np.random.default_rng(self.epoch).permutation(self.posts).tolist())


@pytest.mark.parametrize(("batch", "micro_batch", "processes"), [(4, 2, 2), (8, 2, 3), (8, 3, 5), (4, 1, 7)])
@pytest.mark.parametrize("posts", [1, 8, 19])
def test_each_optimizer_step_reads_the_same_posts_in_any_number_of_processes(
    batch: int, micro_batch: int, processes: int, posts: int
) -> None:
    of_one = micro_batches(batch, micro_batch, processes)
    places = of_one * micro_batch * processes
    order = Order(posts)
    sampler = StepSampler(order, posts, batch, places)
    sampler.set_epoch(5)
    read = list(sampler)
    assert len(read) == len(sampler)
    alone = list(order)
    assert order.epoch == 5
    for step, start in enumerate(range(0, posts, batch)):
        # accelerate hands out micro-batch after micro-batch, to one process after the other
        together = read[step * places : (step + 1) * places]
        assert len(together) % (micro_batch * processes) == 0
        assert [index for index in together if index >= 0] == alone[start : start + batch]


def test_an_empty_place_weighs_nothing(tiny_backbone: BackboneSettings, tiny_shards: Shards) -> None:
    _, _, batches = network(tiny_backbone, tiny_shards, train_settings())
    rows = batches.rows("train", labelled=True)
    dataset = FilledDataset(rows)
    batch = FilledBatches(batches, rows)([dataset[3], dataset[-1], dataset[4], dataset[-1]])
    expected = batches([dataset[3], dataset[4]])
    for labels in ("question_labels_BQ", "final_labels_B"):
        assert torch.equal(batch[labels][[0, 2]], expected[labels])
        assert (batch[labels][[1, 3]] == NO_LABEL).all()
    again = batches([int(rows[np.argmin(batches.n_frames(rows))])])
    assert (again["final_labels_B"] != NO_LABEL).all(), "the post that fills keeps its own labels"


def test_the_processes_of_a_machine_compute_their_shares_into_one_file(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower_cache, "_CHUNK", 5)
    monkeypatch.setattr(tower_cache, "_saved", lambda cache, sample, states, *_: _keep(cache, sample, states))
    model, _, _ = network(tiny_backbone, tiny_shards, train_settings())
    numbers = np.arange(31)
    expected = model.tower_states(torch.from_numpy(tiny_shards.images(numbers)))
    fork = multiprocessing.get_context("fork")
    results: Any = fork.Queue()

    def process(rank: int) -> None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=rank, world_size=2)
        encoded: list[int] = []
        compute = model.tower_states
        model.tower_states = lambda images: encoded.append(len(images)) or compute(images)  # type: ignore[method-assign]
        with Node() as node:
            cache = tower_cache.tower_cache(model, tiny_shards, numbers, tmp_path / f"states-{rank}", 9.0, node)
        assert cache is not None
        distributed.barrier()
        results.put((rank, sum(encoded), float((cache[numbers] - expected).abs().max())))
        results.close()
        results.join_thread()
        os._exit(0)

    children = [fork.Process(target=process, args=(rank,)) for rank in (0, 1)]
    try:
        for child in children:
            child.start()
        found = sorted((results.get(timeout=PATIENCE) for _ in children), key=lambda found: found[0])
    finally:
        for child in children:
            child.kill()
    assert [path.name for path in tmp_path.glob("states*")] == ["states-0"]
    # 7 chunks of 31 images: the first is the sample, encoded twice; of the others each encodes three
    assert [encoded for _, encoded, _ in found] == [5 + 5 + 15, 11]
    assert max(difference for *_, difference in found) < 1e-5


def _keep(cache: tower_cache.TowerCache, sample: np.ndarray, states: torch.Tensor) -> float:
    cache[sample] = states
    return 1.0
