"""Posts with a video, as the service and the stream take them: what is scored is what a batch scores."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from model.images import ImageLimits
from model.settings import PostLimits
from model.video import FRAMES
from scoring.app import create_app
from scoring.files import picture_reader, video_reader
from scoring.record import Record
from scoring.remote import RemoteScore
from scoring.score import Input, read_input
from scoring.settings import load_service
from scoring.stream.run import store_of, stream
from tests.support.clips import clip
from tests.support.pictures import ok, picture_host
from tests.support.service import Stub, listening, picture, post
from tests.support.stream import INGEST, StubScore, settings

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=10_000, max_video_bytes=50_000, max_video_seconds=4)
MANY = INGEST.model_copy(update={"max_images": 64})


class Seeing(Stub):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.limits, self.post_limits, self.inputs = LIMITS, PostLimits(), list[Input]()

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        self.inputs += inputs
        return super().__call__(inputs, now)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    (root / "a.mp4").write_bytes(clip(24, seed=1))
    (root / "long.mp4").write_bytes(clip(10, times=range(0, 1000, 100)))
    (root / "cover.png").write_bytes(picture())
    (root.parent / "outside.mp4").write_bytes(clip(3))
    return root


def in_a_batch(folder: Path, **cells: Any) -> Input:
    read, watch = picture_reader(str(folder), LIMITS), video_reader(str(folder), LIMITS)
    return read_input({"post_id": "a", "title": "sea"} | cells, read, PostLimits(), watch)


def data_url(video: bytes) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(video).decode()}"


def sent(client: Any, **cells: Any) -> tuple[int, dict[str, Any]]:
    answer = client.post("/score", json={"posts": [{"post_id": "a", "title": "sea"} | cells]})
    found: dict[str, Any] = answer.json()["records"][0]
    return answer.status_code, found


def test_the_service_scores_what_a_batch_scores_however_the_video_is_given(folder: Path) -> None:
    stub, data = Seeing(), (folder / "a.mp4").read_bytes()
    with picture_host() as host:
        host.answers["/a.mp4"] = ok(data)
        host.answers["/large.mp4"] = ok(bytes(60_000))
        service = TestClient(create_app(stub, load_service({"image_root": str(folder), "image_hosts": [host.url]})))
        for video in (data_url(data), "a.mp4", str(folder / "a.mp4"), f"{host.url}/a.mp4"):
            assert sent(service, video=video)[1]["error"] is None
        assert sent(service, video="a.mp4", images=["cover.png"])[0] == 200
        _, refused = sent(service, video=f"{host.url}/large.mp4")
    alone, beside = in_a_batch(folder, video="a.mp4"), in_a_batch(folder, video="a.mp4", images=["cover.png"])
    assert (alone.error, len(alone.images), len(beside.images)) == (None, FRAMES, FRAMES + 1)
    assert stub.inputs[:5] == [alone] * 4 + [beside]
    assert [each.sha256 for each in stub.inputs[:5]] == [alone.sha256] * 4 + [beside.sha256]
    assert refused["error"] == "video: more than 50,000 bytes, which is the most that is read"


def hostile(folder: Path) -> Iterator[tuple[str, str]]:
    """A video, and why it is none."""
    data = (folder / "a.mp4").read_bytes()
    yield data_url(data[: len(data) // 2]), "cut or corrupt"
    yield data_url(data[:100] + bytes(1000)), "cut or corrupt"
    yield data_url(bytes(60_000)), "bytes; at most 50,000 are read"
    yield data_url(b""), "empty file"
    yield data_url(picture()), "not an MP4, MOV, WebM or MKV video"
    yield data_url(b"#!/bin/sh\n"), "not an MP4, MOV, WebM or MKV video"
    yield data_url(b"#EXTM3U\nfile:///etc/passwd"), "not an MP4, MOV, WebM or MKV video"
    yield "data:video/mp4;base64,/", "base64 text is damaged"
    yield "data:video/mp4,abc", "is no data URL in base64"
    yield "long.mp4", "9 s long; at most 4 s are read"
    yield "cover.png", "not an MP4, MOV, WebM or MKV video"
    yield "none.mp4", "no such file"
    yield "../outside.mp4", "lies outside of the folder"
    yield str(folder.parent / "outside.mp4"), "lies outside of the folder"
    yield "https://127.0.0.1/a.mp4", "no URL is read here"


def test_a_hostile_video_is_refused_with_its_reason_and_costs_no_other_post(folder: Path) -> None:
    stub = Seeing()
    service = TestClient(create_app(stub, load_service({"image_root": str(folder)})))
    cases = list(hostile(folder))
    posts = [{"post_id": str(k), "video": video} for k, (video, _) in enumerate(cases)]
    answer = service.post("/score", json={"posts": [*posts, post("good")]})
    assert answer.status_code == 200
    *bad, good = answer.json()["records"]
    assert good["score"] == 0.03
    for (video, reason), record in zip(cases, bad, strict=True):
        assert record["error"].startswith("video: "), (video[:80], record)
        assert reason in record["error"], (video[:80], record)
    assert sent(service, video=cases[0][0])[0] == 422
    stub.post_limits = PostLimits(max_images=FRAMES)
    many = sent(service, video="a.mp4", images=["cover.png"])
    assert many == (422, many[1])
    assert "17 images; at most 16" in many[1]["error"]


def test_without_a_root_no_path_is_read(folder: Path) -> None:
    _, found = sent(TestClient(create_app(Seeing(), load_service())), video=str(folder / "a.mp4"))
    assert found["error"].startswith("video: no path or URL is read here")


def test_videos_that_wait_have_an_end_and_pictures_go_on_beside_them(folder: Path) -> None:
    gate, data = threading.Event(), (folder / "a.mp4").read_bytes()

    def read(source: Any) -> bytes:
        if source == "slow":
            gate.wait(60)
        return picture() if source == "picture" else data

    app = create_app(Seeing(), load_service(), read=read)
    with listening(app) as url, httpx2.Client(base_url=url, timeout=120) as client:
        slow = threading.Thread(target=lambda: found.append(sent(client, video="slow")))
        found: list[tuple[int, dict[str, Any]]] = []
        slow.start()
        while not app.state.service.requests:
            pass
        posts = [{"post_id": str(k), "video": "v"} for k in range(16)]
        refused = client.post("/score", json={"posts": posts})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "1 videos wait" in refused.json()["detail"]
        assert sent(client, images=["picture"])[0] == 200
        gate.set()
        slow.join()
    assert found[0][0] == 200


def test_a_stream_scores_what_a_batch_scores_and_a_video_that_may_come_is_waited_for(
    folder: Path, tmp_path: Path, agentps_home: Path
) -> None:
    class Remembering(StubScore):
        limits, post_limits, inputs = LIMITS, PostLimits(), list[Input]()

        def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
            self.inputs.extend(inputs)
            return super().__call__(inputs, now)

    score = Remembering()
    chosen = settings(tmp_path, str(tmp_path / "in"), images=str(folder))
    (tmp_path / "in").mkdir()

    def go() -> str:
        rows = [
            {"post_id": "a", "title": "sea", "video": "a.mp4"},
            {"post_id": "b", "video": data_url((folder / "a.mp4").read_bytes()), "images": ["cover.png"]},
            {"post_id": "absent", "video": "none.mp4"},
            {"post_id": "broken", "video": "cover.png"},
        ]
        (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        said: list[str] = []
        stream(chosen, MANY, score, said.append, once=True)
        return said[-1]

    assert "2 posts scored, 0 unchanged, 2 without a score, 1 dead letters" in go()
    assert score.inputs[0] == in_a_batch(folder, video="a.mp4")
    store = store_of(chosen)
    assert [letter.reason for letter in store.dead_letters()] == ["pictures: video: no such file"]
    ((record, _),) = store.current(["broken"]).values()
    assert record.error == "video: not an MP4, MOV, WebM or MKV video"
    assert "0 posts scored, 2 unchanged, 2 without a score" in go()


def test_a_record_of_a_service_names_the_video_that_was_scored(folder: Path) -> None:
    """It had the hash of the frames: a stream that scores by a service took every video for an updated one."""
    seen = in_a_batch(folder, video="a.mp4")
    with listening(create_app(Seeing(), load_service())) as url, RemoteScore(url) as score:
        (record,) = score([seen])
    assert (record.error, record.input_sha256) == (None, seen.sha256)
