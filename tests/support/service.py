"""A service without a model: what its application does with requests, on a real port."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import uvicorn
from fastapi import FastAPI
from PIL import Image

from model.images import ImageLimits
from model.settings import PostLimits
from scoring.about import Status
from scoring.record import Record
from scoring.score import Input

BIRTH = datetime(2026, 1, 1, tzinfo=UTC)


class Stub:
    """Scores a post by the length of its title, in hundredths. gate: a call waits for it; calls: ids, by call."""

    def __init__(self) -> None:
        self.limits, self.post_limits = ImageLimits(max_bytes=10_000, max_pixels=10_000), PostLimits(max_images=3)
        self.status = Status(model="m", version="7", task="t", since=BIRTH)
        self.shadow: dict[str, int] = {}
        self._one = ThreadPoolExecutor(1)
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[list[str]] = []

    @property
    def about(self) -> Any:
        return self

    async def submit(self, inputs: Sequence[Input]) -> list[Record]:
        """One request after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._one, self, inputs)

    def tokens(self, post: Input) -> int:
        return len(post.images)

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        self.calls.append([post.post_id for post in inputs])
        self.gate.wait(60)
        return [
            Record(
                post_id=post.post_id,
                model_name="m",
                model_version=self.status.version,
                task="t",
                input_sha256=post.sha256,
                scored_at=now or datetime.now(UTC),
                **({"error": post.error} if post.error else {"score": len(post.title) / 100}),
            )
            for post in inputs
        ]


def picture(shade: int = 128) -> bytes:
    buffer = BytesIO()
    Image.new("L", (20, 10), shade).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def post(post_id: str = "a", **cells: Any) -> dict[str, Any]:
    return {"post_id": post_id, "title": "sea", "images": [data_url(picture())]} | cells


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of the application behind a real server."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
