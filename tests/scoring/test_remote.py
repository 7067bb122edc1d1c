"""The service as a `Score`: the same records, and a busy service is waited for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request

from scoring.app import create_app
from scoring.remote import RemoteScore, ServiceError
from scoring.score import Input
from scoring.settings import load_service
from tests.support.service import Stub, listening, picture

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POSTS = [
    Input("a", "sea", "", (picture(), picture(7))),
    Input("bad", error="image 1: no such file"),
    Input("b", "a walk", "今天", (picture(),)),
]


def app(who: Callable[..., Any] | None = None, stub: Stub | None = None, **given: Any) -> FastAPI:
    return create_app(stub or Stub(), load_service(given), **({"who": who} if who else {}))


def test_the_records_are_those_of_the_scorer_behind_the_service() -> None:
    stub = Stub()
    with listening(app(stub=stub)) as url, RemoteScore(url) as score:
        found = score(POSTS, NOW)
    assert [record.model_copy(update={"latency_ms": None}) for record in found] == Stub()(POSTS, NOW)
    assert found[0].latency_ms is not None
    assert stub.calls == [["a", "b"]], "a post that cannot be scored is not sent"


def test_nothing_is_scored_without_posts() -> None:
    with RemoteScore("http://127.0.0.1:9", patience=0) as score:
        assert score([]) == []


def test_a_busy_service_is_waited_for() -> None:
    refusals = iter([429, 503, 429])

    async def busy(request: Request) -> None:
        if (status := next(refusals, None)) is not None:
            raise HTTPException(status, "busy", {"Retry-After": "0"} if status == 429 else {"Retry-After": "1"})

    with listening(app(busy)) as url, RemoteScore(url) as score:
        assert [record.score for record in score(POSTS)] == [0.03, None, 0.06]


def test_what_is_too_large_together_is_sent_in_halves_and_alone_it_has_an_error() -> None:
    size = len(picture()) * 4 // 3 + 200
    posts = [Input(str(k), "t", "", (picture(),)) for k in range(9)]
    large = Input("large", "t", "x" * 5 * size, (picture(),))
    with listening(app(request_bytes=4 * size)) as url, RemoteScore(url) as score:
        found = score([*posts, large])
    assert [record.score for record in found] == [0.01] * 9 + [None]
    assert str(found[-1].error).startswith("too large for the service: more than")
    assert (found[-1].input_sha256, found[-1].model_version) == (large.sha256, "7")


@pytest.mark.parametrize(
    ("status", "message"), [(401, "give a key that it knows"), (404, "is it a service"), (503, "no answer in 0 s")]
)
def test_a_service_that_does_not_score_is_one_message(status: int, message: str) -> None:
    async def refuses(request: Request) -> None:
        raise HTTPException(status, "no")

    with listening(app(refuses)) as url, RemoteScore(url, "key", patience=0) as score, pytest.raises(ServiceError) as e:
        score(POSTS)
    assert message in str(e.value)
    assert "key" not in str(e.value).replace("give a key", "")


@pytest.mark.parametrize(("url", "message"), [("http://127.0.0.1:9", "see that it runs"), ("localhost", "an address")])
def test_an_address_where_nobody_answers_is_one_message(url: str, message: str) -> None:
    with RemoteScore(url, patience=0) as score, pytest.raises(ServiceError, match=message):
        score(POSTS)


def test_the_key_is_sent() -> None:
    seen = []

    async def listens(request: Request) -> None:
        seen.append(request.headers.get("Authorization"))

    with listening(app(listens)) as url, RemoteScore(url, "s3cret") as score:
        score(POSTS)
    assert seen == ["Bearer s3cret"]
