"""Posts of several requests become batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from scoring.batches import Batches
from scoring.score import Input

#: Seconds that no test waits for.
NEVER = 1000.0
#: Posts, more than any batch here has.
MANY = 100


class Model:
    """Takes batches, whose names are in `taken`, and answers one with each post's name when told to."""

    def __init__(self) -> None:
        self.taken: list[list[str]] = []
        self._ends: list[asyncio.Future[None]] = []

    async def __call__(self, posts: Sequence[Input]) -> list[Any]:
        self.taken.append([post.post_id for post in posts])
        self._ends.append(end := asyncio.get_running_loop().create_future())
        await end
        return [post.post_id for post in posts]

    async def has(self, n: int) -> None:
        """Until it has `n` batches; and no more a moment later."""
        async with asyncio.timeout(60):
            while len(self.taken) < n:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert len(self.taken) == n

    def end(self, batch: int, error: Exception | None = None) -> None:
        if error is None:
            self._ends[batch].set_result(None)
        else:
            self._ends[batch].set_exception(error)


def posts(names: str, tokens: int = 1) -> list[tuple[Input, int]]:
    return [(Input(name), tokens) for name in names]


def asked(batches: Batches, *requests: list[tuple[Input, int]]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(batches(request)) for request in requests]


def run(test: Callable[[Model], Awaitable[None]]) -> None:
    async def call() -> None:
        await test(Model())

    asyncio.run(call())


def test_requests_are_scored_together_and_each_gets_its_own() -> None:
    async def test(model: Model) -> None:
        tasks = asked(Batches(model, 4, MANY, NEVER), posts("a"), posts("bcd"))
        await model.has(1)
        model.end(0)
        assert model.taken == [["a", "b", "c", "d"]]
        assert [await task for task in tasks] == [["a"], ["b", "c", "d"]]

    run(test)


def test_a_post_alone_waits_for_others_and_not_for_ever() -> None:
    async def test(model: Model) -> None:
        (task,) = asked(Batches(model, 4, MANY, 0.02), posts("a"))
        await asyncio.sleep(0)
        assert model.taken == []
        await model.has(1)
        model.end(0)
        assert await task == ["a"]

    run(test)


def test_each_post_of_a_batch_is_as_long_as_its_longest_and_what_does_not_fit_is_first_in_the_next() -> None:
    async def test(model: Model) -> None:
        batches = Batches(model, 12, MANY, 0.01)
        tasks = asked(batches, posts("ab", 3), posts("c", 5), posts("d", 1))
        await model.has(2)  # three times 5 are more than 12
        assert model.taken == [["a", "b"], ["c", "d"]]
        model.end(0)
        model.end(1)
        assert [await task for task in tasks] == [["a", "b"], ["c"], ["d"]]

    run(test)


def test_a_post_longer_than_the_budget_is_a_batch_by_itself() -> None:
    async def test(model: Model) -> None:
        asked(Batches(model, 4, MANY, 0.0), posts("a", 100), posts("b", 1))
        await model.has(2)
        assert model.taken == [["a"], ["b"]]

    run(test)


def test_a_batch_has_no_more_posts_than_the_model_reads_together() -> None:
    """It had more where posts are short: the model read 64 of 69, and then five."""

    async def test(model: Model) -> None:
        asked(Batches(model, 1000, 2, NEVER), posts("abcde"))
        await model.has(2)
        assert model.taken == [["a", "b"], ["c", "d"]]

    run(test)


def test_a_full_batch_waits_behind_the_one_that_is_scored_and_no_third_does() -> None:
    async def test(model: Model) -> None:
        asked(Batches(model, 2, MANY, NEVER), posts("abcdef"))
        await model.has(2)
        model.end(0)
        await model.has(3)
        assert model.taken == [["a", "b"], ["c", "d"], ["e", "f"]]

    run(test)


def test_a_batch_that_is_not_full_is_not_sent_long_before_the_model_needs_it() -> None:
    """It was sent at once before: the posts that came while another batch was scored stood in two small ones."""

    async def test(model: Model) -> None:
        batches = Batches(model, 8, MANY, 0.02)
        asked(batches, posts("a"))
        await model.has(1)
        await asyncio.sleep(1)  # for a token: eight are expected to take eight seconds
        model.end(0)
        await asyncio.sleep(0)
        asked(batches, posts("bcdefghi"), posts("j"))
        await model.has(2)
        await asyncio.sleep(0.1)
        asked(batches, posts("k"))
        assert len(model.taken) == 2
        model.end(1)
        await model.has(3)
        assert model.taken[1:] == [list("bcdefghi"), ["j", "k"]]

    run(test)


def test_the_next_batch_is_sent_a_third_of_a_batch_s_time_before_the_model_needs_it() -> None:
    """Sent a hundredth of a second before, it came late: who sends it has as many requests to read."""

    async def test(model: Model) -> None:
        clock = asyncio.get_running_loop().time
        batches, begin = Batches(model, 8, MANY, 0.01), clock()
        asked(batches, posts("abcd"))
        await model.has(1)
        await asyncio.sleep(1)
        model.end(0)
        await asyncio.sleep(0)
        expected = 2 * (clock() - begin)  # eight tokens take twice the time of four
        asked(batches, posts("efghijkl"), posts("m"))
        await model.has(2)
        await asyncio.sleep(0.25 * expected)
        assert len(model.taken) == 2
        await asyncio.sleep(0.6 * expected)
        assert model.taken[2:] == [["m"]]

    run(test)


def test_a_request_that_is_given_up_costs_the_model_nothing() -> None:
    async def test(model: Model) -> None:
        first, _ = asked(Batches(model, 5, MANY, 0.5), posts("abc"), posts("x"))
        await asyncio.sleep(0)
        first.cancel()
        await model.has(1)
        assert model.taken == [["x"]]

    run(test)


def test_what_a_batch_fails_with_is_raised_for_each_of_its_requests_and_the_next_goes_on() -> None:
    async def test(model: Model) -> None:
        batches = Batches(model, 2, MANY, NEVER)
        tasks = asked(batches, posts("a"), posts("bcd"))
        await model.has(2)
        model.end(0, RuntimeError("broken"))
        model.end(1)
        for task in tasks:
            with pytest.raises(RuntimeError, match="broken"):
                await task
        (again,) = asked(batches, posts("ef"))
        await model.has(3)
        model.end(2)
        assert await again == ["e", "f"]

    run(test)
