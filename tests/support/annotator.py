"""Posts, settings and a server that misbehaves on purpose, for the tests and measurements of the annotation."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from PIL import Image

from steps.annotate.settings import AnnotateSettings
from steps.paths import REPOSITORY

SOURCE = "openai:gpt-4o"
N_IMAGES = 2
COUNTS = "0,1,2,1,2"


def make_posts(folder: Path, n: int, split: str = "train", **options: Any) -> pd.DataFrame:
    rng = np.random.default_rng(n)
    rows = []
    for number in range(n):
        names, hashes = [], []
        for position in range(N_IMAGES):
            out = BytesIO()
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(out, "JPEG", **options)
            names.append(f"{split}-{n}-{number}-{position}.jpg")
            (folder / names[-1]).write_bytes(out.getvalue())
            hashes.append(hashlib.sha256(out.getvalue()).hexdigest())
        row = {"post_id": f"{split}{number}", "title": f"title {number}", "text": f"text {number}", "split": split}
        rows.append(row | {"root": str(folder), "images": names, "image_sha256": hashes})
    return pd.DataFrame(rows)


def settings_of(**changes: Any) -> AnnotateSettings:
    base = {
        "annotator": "openai",
        "model": "gpt-4o",
        "splits": ("train",),
        "concurrency": 4,
        "timeout": 5,
        "retries": 0,
        "detail": "low",
        "max_tokens": 64,
        "request_fields": {},
        "max_missing_share": 1,
        "ask": "together",
        "format": "numbers",
        "mode": "online",
        "max_cost": None,
        "ledger": None,
        "min_agreement": None,
        "on_low_agreement": "warn",
    }
    return AnnotateSettings(**(base | changes))


def completion(content: str | None = COUNTS, **changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": changes.get("refusal")}
    choice = {"index": 0, "message": message, "finish_reason": changes.get("finish_reason", "stop")}
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}


def error(message: str = "no", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": None, "param": None, "code": None, **fields}}


Answer = tuple[int, dict[str, str], bytes]


def reply(body: Any, status: int = 200, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, {key.replace("_", "-"): value for key, value in headers.items()}, data


class Silent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass


class Loopback:
    """An endpoint on a port of its own while its `with` block runs."""

    def __init__(self, handler: type[Silent]) -> None:
        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256  # with five a burst of connections is reset, which an endpoint would not do

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that was killed says nothing of this server."""

        self._server = Quiet(("127.0.0.1", 0), handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Server(Loopback):
    """A loopback endpoint that gives what `behave(number of the request, its body)` returns."""

    def __init__(self, behave: Callable[[int, Any], Answer], drip: float = 0) -> None:
        self.requests: list[Any] = []
        #: Path and headers (names in lower case) of each.
        self.heads: list[tuple[str, dict[str, str]]] = []
        lock = threading.Lock()
        outer = self

        class Handler(Silent):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                if len(data) < int(self.headers["content-length"]):
                    self.close_connection = True  # the client was killed while it sent
                    return
                body = json.loads(data)
                with lock:
                    outer.requests.append(body)
                    outer.heads.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                    number = len(outer.requests)
                status, headers, data = behave(number, body)
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    if "content-length" not in headers:
                        self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    for byte in [data] if not drip else [data[i : i + 1] for i in range(len(data))]:
                        self.wfile.write(byte)
                        time.sleep(drip)
                    if "content-length" in headers:
                        self.close_connection = True
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client gave up, as it should

        super().__init__(Handler)


_SCRIPT = """
import sys
import pandas as pd
from model.task import load_task
from steps.annotate import batch
from steps.annotate.client import annotate_posts
from steps.annotate.ledger import Ledger
from steps.annotate.prices import load_prices
from steps.annotate.settings import AnnotateSettings
batch._FIRST_POLL = batch._LONGEST_POLL = 0.05
batch.MAX_REQUESTS = 10
settings = AnnotateSettings.model_validate({settings!r})
with Ledger({url!r}) as ledger:
    result = annotate_posts(pd.read_parquet({posts!r}), load_task("ucc"), settings, ledger, base_url=sys.argv[1],
        api_key="k", price=load_prices()["gpt-4o"], on_progress=lambda progress: print(progress.done, flush=True))
    print("asked", result.asked, "answered", int(result.labels["missing_reason"].isna().sum()))
"""


def annotating(folder: Path, base_url: str, **changes: Any) -> subprocess.Popen[str]:
    """A process that annotates `posts.parquet` of the folder with the ledger there; of a batch ten requests a file."""
    script = _SCRIPT.format(
        settings=settings_of(**changes).model_dump(),
        posts=str(folder / "posts.parquet"),
        url=f"sqlite:///{folder / 'ledger.db'}",
    )
    command = [sys.executable, "-c", script, base_url]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
