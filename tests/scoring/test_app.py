"""The service's application, without a model: what it takes, what it refuses, and what it says."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import httpx2
import pytest
from fastapi import HTTPException, Request
from fastapi.testclient import TestClient

from model.errors import ConfigError
from model.images import ImageLimits
from model.settings import PostLimits
from scoring.app import create_app
from scoring.record import Record
from scoring.settings import ServiceSettings, load_service
from tests.support.service import Stub, data_url, listening, picture, post

JSON = {"Content-Type": "application/json"}


def settings(**given: Any) -> ServiceSettings:
    return load_service(given)


def client(stub: Stub | None = None, **given: Any) -> TestClient:
    return TestClient(create_app(stub or Stub(), settings(**given)))


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_each_post_gets_a_record_in_order_made_by_the_version_it_names() -> None:
    posts = [post("b", title="four"), post("a", title="fivef"), post(7, title=None)]
    answer = client().post("/score", json={"posts": posts})
    assert answer.status_code == 200
    records = [Record.model_validate(each) for each in answer.json()["records"]]
    assert [(r.post_id, r.score, r.model_version) for r in records] == [
        ("b", 0.04, "7"),
        ("a", 0.05, "7"),
        ("7", 0, "7"),
    ]
    assert all(record.latency_ms is not None and record.latency_ms > 0 for record in records)


def test_a_post_that_cannot_be_scored_costs_no_other_and_alone_it_is_a_422() -> None:
    bad = post("bad", images=[data_url(picture()), "data:image/png;base64,/"])
    both = client().post("/score", json={"posts": [bad, post("good")]})
    assert both.status_code == 200
    assert [record["score"] for record in both.json()["records"]] == [None, 0.03]
    assert "image 2: a data URL whose base64 text is damaged" in both.json()["records"][0]["error"]
    alone = client().post("/score", json={"posts": [bad]})
    assert alone.status_code == 422
    assert alone.json()["records"][0]["error"] == both.json()["records"][0]["error"]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 422, "body: Invalid JSON"),
        (b"[" * 4000, 422, "recursion limit"),
        (b"[]", 422, "body: Input should be an object"),
        (b"{}", 422, "posts: Field required"),
        (b'{"posts": []}', 422, "posts: List should have at least 1 item"),
        (b'{"posts": [3]}', 422, "posts.0: Input should be"),
        (b'{"posts": [{"images": ["x"]}]}', 422, "posts.0.post_id: Field required"),
        (b'{"posts": [{"post_id": " a", "images": ["x"]}]}', 422, "posts.0.post_id: "),
        (b'{"posts": [{"post_id": "a", "images": ["x"], "title": 3}]}', 422, "posts.0.title: Input should be a valid"),
        (b'{"posts": [{"post_id": "a", "images": ["x"], "title": "\\ud800"}]}', 422, "Invalid JSON"),
        (b'{"posts": [{"post_id": "a", "images": [null]}]}', 422, "posts.0.images.0: Input should be a valid string"),
        (b'{"posts": [{"post_id": "a", "images": "x"}]}', 422, "posts.0.images: Input should be a valid array"),
        (b'{"posts": [{"post_id": "a", "images": []}]}', 422, "posts.0: one or more images, or a video, are"),
        (json.dumps({"posts": [post()] * 5}).encode(), 413, "5 posts; at most 4"),
        (b" " * 5001, 413, "more than 5,000 bytes"),
    ],
)
def test_what_is_wrong_with_a_request_is_refused_with_its_reason(body: bytes, status: int, reason: str) -> None:
    answer = client(request_posts=4, request_bytes=5000).post("/score", content=body, headers=JSON)
    assert answer.status_code == status
    assert reason in str(answer.json()["detail"])


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, JSON | {"Content-Encoding": "gzip"}])
def test_a_body_that_is_no_plain_json_is_refused(headers: dict[str, str]) -> None:
    answer = client().post("/score", content=json.dumps({"posts": [post()]}).encode(), headers=headers)
    assert answer.status_code == 415


def test_a_body_without_a_length_is_read_up_to_the_limit() -> None:
    app = create_app(Stub(), settings(request_bytes=50_000))
    with listening(app) as url:
        answer = httpx2.post(f"{url}/score", content=(b" " * 1000 for _ in range(1000)), headers=JSON)
    assert answer.status_code == 413
    assert app.state.service.bytes == 0


def test_a_client_that_sends_too_slowly_is_let_go() -> None:
    with listening(create_app(Stub(), settings(request_seconds=0.2))) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=60) as slow:
            slow.sendall(
                b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
            )
            assert b" 408 " in slow.recv(1000)


@pytest.mark.parametrize("source", ["a.png", "../secret.png", "/etc/hostname", "https://x.invalid/a.png", "link.png"])
def test_no_path_and_no_url_is_read_that_was_not_allowed(source: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "a.png").write_bytes(picture())
    for given in ({}, {"image_root": str(root)}):
        record = client(**given).post("/score", json={"posts": [post(images=[source])]}).json()["records"][0]
        assert (record["error"] is None) == (source == "a.png" and given != {})
        assert str(tmp_path) not in str(record["error"])


class _Broken(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """An object store that says too much."""

    protocol = "broken"

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        raise PermissionError("account 4711 may not read bucket/pictures/a.png")


def test_pictures_of_an_object_store_are_read_and_nothing_is_told_of_it() -> None:
    store = fsspec.filesystem("memory")
    store.pipe({"/bucket/pictures/a.png": picture(), "/bucket/secret.png": picture()})
    fsspec.register_implementation("broken", _Broken, clobber=True)

    def error_of(root: str, source: str) -> str | None:
        sent = {"posts": [post(images=[source])]}
        found: str | None = client(image_root=root).post("/score", json=sent).json()["records"][0]["error"]
        return found

    root = "memory://bucket/pictures"
    assert error_of(root, "a.png") is error_of(root, f"{root}/a.png") is error_of(root, data_url(picture())) is None
    for outside in ("../secret.png", "/bucket/secret.png", "memory://bucket/secret.png", "b/../../secret.png", "b.png"):
        said = error_of(root, outside)
        assert said is not None
        assert root not in said
    assert error_of("broken://bucket/pictures", "a.png") == "image 1: cannot be read"


def test_posts_beyond_the_queue_are_refused_with_a_time_and_taken_later() -> None:
    stub = Stub()
    stub.gate.clear()
    app = create_app(stub, settings(queue_posts=4, request_posts=3))
    with listening(app) as url:
        answers: list[httpx2.Response] = []

        def send(n: int) -> None:
            answers.append(httpx2.post(f"{url}/score", json={"posts": [post(str(k)) for k in range(n)]}, timeout=60))

        waiting = [threading.Thread(target=send, args=(n,)) for n in (3, 1)]
        for thread in waiting:
            thread.start()
            until(lambda: app.state.service.posts >= 3)
        until(lambda: app.state.service.posts == 4)
        send(1)
        assert answers[0].status_code == 429
        assert int(answers[0].headers["Retry-After"]) >= 1
        assert httpx2.get(f"{url}/ready").json()["queued_posts"] == 4
        stub.gate.set()
        for thread in waiting:
            thread.join()
        send(3)
        assert [answer.status_code for answer in answers] == [429, 200, 200, 200]
        assert app.state.service.posts == app.state.service.bytes == 0


def test_bytes_beyond_the_queue_are_refused() -> None:
    stub = Stub()
    stub.gate.clear()
    app = create_app(stub, settings(queue_bytes=2000, request_bytes=2000))
    with listening(app) as url:
        body = json.dumps({"posts": [post(text="x" * 1200)]}).encode()
        first = threading.Thread(target=httpx2.post, args=(f"{url}/score",), kwargs={"content": body, "headers": JSON})
        first.start()
        until(lambda: app.state.service.posts == 1)
        assert httpx2.post(f"{url}/score", content=body, headers=JSON).status_code == 429
        stub.gate.set()
        first.join()
        assert httpx2.post(f"{url}/score", content=body, headers=JSON).status_code == 200


def test_a_drained_service_answers_what_it_took_and_takes_no_more() -> None:
    stub = Stub()
    stub.gate.clear()
    app = create_app(stub, settings())
    with listening(app) as url:
        answers: list[httpx2.Response] = []
        taken = threading.Thread(target=lambda: answers.append(httpx2.post(f"{url}/score", json={"posts": [post()]})))
        taken.start()
        until(lambda: stub.calls)
        drained = threading.Thread(target=lambda: asyncio.run(app.state.service.drain(60)))
        drained.start()
        until(lambda: app.state.service.draining)
        assert httpx2.post(f"{url}/score", json={"posts": [post()]}).status_code == 503
        assert httpx2.get(f"{url}/ready").status_code == 503
        assert httpx2.get(f"{url}/healthz").status_code == 200
        stub.gate.set()
        drained.join()
        taken.join()
    assert [answer.status_code for answer in answers] == [200]
    assert stub.calls == [["a"]]


def test_the_examples_of_the_document_work_when_pasted() -> None:
    stub = Stub()
    stub.post_limits, stub.limits = PostLimits(), ImageLimits(max_bytes=1_000_000, max_pixels=1_000_000)
    service = client(stub)
    document = service.get("/openapi.json").json()
    content = document["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]
    assert len(content["examples"]) == 3
    for example in content["examples"].values():
        assert service.post("/score", json=example["value"]).status_code == 200


def test_who_is_not_let_in_is_refused_before_the_body_is_read() -> None:
    async def nobody(request: Request) -> None:
        raise HTTPException(401, "no key")

    app = TestClient(create_app(Stub(), settings(), who=nobody))
    assert app.post("/score", content=b"no json").status_code == 401
    assert app.get("/ready").status_code == 200


def test_a_fault_of_ours_is_a_500_that_tells_nothing_of_the_posts(caplog: pytest.LogCaptureFixture) -> None:
    def broken(source: object) -> bytes:
        raise RuntimeError(f"a secret {source}")

    caplog.set_level(logging.DEBUG)
    answer = TestClient(create_app(Stub(), settings(), read=broken)).post("/score", json={"posts": [post("secret")]})
    assert answer.status_code == 500
    assert "RuntimeError at" in caplog.text
    assert "secret" not in answer.text + caplog.text


def test_no_word_of_a_request_stands_in_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service = client()
    for cells in ({}, {"title": 7}, {"images": ["secret"]}, {"images": ["data:secret"]}):
        service.post("/score", json={"posts": [post("a", text="secret") | cells]})
    assert "secret" not in caplog.text


def test_the_metrics_count_requests_posts_and_troubles() -> None:
    stub = Stub()
    service = client(stub)
    service.post("/score", json={"posts": [post("a"), post("b", images=["x"])]})
    service.post("/score", json={"posts": []})
    text = service.get("/metrics").text
    for line in (
        'agentps_requests_total{status="200"} 1.0',
        'agentps_requests_total{status="422"} 1.0',
        'agentps_posts_total{result="scored",version="7"} 1.0',
        'agentps_posts_total{result="error",version="7"} 1.0',
        'agentps_version_info{model="m",version="7"} 1.0',
        "agentps_version_trouble 0.0",
        "agentps_queued_posts 0.0",
    ):
        assert line in text.splitlines()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": 0}, "service.port: "),
        ({"image_root": "pictures"}, "the absolute path of a folder"),
        ({"image_root": os.devnull}, "the absolute path of a folder"),
        ({"image_root": "file:///etc"}, "name a local folder by its path"),
        ({"image_root": "nowhere://x"}, "nowhere"),
        ({"queue_posts": 8}, "request_posts 64 is more than queue_posts 8"),
        ({"queue_bytes": 8}, "request_bytes 64000000 is more than queue_bytes 8"),
        ({"ports": 8}, "service.ports: unknown key"),
    ],
)
def test_an_option_out_of_its_range_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_service(given)
