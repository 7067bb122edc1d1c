"""Limits of requests and tokens per minute, as the endpoint's headers tell them."""

from __future__ import annotations

import pytest

from steps.annotate.rates import Bucket, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("1d", 86400), ("7.66", 7.66), ("0s", 0)],
)
def test_a_duration_of_the_headers_is_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1x", "1s later", "nan", "inf", "-3"])
def test_another_text_is_no_duration(text: str) -> None:
    assert seconds_of(text) is None


def headers(limit: float, remaining: float, reset: str) -> dict[str, str]:
    return {
        "x-ratelimit-limit-tokens": str(limit),
        "x-ratelimit-remaining-tokens": str(remaining),
        "x-ratelimit-reset-tokens": reset,
    }


def test_nothing_waits_while_no_limit_is_known() -> None:
    bucket = Bucket()
    bucket.send(1e9, 0.0)
    assert bucket.wait(1e9, 0.0) == 0


def test_the_wait_is_until_the_bucket_has_filled_at_the_rate_of_the_reset() -> None:
    bucket = Bucket()
    # 100 of 1000 are left, full in 90 s: 10 per second
    bucket.learn(headers(1000, 100, "1m30s"), "tokens", bucket.send(50, 0.0), 0.0)
    assert bucket.wait(100, 0.0) == 0
    assert bucket.wait(150, 0.0) == pytest.approx(5)
    assert bucket.wait(150, 2.0) == pytest.approx(3)
    bucket.send(100, 2.0)  # 120 were in it
    assert bucket.wait(150, 2.0) == pytest.approx(13)
    assert bucket.wait(5000, 2.0) == pytest.approx(98)  # more than ever fits: when it is full


def test_what_was_sent_after_the_request_that_is_answered_is_taken_off() -> None:
    bucket = Bucket()
    mark = bucket.send(10, 0.0)
    bucket.send(10, 0.0)
    bucket.send(10, 0.0)
    bucket.learn(headers(100, 90, "1s"), "tokens", mark, 0.0)  # 10 per second; 90 - 20 are left
    assert bucket.wait(71, 0.0) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "senseless",
    [{}, headers(0, 0, "1s"), headers(10, 20, "1s"), headers(10, 5, "soon"), {"x-ratelimit-limit-tokens": "many"}],
)
def test_senseless_headers_change_nothing(senseless: dict[str, str]) -> None:
    bucket = Bucket()
    bucket.learn(senseless, "tokens", bucket.send(1, 0.0), 0.0)
    assert bucket.wait(1e9, 0.0) == 0
