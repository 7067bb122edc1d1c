"""The annotation client against a server that misbehaves, and against one that takes a second.

    .venv/bin/python benchmarks/annotation.py storm [--posts 20000]
    .venv/bin/python benchmarks/annotation.py faults [--posts 20000]
    .venv/bin/python benchmarks/annotation.py throughput [--posts 2560]

Prints one JSON object of figures; `docs/steps/annotate.md` has those of one run. The server is a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import socket
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sqlalchemy import create_engine, text

from model.errors import AnnotationError
from model.task import load_task
from steps.annotate.client import annotate_posts
from steps.annotate.ledger import Ledger
from steps.annotate.prices import load_prices
from steps.annotate.tally import Progress
from steps.settings import AnnotateSettings, load_settings

_TITLE = re.compile(rb"post-(\d+)-")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_GOOD = "0,1,2,1,2"

# --- the server


def _completion(content: str | None, **changes: Any) -> bytes:
    message = {"role": "assistant", "content": content, "refusal": changes.get("refusal")}
    choice = {"index": 0, "message": message, "finish_reason": changes.get("finish_reason", "stop")}
    usage = {"prompt_tokens": 700, "completion_tokens": 10, "total_tokens": 710}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


#: Misbehaviour -> (weight, HTTP status, headers, body). Those of status 200 are charged, as an endpoint would.
STORM: dict[str, tuple[float, int, dict[str, str], bytes]] = {
    "answer": (70, 200, {}, _completion(_GOOD)),
    "429": (3, 429, {}, b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'),
    "429 with Retry-After": (3, 429, {"retry-after": "0.2"}, b'{"error": {"message": "slow down"}}'),
    "429 with Retry-After: 120": (0.1, 429, {"retry-after": "120"}, b'{"error": {"message": "slow down"}}'),
    "500": (4, 500, {}, b"oops"),
    "reset": (4, 0, {}, b""),
    "slow drip": (0.3, 200, {}, _completion(_GOOD)),
    "cut JSON": (2, 200, {}, _completion(_GOOD)[:50]),
    "HTML with 200": (2, 200, {}, b"<html>Sign in</html>"),
    "empty choices": (2, 200, {}, b'{"choices": [], "usage": {"prompt_tokens": 700, "completion_tokens": 0}}'),
    "refusal": (3, 200, {}, _completion(None, refusal="I can't help with that.")),
    "wrong count": (3, 200, {}, _completion("0,1,2")),
    "above the images": (1, 200, {}, _completion("0,1,9,1,2")),
    "five numbers and prose": (2, 200, {}, _completion(f"Here you are: {_GOOD}")),
    "cut at max_tokens": (1, 200, {}, _completion("0,1", finish_reason="length")),
}


def _with_error(code: Any, **beside: Any) -> bytes:
    return json.dumps({"error": {"message": "no", "code": code}} | beside).encode()


#: Faults that status, headers and body tell together, and forms of an answer; as STORM. Charged is what has a usage.
FAULTS: dict[str, tuple[float, int, dict[str, str], bytes]] = {
    "an error 429 with 200": (3, 200, {"retry-after": "0.2"}, _with_error(429)),
    "an error in words with 200": (2, 200, {}, _with_error("rate_limit_exceeded")),
    "an error without a code with 200": (1, 200, {}, b'{"error": "upstream"}'),
    "an error that was charged": (1, 200, {}, _with_error(502, usage={"prompt_tokens": 700, "completion_tokens": 3})),
    "flagged with 403": (2, 403, {}, b'{"error": {"message": "no", "code": 403, "metadata": {"reasons": ["sexual"]}}}'),
    "flagged with 400": (
        1,
        400,
        {},
        b'{"error": {"message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}',
    ),
    "a list with 503": (1, 503, {}, b'[{"error": {"code": 503, "status": "UNAVAILABLE"}}]'),
    "after a think block": (2, 200, {}, _completion(f"<think>9, 9?</think>\n\n{_GOOD}")),
    "bold": (2, 200, {}, _completion(f"**{_GOOD}**.")),
    "one on each line": (2, 200, {}, _completion(_GOOD.replace(",", "\n"))),
}
#: Fields that the server refuses in every request, as some models do.
_REFUSED = ("max_tokens", "temperature")
#: Those of STORM that do not say what they cost: what is booked for them is the most that it can be.
_UNSAID = ("reset", "slow drip", "cut JSON", "HTML with 200")
#: At these numbers of requests the quota is out, which ends the run; it is started again.
_QUOTA_AT = (3000, 9000)


class Server:
    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._random = random.Random(0)
        self._replies = STORM | FAULTS
        if mode == "faults":
            self._replies = {name: found for name, found in self._replies.items() if name not in _UNSAID}
        self._names = list(self._replies)
        self._weights = [self._replies[name][0] for name in self._names]
        self._tokens = [0, 0]
        self._requests = 0
        self._charged: Counter[int] = Counter()
        self._sent: Counter[str] = Counter()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1])) if length else b""
                if head.startswith(b"GET"):
                    stats = {"requests": self._requests, "sent": self._sent, "charged": Counter(self._charged.values()),
                             "tokens": self._tokens}  # fmt: skip
                    await self._reply(writer, 200, {}, json.dumps(stats).encode())
                elif not await self._answer(writer, body):
                    return
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, body: bytes) -> bool:
        """False: the connection is gone."""
        self._requests += 1
        if self._mode == "throughput":
            await asyncio.sleep(1.0)
            await self._reply(writer, 200, {}, STORM["answer"][3])
            return True
        title = _TITLE.search(body)
        assert title is not None
        if self._requests in _QUOTA_AT:
            self._sent["insufficient_quota"] += 1
            error = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
            await self._reply(writer, 429, {}, json.dumps(error).encode())
            return True
        if self._mode in ("storm", "faults") and (
            refused := [name for name in _REFUSED if b'"%s":' % name.encode() in body]
        ):
            self._sent["a field that is refused"] += 1
            error = {"error": {"message": "no", "param": refused[0], "code": "unsupported_parameter"}}
            await self._reply(writer, 400, {}, json.dumps(error).encode())
            return True
        name = self._random.choices(self._names, self._weights)[0]
        self._sent[name] += 1
        _, status, headers, data = (STORM | FAULTS)[name]
        if status == 0:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
            return False
        if status == 200 and (name in STORM or b'"usage"' in data):
            self._charged[int(title[1])] += 1
            if name not in _UNSAID:
                usage = json.loads(data)["usage"]
                self._tokens[0] += usage["prompt_tokens"]
                self._tokens[1] += usage["completion_tokens"]
        await self._reply(writer, status, headers, data, drip=0.1 if name == "slow drip" else 0)
        return True

    async def _reply(
        self, writer: asyncio.StreamWriter, status: int, headers: dict[str, str], data: bytes, drip: float = 0
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(data)}", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for piece in [data] if not drip else [data[i : i + 1] for i in range(len(data))]:
            writer.write(piece)
            await writer.drain()
            if drip:
                await asyncio.sleep(drip)


def _serve(kind: type[Server], mode: str, listener: socket.socket) -> None:
    async def run() -> None:
        server = await asyncio.start_server(kind(mode).handle, sock=listener, limit=1 << 26)
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def server(mode: str, kind: type[Server]) -> Iterator[str]:
    """The URL of one in a process of its own."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(kind, mode, listener), daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            process.kill()
            process.join()


def stats(url: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/stats") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


# --- the client


def make_posts(folder: Path, n: int, side: int, images: int, albums: int) -> pd.DataFrame:
    """`n` posts of distinct titles on `albums` distinct albums of `images` JPEGs of side x side pixels."""
    rng = np.random.default_rng(0)
    made = []
    for album in range(albums):
        names, hashes = [], []
        for number in range(images):
            out = io.BytesIO()
            small = rng.integers(0, 255, (max(1, side // 16), max(1, side // 16), 3), dtype=np.uint8)
            Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG")
            names.append(f"{album}-{number}.jpg")
            (folder / names[-1]).write_bytes(out.getvalue())
            hashes.append(hashlib.sha256(out.getvalue()).hexdigest())
        made.append((names, hashes))
    rows = [
        {"post_id": f"p{i}", "title": f"post-{i}-", "text": "so happy", "split": "train", "root": str(folder)}
        | dict(zip(("images", "image_sha256"), made[i % albums], strict=True))
        for i in range(n)
    ]
    return pd.DataFrame(rows)


def settings_of(**changes: Any) -> AnnotateSettings:
    loaded = load_settings({"posts": "manifest", "annotator": "openai", "annotate": {"concurrency": 64} | changes})
    return loaded.annotate


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def storm(n: int, folder: Path, mode: str) -> dict[str, Any]:
    settings, price = settings_of(timeout=10, retries=1, max_missing_share=1), load_prices()["gpt-4o"]
    posts, task = make_posts(folder, n, 16, 2, 200), load_task("ucc")
    memory: dict[int, float] = {}
    quotas = 0
    url = f"sqlite:///{folder / 'ledger.db'}"

    def watch(progress: Progress) -> None:
        if progress.done % max(1, n // 20) == 0:
            memory[progress.done] = resident_mb()

    with server(mode, Server) as endpoint:
        started = time.monotonic()
        cpu = time.process_time()
        while True:
            try:
                with Ledger(url) as ledger:
                    result = annotate_posts(
                        posts, task, settings, ledger, base_url=endpoint, api_key="k", price=price,
                        on_progress=watch,
                    )  # fmt: skip
                break
            except AnnotationError as error:
                if "exceeded your current quota" not in str(error):
                    raise
                quotas += 1
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        told = stats(endpoint)
    with create_engine(url).connect() as database:
        rows = database.execute(text("SELECT COUNT(*), COUNT(DISTINCT key) FROM annotation_answers")).one()
        twice = database.execute(
            text(
                "SELECT COUNT(*) FROM (SELECT key FROM annotation_answers WHERE counts IS NOT NULL "
                "GROUP BY key HAVING COUNT(*) > 1)"
            )
        ).scalar()
        booked = database.execute(
            text("SELECT SUM(prompt_tokens), SUM(completion_tokens), SUM(cost) FROM annotation_answers")
        ).one()
        leases = database.execute(text("SELECT COUNT(*) FROM annotation_leases")).scalar()
    reasons = result.labels["missing_reason"]
    return {
        "posts": n,
        "answered": int(reasons.isna().sum()),
        "missing": {str(reason): int(count) for reason, count in reasons.value_counts().items()},
        "lost": n - int(reasons.isna().sum()) - int(reasons.notna().sum()) + (n - rows[1]),
        "answered twice": twice,
        "leases left": leases,
        "stopped by quota": quotas,
        "ledger rows": rows[0],
        "server": told,
        "charged a post at most (1 + retries)": max(map(int, told["charged"])),
        "tokens": {"charged and said": told["tokens"], "booked": list(booked[:2])},
        # equal for `faults`; for `storm` more are booked: what does not say its cost counts with the most
        "dollars": {"charged and said": round(price.dollars(*told["tokens"]), 6), "booked": round(booked[2], 6)},
        "resident MB": {done: round(mb) for done, mb in sorted(memory.items())},
        "seconds": round(seconds, 1),
        "cpu ms a request": round(1000 * cpu / told["requests"], 2),
        "load": os.getloadavg(),
    }


def throughput(n: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, side, images in (("2 images of 16 pixels", 16, 2), ("4 photos of 1024 pixels", 1024, 4)):
        place = folder / name.replace(" ", "-")
        place.mkdir()
        posts = make_posts(place, n, side, images, 50)
        with server("throughput", Server) as endpoint, Ledger(f"sqlite:///{place / 'ledger.db'}") as ledger:
            stats(endpoint)  # it accepts
            cpu = time.process_time()
            result = annotate_posts(
                posts, load_task("ucc"), settings_of(), ledger, base_url=endpoint, api_key="k",
                price=load_prices()["gpt-4o"],
            )  # fmt: skip
            cpu = time.process_time() - cpu
        found[name] = {
            "requests": result.requests,
            "requests a second": round(result.requests / result.seconds, 1),
            "share of 64 per second": round(result.requests / result.seconds / 64, 3),
            "cpu ms a request": round(1000 * cpu / result.requests, 2),
        }
    return found | {"load": os.getloadavg(), "cores": os.cpu_count()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("storm", "faults", "throughput"))
    parser.add_argument("--posts", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.what != "throughput":
            figures = storm(given.posts or 20_000, Path(folder), given.what)
        else:
            figures = throughput(given.posts or 2560, Path(folder))
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
