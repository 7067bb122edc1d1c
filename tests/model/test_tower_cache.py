from __future__ import annotations

import errno
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from model import tower_cache
from model.data import Shards
from model.settings import BackboneSettings
from tests.support.disk import files_end_at, small_disk
from tests.support.tiny import network, train_settings

READS = 5.0  # of an image


@pytest.fixture
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a busy machine measures."""
    measured = tower_cache._saved
    monkeypatch.setattr(tower_cache, "_saved", lambda *given: abs(measured(*given)) + 1)


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_batches_answer_the_same_from_cached_states_as_from_pixels(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path, precision: str
) -> None:
    model, _, batches = network(tiny_backbone, tiny_shards, train_settings(precision=precision))
    model.eval()
    rows = batches.rows("train", labelled=False)
    numbers, _ = batches.images(rows)
    with torch.no_grad():
        from_pixels = model(**batches(rows[:9]))
        batches.tower_cache = tower_cache.tower_cache(model, tiny_shards, numbers, tmp_path / "states", READS)
        batch = batches(rows[:9])
        assert "images_UHWC" not in batch
        from_cache = model(**batch)
    tolerance = 1e-5 if precision == "float32" else 0.02
    torch.testing.assert_close(from_cache.final_B, from_pixels.final_B, rtol=0, atol=tolerance)
    for cached, computed in zip(from_cache.questions, from_pixels.questions, strict=True):
        torch.testing.assert_close(cached, computed, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("pays")
def test_every_image_has_its_own_states(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower_cache, "_CHUNK", 7)  # several chunks, the last one not full
    model, _, batches = network(tiny_backbone, tiny_shards, train_settings())
    numbers, _ = batches.images(batches.rows("train", labelled=False))
    cache = tower_cache.tower_cache(model, tiny_shards, numbers, tmp_path / "states", READS)
    assert cache is not None
    backwards = numbers[::-1].copy()
    expected = model.tower_states(torch.from_numpy(tiny_shards.images(backwards)))
    torch.testing.assert_close(cache[backwards], expected, rtol=0, atol=1e-5)


def test_images_read_once_are_not_cached(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _, _ = network(tiny_backbone, tiny_shards, train_settings())
    with caplog.at_level(logging.INFO):
        assert tower_cache.tower_cache(model, tiny_shards, np.arange(5), tmp_path / "states", 1.0) is None
    assert "computed as they are needed" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pays")
def test_a_cache_that_the_disk_has_no_room_for_is_not_made(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, _ = network(tiny_backbone, tiny_shards, train_settings())
    size = 5 * 16 * 64 * 4  # images, patches of 8 x 8 pixels, width, bytes of a float32
    for free, made in ((2 * size, False), (2 * size + 2, True)):
        monkeypatch.setattr(tower_cache, "free_bytes", lambda _, free=free: free)
        cache = tower_cache.tower_cache(model, tiny_shards, np.arange(5), tmp_path / "states", READS)
        assert (cache is not None) == made


def test_how_often_images_are_read_is_counted_by_post(tiny_backbone: BackboneSettings, tiny_shards: Shards) -> None:
    _, _, batches = network(tiny_backbone, tiny_shards, train_settings())
    numbers, reads = batches.images(np.array([0, 3, 3]))  # posts of one and of four images
    assert (len(numbers), reads) == (5, 1 + 4 + 4)


SIZE = 5 * 16 * 64 * 4  # images, patches of 8 x 8 pixels, width, bytes of a float32


@pytest.mark.usefixtures("pays")
def test_on_a_full_disk_the_states_are_computed_and_the_process_lives(
    tiny_backbone: BackboneSettings,
    tiny_shards: Shards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A write to a mapped file without room is SIGBUS. What is free may be gone a moment later."""
    model, _, _ = network(tiny_backbone, tiny_shards, train_settings())
    monkeypatch.setattr(tower_cache, "_CHUNK", 2)  # the sample fits, the rest does not
    with small_disk(tmp_path / "disk", "16k") as disk:
        real = tower_cache.free_bytes(disk)
        answers = iter([10 * SIZE])
        monkeypatch.setattr(tower_cache, "free_bytes", lambda _: next(answers, real))
        assert tower_cache.tower_cache(model, tiny_shards, np.arange(5), disk / "states", READS) is None
        assert list(disk.iterdir()) == []
    assert f"disk/states: the tower's states would take {SIZE:,} bytes, 16,384 are free (No space left" in caplog.text


def test_where_the_file_may_not_be_so_long_the_states_are_computed(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _, _ = network(tiny_backbone, tiny_shards, train_settings())
    with files_end_at(SIZE - 1):
        assert tower_cache.tower_cache(model, tiny_shards, np.arange(5), tmp_path / "states", READS) is None
    assert "(File too large): they are computed as they are needed" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pays")
@pytest.mark.parametrize("error", [AttributeError(), OSError(errno.EOPNOTSUPP, "no")], ids=["system", "file system"])
def test_where_no_room_can_be_taken_ahead_it_is_written(
    error: Exception,
    tiny_backbone: BackboneSettings,
    tiny_shards: Shards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: int) -> None:
        raise error

    monkeypatch.setattr(tower_cache.os, "posix_fallocate", refuse)
    monkeypatch.setattr(tower_cache, "_CHUNK", 2)
    model, _, _ = network(tiny_backbone, tiny_shards, train_settings())
    numbers = np.array([1, 2, 3, 5, 8])
    cache = tower_cache.tower_cache(model, tiny_shards, numbers, tmp_path / "states", READS)
    assert cache is not None
    status = (tmp_path / "states").stat()
    assert status.st_blocks * 512 >= status.st_size == SIZE, "no hole"
    expected = model.tower_states(torch.from_numpy(tiny_shards.images(numbers)))
    torch.testing.assert_close(cache[numbers], expected, rtol=0, atol=1e-5)
