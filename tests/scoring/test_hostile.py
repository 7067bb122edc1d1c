"""Whatever is sent: a reason and a status of 4xx, never a 500; nothing is read that is not open, or told to a log."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from model.checkpoint_info import OperatingPoints, write_operating_points
from model.images import ImageLimits
from model.scorer import Scorer
from model.settings import BackboneSettings, PostLimits
from scoring.app import create_app
from scoring.record import Record
from scoring.score import Input, LocalScore
from scoring.settings import load_service
from steps.register.registry import RegisteredVersion
from tests.model.zoo import ZOO
from tests.scoring.test_fetch import URLS
from tests.steps.register.test_registry import report
from tests.support.pictures import PictureHost, moved, ok, picture_host
from tests.support.service import Stub, data_url, listening, picture, post
from tests.support.tiny import train_settings, write_checkpoint

#: Stands in everything that is sent, and nowhere else.
SECRET = "xyzzy"
JSON = {"Content-Type": "application/json"}


class Seeing(Stub):
    """Remembers every picture that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[bytes] = set()
        self.limits, self.post_limits = ImageLimits(max_bytes=100_000, max_pixels=10_000), PostLimits()

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        self.seen |= {image for each in inputs for image in each.images}
        return super().__call__(inputs, now)


def made(stub: Stub | None = None, **given: Any) -> FastAPI:
    return create_app(stub or Seeing(), load_service(given))


def body(**cells: Any) -> bytes:
    return json.dumps({"posts": [post(SECRET) | cells]}).encode()


def of_post(cells: str) -> bytes:
    """A post whose cells are given as they are written."""
    return b'{"posts": [{"images": ["data:image/png;base64,AAAA"], %s}]}' % cells.encode()


# --- bodies

#: Body -> status, a part of the reason.
BODIES: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 422, "Invalid JSON"),
    "null": (b"null", 422, "body: Input should be an object"),
    "a text": (b'"posts"', 422, "body: Input should be an object"),
    "html": (b"<html>", 422, "Invalid JSON"),
    "cut": (body()[:-10], 422, "Invalid JSON"),
    "two values": (body() + body(), 422, "trailing characters"),
    "comments": (b"/* */" + body(), 422, "Invalid JSON"),
    "deep lists": (b'{"posts": ' + b"[" * 100_000, 413, "values in one body"),
    "deep lists, closed": (b"[" * 30_000 + b"]" * 30_000, 422, "recursion limit"),
    "deep objects": (b'{"a":' * 30_000 + b"1" + b"}" * 30_000, 422, "recursion limit"),
    "deep beside the posts": (b'{"x": ' + b"[" * 9_000 + b"]" * 9_000 + b"}", 422, "recursion limit"),
    "a million objects": (b'{"posts": [' + b"{}," * 1_000_000 + b"{}]}", 413, "values in one body"),
    "a million lists": (b'{"posts": [' + b"[]," * 1_000_000 + b"[]]}", 413, "values in one body"),
    "a million numbers": (b'{"posts": [{"images": [' + b"1," * 1_000_000 + b"1]}]}", 413, "values in one body"),
    "a million keys": (b"{" + b",".join(b'"%d":1' % k for k in range(1_000_000)) + b"}", 413, "values in one body"),
    "30,000 objects": (b'{"posts": [' + b"{}," * 29_999 + b"{}]}", 422, "and 29,990 more"),
    "a thousand posts": (json.dumps({"posts": [post(SECRET)] * 1000}).encode(), 413, "1,000 posts; at most 64"),
    "a key twice": (of_post('"post_id": "a", "title": "good", "title": "bad"'), 422, "duplicate key"),
    "posts twice": (b'{"posts": [], "posts": []}', 422, "duplicate key"),
    "a key twice, once escaped": (of_post(r'"post_id": "a", "title": "good", "t\u0069tle": ""'), 422, "duplicate key"),
    "a key twice where nobody looks": (b'{"x": {"a": 1, "a": 2}, "posts": []}', 422, "duplicate key"),
    "NaN": (of_post('"post_id": NaN'), 422, "Invalid JSON"),
    "Infinity": (of_post('"post_id": "a", "title": -Infinity'), 422, "Invalid JSON"),
    "a number beyond floats": (of_post('"post_id": 1e999'), 422, "posts.0.post_id"),
    "a number of 5,000 digits": (of_post('"post_id": ' + "9" * 5000), 422, "Invalid JSON"),
    "a number of 600 digits": (of_post('"post_id": ' + "9" * 600), 422, "posts.0.post_id"),
    "a fraction": (of_post('"post_id": 1.5'), 422, "posts.0.post_id"),
    "true": (of_post('"post_id": true'), 422, "posts.0.post_id"),
    "an object": (of_post('"post_id": {"$ne": null}'), 422, "posts.0.post_id"),
    "no id": (of_post('"title": "a"'), 422, "posts.0.post_id: Field required"),
    "an empty id": (of_post('"post_id": ""'), 422, "posts.0.post_id"),
    "a blank id": (of_post(r'"post_id": "\u3000"'), 422, "posts.0.post_id"),
    "an id with a line break": (of_post(r'"post_id": "a\nINFO all is well"'), 422, "posts.0.post_id"),
    "an id that colours": (of_post(r'"post_id": "\u001b[31m"'), 422, "posts.0.post_id"),
    "an id with a NUL": (of_post(r'"post_id": "a\u0000"'), 422, "posts.0.post_id"),
    "an id that turns the text": (of_post(r'"post_id": "a\u202eb"'), 422, "posts.0.post_id"),
    "a long id": (of_post(f'"post_id": "{"a" * 513}"'), 422, "posts.0.post_id"),
    "half a character": (of_post(r'"post_id": "a", "title": "\ud800"'), 422, "surrogate|hex escape"),
    "half a character in a key": (of_post(r'"post_id": "a", "\udfff": 1'), 422, "surrogate|hex escape"),
    "a NUL as it is": (of_post('"post_id": "a\0"'), 422, "control character"),
    "a title that is a list": (of_post('"post_id": "a", "title": ["a"]'), 422, "posts.0.title"),
    "a text that is a number": (of_post('"post_id": "a", "text": 3'), 422, "posts.0.text"),
    "images that are none": (body(images=[]), 422, "posts.0: one or more images, or a video, are expected"),
    "images as an object": (body(images={"0": "x"}), 422, "posts.0.images: Input should be a valid array"),
    "images as a text": (body(images=data_url(picture())), 422, "posts.0.images: Input should be a valid array"),
    "a video that is a list": (body(video=["x"]), 422, "posts.0.video: Input should be a valid string"),
    "a video that is blank": (body(video=" "), 422, "posts.0.video"),
    "no video and no images": (body(images=[], video=None), 422, "posts.0: one or more images, or a video"),
    "an image that is a list of bytes": (body(images=[[137, 80, 78, 71]]), 422, "posts.0.images.0"),
    "an image that is null": (body(images=[None]), 422, "posts.0.images.0"),
    "an image that is blank": (body(images=["  "]), 422, "posts.0.images.0"),
    "10,000 images": (body(images=["data:image/png;base64,AAAA"] * 10_000), 422, "10,000 images; at most 64"),
    "a text of a megabyte": (body(text="a" * 1_000_000), 422, "characters; at most 50,000"),
    "a text of signs": (body(text="{[,,,\"\\" * 20_000), 422, "characters; at most 50,000"),
    "UTF-16": (body().decode().encode("utf-16"), 422, "Invalid JSON"),
    "UTF-32": (body().decode().encode("utf-32"), 422, "Invalid JSON"),
    "Latin-1": ('{"posts": "ä"}'.encode("latin-1"), 422, "Invalid JSON"),
    "a byte order mark": (b"\xef\xbb\xbf" + body(), 422, "Invalid JSON"),
    "overlong UTF-8": (b'{"posts": "\xc0\xaf"}', 422, "Invalid JSON"),
    "half a character in UTF-8": (b'{"posts": "\xed\xa0\x80"}', 422, "Invalid JSON"),
    "zeros": (bytes(1_000_000), 422, "Invalid JSON"),
    "noise": (os.urandom(100_000), 422, "Invalid JSON"),
    "blanks": (b" " * 1_000_000, 422, "Invalid JSON"),
    "signs in a text that does not end": (b'"' + b'\\"' * 2_000_000 + b"," * 70_000, 422, "Invalid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_posts_is_a_4xx_with_its_reason(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    content, status, reason = BODIES[name]
    app = made()
    answer = TestClient(app).post("/score", content=content, headers=JSON)
    assert answer.status_code == status, answer.text[:500]
    assert re.search(reason, answer.text), answer.text[:500]
    assert len(answer.content) < 5_000
    assert SECRET not in caplog.text
    assert (app.state.service.bytes, app.state.service.posts, app.state.service.requests) == (0, 0, 0)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/xml"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": "application/json/x"},
        {"Content-Type": "\xff"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json; charset=latin-1"},
        JSON | {"Content-Encoding": "gzip"},
        JSON | {"Content-Encoding": "br"},
        JSON | {"Content-Encoding": "identity, gzip"},
        JSON | {"Content-Encoding": "x" * 5000},
    ],
)
def test_another_type_or_coding_of_the_body_is_a_415(headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = TestClient(made()).post("/score", content=body(), headers=raw)  # type: ignore[arg-type]
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "utf8"])
def test_json_that_says_that_it_is_utf_8_is_taken(charset: str) -> None:
    headers = {"Content-Type": f"Application/JSON; charset={charset}"}
    assert TestClient(made()).post("/score", content=body(), headers=headers).status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"])
def test_another_method_is_a_405(method: str) -> None:
    assert TestClient(made()).request(method, "/score", content=body(), headers=JSON).status_code == 405


@pytest.mark.parametrize(
    "path", ["/", "/score/x", "//score", "/%2e%2e/etc/passwd", "/../score", "/score%00", "/a/../x"]
)
def test_another_path_is_a_404(path: str) -> None:
    app = made()
    with listening(app) as url:
        where = urlsplit(url)
        found = raw(where, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert found.split()[1] == b"404"


# --- one picture


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_animal_of_the_zoo_is_scored_or_has_its_reason(tmp_path: Path, tiny_backbone: BackboneSettings) -> None:
    """By the real scorer: each in a post of its own, all of them in one request."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_backbone, train_settings())
    points = OperatingPoints(calibration=report().calibration, thresholds=report().operating_points)
    write_operating_points(checkpoint, points)
    version = RegisteredVersion(name="m", version="7", run_id=None, source=None)
    score = LocalScore(version, checkpoint, Scorer.from_directory(checkpoint))

    class Real(Stub):
        def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
            return score(inputs, now)

    served = Real()
    served.limits, served.post_limits = score.limits, score.post_limits
    app = create_app(served, load_service({"request_posts": 1000, "queue_posts": 1000}))
    posts = [
        post(name.replace("  ", " "), images=[f"data:image/png;base64,{base64.b64encode(animal.data).decode()}"])
        for name, animal in ZOO.items()
    ]
    answer = TestClient(app).post("/score", json={"posts": posts})
    assert answer.status_code == 200
    records = dict(zip(ZOO, answer.json()["records"], strict=True))
    inside = {name for name in ZOO if name not in ("png of too many pixels", "a file of too many bytes")}
    assert {name for name in inside if records[name]["score"] is None} == {
        name for name in inside if ZOO[name].pixels is None
    }
    for name in inside:
        assert ZOO[name].refusal in (records[name]["error"] or "")


ESCAPES = [
    "../secret.png", "a/../../secret.png", "..", ".", "/", "", "/etc/passwd", "/proc/self/environ", "/dev/zero",
    "/dev/stdin", "file.png", "folder.png", "folder.png/secret.png", "loop.png", "pipe.png", "up.png/secret.png",
    "zero.png", "a.png\0", "a.png\0.jpg", "\0", "~/secret.png", "~root", "..\\secret.png", "%2e%2e/secret.png",
    "..%2fsecret.png", "．．/secret.png", "..//secret.png", "....//secret.png", "./../secret.png",
    "a.png/../../secret.png", "A.PNG", "a.png ", "a.png\n", "$HOME", "`id`", "|id", "*", "a*", "x" * 300, "x/" * 3000,
    "file:///etc/passwd", "file://localhost/etc/passwd", "s3://bucket/a.png", "http://127.0.0.1/a.png", "//x/a.png",
    "data:", "data:,", "data:image/png;base64", "data:image/png,abc", "data:image/png;base64,!", "data:;base64,AA=A",
    "javascript:1", "\U0001f600", "ä" * 2000,
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of pictures beside a secret one, with links and files that lead to harm."""
    root = tmp_path / "root"
    (tmp_path / "root-2").mkdir()
    root.mkdir()
    (root / "a.png").write_bytes(picture())
    for place in (tmp_path / "secret.png", tmp_path / "root-2" / "secret.png"):
        place.write_bytes(picture(77))
    (root / "file.png").symlink_to(tmp_path / "secret.png")
    (root / "folder.png").symlink_to(tmp_path)
    (root / "up.png").symlink_to("..")
    (root / "loop.png").symlink_to("loop.png")
    (root / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.png")
    return root


@pytest.mark.parametrize("open_", [False, True])
def test_no_path_leads_out_of_the_root(root: Path, open_: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    stub = Seeing()
    more = [f"{root}/../secret.png", f"{root}-2/secret.png", "../root-2/secret.png", str(root), f"{root}/file.png"]
    sources = [source for source in ESCAPES + more if source.strip()]
    service = TestClient(made(stub, image_root=str(root) if open_ else None))
    for start in range(0, len(sources), 60):
        part = sources[start : start + 60]
        posts = [post("good"), *(post(str(k), images=[source]) for k, source in enumerate(part))]
        answer = service.post("/score", json={"posts": posts})
        assert answer.status_code == 200
        good, *records = answer.json()["records"]
        assert good["error"] is None
        assert [source for source, record in zip(part, records, strict=True) if record["error"] is None] == []
        assert {record["score"] for record in records} == {None}
        assert str(root.parent) not in answer.text
    assert stub.seen == {picture()}
    assert "secret" not in caplog.text


# --- pictures by URL


@pytest.fixture
def host() -> Iterator[PictureHost]:
    with picture_host() as made:
        made.answers["/a.png"] = ok(picture())
        yield made


def test_no_trick_with_a_url_reaches_another_host(host: PictureHost, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    stub = Seeing()
    app = made(stub, image_hosts=["cdn.example.com", "*.images.example.org", "cdn.example.com:8443", host.url])
    to = [f"http://127.0.0.1:{host.port + 1}/", f"http://x@127.0.0.1:{host.port}/a.png", f"http://[::1]:{host.port}/a.png",
          f"http://127.1:{host.port}/a.png", f"http://0x7f000001:{host.port}/a.png", f"http://2130706433:{host.port}/a.png",
          f"http://localhost:{host.port}/a.png", f"https://127.0.0.1:{host.port}/a.png"]  # fmt: skip
    urls = [url for url in [*URLS, *to] if url.strip() and "\ud800" not in url]
    with TestClient(app) as service:
        for start in range(0, len(urls), 60):
            part = urls[start : start + 60]
            sent = {"posts": [post(str(k), images=[url]) for k, url in enumerate(part)]}
            answer = service.post("/score", json=sent)
            assert answer.status_code == 422
            assert [u for u, r in zip(part, answer.json()["records"], strict=True) if not r["error"]] == []
    assert (stub.seen, host.heads) == (set(), [])
    assert "evil" not in caplog.text


def test_a_picture_by_url_is_scored_as_the_same_one_in_the_body(host: PictureHost) -> None:
    host.answers["/to"] = moved("/a.png")
    posts = [post("a", images=[f"{host.url}/a.png"] * 2), post("b", images=[f"{host.url}/to"]), post("c")]
    with listening(made(image_hosts=[host.url])) as url:
        records = httpx2.post(f"{url}/score", json={"posts": posts}, timeout=60).json()["records"]
    assert [record["error"] for record in records] == [None] * 3
    assert records[1]["input_sha256"] == records[2]["input_sha256"]
    assert sorted(head.split()[1] for head in host.heads) == ["/a.png", "/a.png", "/to"]  # once each, and the redirect


def test_a_picture_that_cannot_be_fetched_costs_no_other_post(host: PictureHost) -> None:
    host.answers["/big"] = ok(bytes(200_000))
    posts = [post("a", images=[f"{host.url}/none"]), post("b", images=[f"{host.url}/big"]), post("c"),
             post("d", images=[f"{host.url}/a.png", "http://127.0.0.1:1/"])]  # fmt: skip
    answer = TestClient(made(image_hosts=[host.url])).post("/score", json={"posts": posts})
    assert answer.status_code == 200
    errors = [record["error"] for record in answer.json()["records"]]
    assert errors[:3] == [
        "image 1: its host answered with status 404",
        "image 1: more than 100,000 bytes, which is the most that is read",
        None,
    ]
    assert errors[3].startswith("image 2: only https URLs are read")


def test_fetched_bytes_count_as_the_request_s_own(host: PictureHost) -> None:
    host.answers |= {f"/{k}": ok(bytes(90_000)) for k in range(60)}
    urls = [f"{host.url}/{k}" for k in range(60)]
    app = made(image_hosts=[host.url], request_bytes=1_000_000)
    answer = TestClient(app).post("/score", json={"posts": [post(images=urls)]})
    assert answer.status_code == 413
    assert "more than 1,000,000 bytes" in answer.json()["detail"]
    assert len(host.heads) < 60
    assert app.state.service.bytes == 0


def test_no_url_of_a_post_with_too_many_is_fetched(host: PictureHost) -> None:
    urls = [f"{host.url}/{k}" for k in range(65)]
    answer = TestClient(made(image_hosts=[host.url])).post("/score", json={"posts": [post(images=urls)]})
    assert "65 images; at most 64" in answer.json()["records"][0]["error"]
    assert host.heads == []


def test_hosts_that_hang_hold_up_nobody_else(host: PictureHost) -> None:
    """All pictures of a request share its seconds, and who sends none by URL does not wait."""
    ended = threading.Event()
    host.answers = {f"/{k}": lambda _: ended.wait(60) for k in range(40)}  # type: ignore[misc]
    with listening(made(image_hosts=[host.url], image_seconds=8)) as url:
        answers: list[httpx2.Response] = []

        def send() -> None:
            sent = {"posts": [post(str(k), images=[f"{host.url}/{k}"]) for k in range(40)]}
            answers.append(httpx2.post(f"{url}/score", json=sent, timeout=120))

        waiting = [threading.Thread(target=send) for _ in range(6)]
        for thread in waiting:
            thread.start()
        while len(host.heads) < 8:
            time.sleep(0.01)
        assert httpx2.post(f"{url}/score", json={"posts": [post()]}, timeout=60).status_code == 200
        assert answers == []  # theirs are still waited for
        for thread in waiting:
            thread.join()
        ended.set()
    assert {answer.status_code for answer in answers} == {422}
    assert {r["error"] for a in answers for r in a.json()["records"]} == {"image 1: not fetched within 8 seconds"}


# --- a real server: bodies and clients of every kind


def raw(where: Any, sent: bytes, wait: bool = True) -> bytes:
    with socket.create_connection((where.hostname, where.port), timeout=60) as client:
        client.sendall(sent)
        found = b""
        while wait and (part := client.recv(65_536)):
            found += part
        return found


@pytest.mark.parametrize("chunked", [False, True])
def test_a_hundred_megabytes_are_refused_and_not_kept(chunked: bool) -> None:
    app = made()
    held = []
    with listening(app) as url:

        def parts() -> Iterator[bytes]:
            for _ in range(100):
                held.append(app.state.service.bytes)
                yield bytes(1_000_000)

        headers = JSON if chunked else JSON | {"Content-Length": "100000000"}
        try:
            answer = httpx2.post(f"{url}/score", content=parts(), headers=headers, timeout=60)
        except httpx2.NetworkError:  # it was told before it had sent all
            assert not chunked
        else:
            assert answer.status_code == 413
        assert httpx2.get(f"{url}/healthz").status_code == 200
    assert max(held) <= 65_000_000
    assert app.state.service.bytes == 0


#: What comes over a socket -> a part of the answer's first line; None: the connection ends, with or without a word.
STREAMS = {
    "no http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b" 400 "),
    "a method that is none": (b"\0\0 / HTTP/1.1\r\n\r\n", b" 400 "),
    "a header without a name": (b"POST /score HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", b" 400 "),
    "two lengths": (b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", b" 400 "),
    "a length that is none": (b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b" 400 "),
    "a chunk that is none": (
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b" 400 ",
    ),
    "an unknown coding": (
        b"POST /score HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: gzip\r\n\r\n", b" 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_what_is_no_request_is_refused(name: str) -> None:
    sent, expected = STREAMS[name]
    with listening(made(request_seconds=1)) as url:
        found = raw(urlsplit(url), sent)
        assert expected in found.split(b"\r\n")[0], found
        assert httpx2.get(f"{url}/healthz").status_code == 200


def test_clients_that_drip_go_after_the_time_and_nobody_waits_for_them() -> None:
    app = made(request_seconds=1)
    with listening(app) as url:
        where = urlsplit(url)
        head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
        slow = [socket.create_connection((where.hostname, where.port), timeout=60) for _ in range(50)]
        for client in slow:
            client.sendall(head)
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                for client in slow:
                    with suppress(OSError):
                        client.sendall(b" ")

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert httpx2.post(f"{url}/score", json={"posts": [post()]}, timeout=60).status_code == 200
        assert [b" 408 " in client.recv(1000) for client in slow] == [True] * 50
        stop.set()
        dripping.join()
        for client in slow:
            client.close()
    assert (app.state.service.bytes, app.state.service.requests) == (0, 0)


def test_clients_that_go_leave_nothing_behind() -> None:
    app = made()
    with listening(app) as url:
        head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        for sent in (head % 10, head % 10 + b"{", head % len(body()) + body(), b"POST /sc", b""):
            for _ in range(5):
                raw(urlsplit(url), sent, wait=False)
        end = time.monotonic() + 60
        while app.state.service.requests or app.state.service.bytes:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert httpx2.post(f"{url}/score", json={"posts": [post()]}).status_code == 200


# --- at random


ROW = ["posts", "post_id", "images", "video", "title", "text", data_url(picture())]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.sampled_from([*ESCAPES, *ROW]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(ROW), inner),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.binary()
    | st.builds(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"), ANYTHING)
    | st.builds(lambda value: json.dumps({"posts": [{"post_id": "a", "images": value}]}).encode(), st.lists(ANYTHING))
)
def test_no_body_at_random_is_a_fault_of_ours(content: bytes) -> None:
    answer = RANDOM.post("/score", content=content, headers=JSON)
    assert answer.status_code in (200, 413, 422), answer.text
    assert answer.json().keys() <= {"detail", "records"}


RANDOM = TestClient(made())
schema = schemathesis.openapi.from_asgi("/openapi.json", made())


@schema.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_of_the_document_is_a_fault_of_ours(case: schemathesis.Case) -> None:
    """Schemathesis makes requests that fit the document and such that do not; the answers fit it, too. A text that fits
    need not be a picture: a post without one is no success.
    """
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
