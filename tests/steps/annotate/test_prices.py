"""Dollars before and after: the documented rules, and a cap that holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import ConfigError
from steps.annotate.prices import Budget, ImagePrice, Price, image_tokens, load_prices, prices_as_of, request_tokens

GPT_4O = ImagePrice(base=85, tile=170)


@pytest.mark.parametrize(
    ("width", "height", "detail", "tokens"),
    [
        (1024, 1024, "high", 765),  # the documentation's: 768 x 768, four tiles
        (2048, 4096, "high", 1105),  # the documentation's: 1024 x 2048, then 768 x 1536, six tiles
        (4096, 8192, "low", 85),  # the documentation's
        (512, 512, "high", 255),
        (513, 512, "high", 425),
        (32, 32, "high", 255),  # not enlarged
        (1024, 1024, "auto", 765),
    ],
)
def test_image_tokens_are_as_documented_for_gpt_4o(width: int, height: int, detail: str, tokens: int) -> None:
    assert image_tokens(width, height, detail, GPT_4O) == tokens


def test_dollars_are_tokens_at_the_price_a_million_and_half_of_it_in_a_batch() -> None:
    price = Price(input=2.5, output=10, batch=0.5, image=GPT_4O)
    assert price.dollars(1_000_000, 100_000) == pytest.approx(3.5)
    assert price.dollars(1_000_000, 100_000, batch=True) == pytest.approx(1.75)


@pytest.mark.parametrize("text", ["hello world", "日本語" * 50, "\U0001f600" * 20, ""])
def test_no_text_has_more_tokens_than_bytes(text: str) -> None:
    tokens = request_tokens(text, 85, 5, 64)
    assert tokens.most_prompt == len(text.encode()) + 85 + 16
    assert tokens.prompt <= tokens.most_prompt
    assert tokens.completion <= tokens.most_completion == 64


def test_a_budget_lets_in_what_fits_beside_all_that_is_under_way() -> None:
    budget = Budget(1.0)
    assert budget.reserve(0.4)
    assert budget.reserve(0.6)
    assert not budget.reserve(0.0000001)
    budget.settle(0.6, 0.1)
    assert (budget.spent, budget.under_way) == (pytest.approx(0.1), 1)
    assert budget.reserve(0.5)
    assert not budget.reserve(0.1)


def test_a_thousand_times_a_thousandth_is_the_whole_cap() -> None:
    budget = Budget(1.0)
    for _ in range(1000):
        assert budget.reserve(0.001)
        budget.settle(0.001, 0.001)
    assert not budget.reserve(0.001)


@pytest.mark.parametrize(
    ("line", "day"),
    [
        ("as_of: 2026-01-31", "2026-01-31"),
        ('as_of: "2025"', "2025"),
        ("as_of:", "an unknown day"),
        ("", "an unknown day"),
    ],
)
def test_the_table_says_of_when_its_prices_are_and_the_day_is_no_model(line: str, day: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(f"{line}\nm: {{input: 1, output: 1, batch: 1, image: {{base: 1, tile: 1}}}}\n")
    assert prices_as_of(path) == day
    assert list(load_prices(path)) == ["m"]
    assert prices_as_of() == "May 2026"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("m: {input: -1, output: 1, batch: 1, image: {base: 1, tile: 1}}", "m.input"),
        ("m: {input: 1, output: 1, batch: 0, image: {base: 1, tile: 1}}", "m.batch"),
        ("m: {input: 1, output: 1, batch: 1, image: {base: 1}}", "m.image.tile: is missing"),
        ("m: {input: 1, output: 1, batch: 1, image: {base: 1, tile: 1}, cache: 1}", "m.cache: unknown key"),
        ("m: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_price_is_named_with_its_file(text: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_prices(path)
    assert str(path) in str(caught.value)
    assert found in str(caught.value)
