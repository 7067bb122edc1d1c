"""Rate limits, learned from the headers of the endpoint's replies."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: str) -> float | None:
    """Seconds of a duration as the headers write it: `6m0s`, `20ms`, `1.5`; None: another text."""
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


class Bucket:
    """One limit (requests, or tokens): a bucket that the endpoint fills at a steady rate.

    `remaining` in a reply is what was left when the endpoint let that request in; what we sent after it is taken off.
    """

    def __init__(self) -> None:
        self._limit: float | None = None
        self._level = self._rate = 0.0
        self._at = 0.0
        self._sent = 0.0

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be sent; 0 while no limit is known."""
        if self._limit is None or self._rate <= 0:
            return 0.0
        level = min(self._limit, self._level + (now - self._at) * self._rate)
        # more than the limit never fits: then the endpoint has to say so
        return max(0.0, (min(amount, self._limit) - level) / self._rate)

    def send(self, amount: float, now: float) -> float:
        """Take `amount` out. Returns the mark of this request: pass it to `learn` with its reply."""
        if self._limit is not None:
            self._level = min(self._limit, self._level + (now - self._at) * self._rate) - amount
            self._at = now
        self._sent += amount
        return self._sent

    def learn(self, headers: Mapping[str, str], kind: str, mark: float, now: float) -> None:
        """Read the three headers of this limit; where one is absent or senseless nothing changes."""
        limit, remaining = (_number(headers.get(f"x-ratelimit-{name}-{kind}")) for name in ("limit", "remaining"))
        reset = seconds_of(headers.get(f"x-ratelimit-reset-{kind}", ""))
        if limit is None or remaining is None or reset is None or limit <= 0 or remaining > limit:
            return
        self._limit, self._at = limit, now
        self._level = remaining - (self._sent - mark)
        # after `reset` the bucket is full again; a full one tells nothing of its rate
        if reset > 0 and remaining < limit:
            self._rate = (limit - remaining) / reset


def _number(text: str | None) -> float | None:
    return None if text is None else seconds_of(text)


class RateLimits:
    """The limits of requests and of tokens of one endpoint."""

    def __init__(self) -> None:
        self._buckets = {"requests": Bucket(), "tokens": Bucket()}

    def wait(self, tokens: float) -> float:
        """Seconds until a request of this many tokens may be sent."""
        now = time.monotonic()
        return max(self._buckets["requests"].wait(1, now), self._buckets["tokens"].wait(tokens, now))

    def send(self, tokens: float) -> tuple[float, float]:
        """A request is sent now. Returns its marks for `learn`."""
        now = time.monotonic()
        return self._buckets["requests"].send(1, now), self._buckets["tokens"].send(tokens, now)

    def learn(self, headers: Mapping[str, str], marks: tuple[float, float]) -> None:
        now = time.monotonic()
        for (kind, bucket), mark in zip(self._buckets.items(), marks, strict=True):
            bucket.learn(headers, kind, mark, now)
