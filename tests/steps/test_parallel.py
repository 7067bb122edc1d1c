"""steps/parallel.py: order, errors, and how far ahead of its reader it computes."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from steps.parallel import ordered_map


def square(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number**2


def touch(number: int, folder: Path) -> int:
    (folder / str(number)).touch()
    return os.getpid()


@pytest.mark.parametrize("count", [0, 1, 8, 9, 100])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    assert list(ordered_map(square, range(count), chunk=8, workers=2)) == [n**2 for n in range(count)]


@pytest.mark.parametrize("count", [3, 100])
def test_an_error_in_another_process_is_raised_here(count: int) -> None:
    with pytest.raises(ValueError, match=r"^-1 is negative$"):
        list(ordered_map(square, [*range(count), -1], chunk=4, workers=2))


def test_no_more_is_computed_than_two_chunks_a_process_ahead_of_the_reader(tmp_path: Path) -> None:
    results = ordered_map(partial(touch, folder=tmp_path), range(1_000), chunk=5, workers=2)
    assert next(results) != os.getpid()
    deadline = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 4 * 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # time in which more could be computed
    # two chunks for each of two processes, and the one handed over when the first was taken
    assert len(list(tmp_path.iterdir())) <= 5 * 5
    assert len(list(results)) == 999
    assert len(list(tmp_path.iterdir())) == 1_000


def test_few_items_start_no_process() -> None:
    assert set(ordered_map(lambda _: os.getpid(), range(5), chunk=5)) == {os.getpid()}
