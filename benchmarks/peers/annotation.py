"""The annotation client beside bespokelabs-curator: the same prompts, images and loopback server, in turn."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from benchmarks import record
from benchmarks.annotation import _TITLE, STORM, Server, make_posts, server, settings_of, stats
from benchmarks.peers.meter import REPOSITORY, Meter, run, versions
from model.task import load_task
from steps.annotate.client import annotate_posts
from steps.annotate.ledger import Ledger
from steps.annotate.prices import load_prices
from steps.annotate.prompt import build_questions

RECORD = REPOSITORY / "benchmarks" / "peers" / "annotation.json"
PAGE = REPOSITORY / "docs" / "steps" / "annotate.md"
OURS, CURATOR = "AgentPS", "curator"
REPLY_S, RETRY_AFTER_S = 0.2, 5
JSON = {"content-type": "application/json"}
SOONEST = "soonest repeat, ms"
_TOO_SLOW = ("429 with Retry-After: 120", "slow drip")


class PeerServer(Server):
    """Answers after REPLY_S: well (`good`), as in STORM (`storm`), or to the first request of a post 429 (`limit`)."""

    def __init__(self, mode: str) -> None:
        super().__init__(mode)
        self._names = [name for name in STORM if name not in _TOO_SLOW]
        self._weights = [STORM[name][0] for name in self._names]
        self._limited: dict[int, float] = {}

    async def _answer(self, writer: asyncio.StreamWriter, body: bytes) -> bool:
        found = _TITLE.search(body)
        if found is None:  # curator asks for the endpoint's rate limits, of which it has none
            await self._reply(writer, 200, {}, b"{}")
            return True
        number, now = int(found[1]), time.monotonic()
        self._requests += 1
        await asyncio.sleep(REPLY_S)
        name = self._random.choices(self._names, self._weights)[0] if self._mode == "storm" else "answer"
        if self._mode == "limit" and number not in self._limited:
            self._limited[number] = time.monotonic()
            await self._reply(
                writer, 429, JSON | {"retry-after": str(RETRY_AFTER_S)}, b'{"error": {"message": "slow down"}}'
            )
            return True
        if self._mode == "limit":
            gap = round(1000 * (now - self._limited[number]))
            self._sent[SOONEST] = min(gap, self._sent.get(SOONEST, gap))
        _, status, headers, data = STORM[name]
        if status == 0:
            writer.transport.abort()
            return False
        self._charged[number] += status == 200
        await self._reply(writer, status, ({} if name.startswith("HTML") else JSON) | headers, data)
        return True


def ours(url: str, posts: str, folder: str, retries: str) -> None:
    """Our side, in a process of its own; prints what `curator_worker` prints."""
    table, meter = pd.read_parquet(posts), Meter()
    settings = settings_of(retries=int(retries), max_missing_share=1)
    with Ledger(f"sqlite:///{folder}/ledger.db") as ledger:
        found = annotate_posts(
            table, load_task("ucc"), settings, ledger, base_url=url, api_key="k", price=load_prices()["gpt-4o"]
        )
    answered = int(found.labels["missing_reason"].isna().sum())
    sys.stdout.write("\n" + json.dumps({"answered": answered} | meter.per(1)) + "\n")


class Sides:
    """Both sides over the same posts, each run in a process of its own with a folder that keeps its answers."""

    def __init__(self, work: Path, n: int) -> None:
        self._work = work
        self._table = make_posts(work, n + 1, 64, 4, 200)
        task = load_task("ucc")
        self._rows = [
            {
                "post_id": post["post_id"],
                "prompt": build_questions(task, post["title"], post["text"], len(post["images"])),
                "images": [str(Path(post["root"]) / name) for name in post["images"]],
            }
            for post in self._table.to_dict("records")
        ]

    def run(self, side: str, mode: str, n: int, folder: str, retries: int = 1) -> dict[str, Any]:
        """The first `n` posts: `answered`, `wall` and `cpu` seconds, and what the server counted.

        Args:
            retries: of AgentPS; curator has its default of 10, and does not retry what `retries` is about.
        """
        kept = self._work / side / folder
        kept.mkdir(parents=True, exist_ok=True)
        if side == OURS:
            posts, peer, module = self._work / "posts.parquet", None, "annotation"
            self._table[:n].to_parquet(posts)
        else:
            posts, peer, module = self._work / "posts.json", "curator", "curator_worker"
            posts.write_text(json.dumps(self._rows[:n]), encoding="utf-8")
        environment = {
            "HOME": str(self._work),
            "OPENAI_API_KEY": "k",
            "TELEMETRY_ENABLED": "false",
            "CURATOR_DISABLE_RICH_DISPLAY": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        with server(mode, PeerServer) as url:
            stats(url)  # it accepts
            found = run(peer, "-m", f"benchmarks.peers.{module}", url, posts, kept, retries, **environment)
            told = stats(url)
        charged = sum(int(times) * posts for times, posts in told["charged"].items())
        return found | {"requests": told["requests"], "charged": charged, "soonest_ms": told["sent"].get(SOONEST)}


def measure(rounds: int, n: int = 2000) -> None:
    found: dict[str, Any] = {side: {"good": []} for side in (OURS, CURATOR)}
    with tempfile.TemporaryDirectory() as work:
        sides = Sides(Path(work), n)
        for number in range(rounds):
            for side in found:
                found[side]["good"].append(sides.run(side, "good", n, f"good-{number}"))
        for side, runs in found.items():
            runs["one post more"] = sides.run(side, "good", n + 1, "good-0")
            runs["storm"] = sides.run(side, "storm", n, "storm")
            runs["after the storm"] = sides.run(side, "good", n, "storm", retries=3)
            runs["limit"] = sides.run(side, "limit", 64, "limit")
    machine = record.machine("openai") | {"peer": versions("curator", "bespokelabs-curator", "litellm")}
    record.write(RECORD, machine | {"rounds": rounds, "posts": n, "load": os.getloadavg()[1], "runs": found})


def table() -> str:
    """Markdown of the record, a column per side."""
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    sides = [found["runs"][side] for side in (OURS, CURATOR)]

    def good(what: str, per_request: bool) -> list[float]:
        return [
            median(run[what] / run["requests"] if per_request else run["requests"] / run[what] for run in side["good"])
            for side in sides
        ]

    cpu = [1000 * seconds for seconds in good("cpu", True)]
    n, storms = found["posts"], [side["storm"] for side in sides]
    rows = [
        ["client CPU per request", f"{cpu[0]:.2f} ms", f"{cpu[1]:.2f} ms ({cpu[1] / cpu[0]:.2f}x)"],
        ["requests per second", *(f"{rate:.0f}" for rate in good("wall", False))],
        [f"one new post beside {n:,}: requests", *(f"{side['one post more']['requests']:,}" for side in sides)],
        [f"storm: answered of {n:,}", *(f"{storm['answered']:,}" for storm in storms)],
        ["storm: replies charged per answer", *(f"{s['charged'] / s['answered']:.3f}" for s in storms)],
        ["storm: seconds", *(f"{storm['wall']:.0f}" for storm in storms)],
        ["run again, the server well: requests, answered",
         *(f"{after['requests']:,}, {after['answered']:,}" for after in (side["after the storm"] for side in sides))],
        [f"429 with `Retry-After: {RETRY_AFTER_S}`: repeated after, at least",
         *(f"{side['limit']['soonest_ms'] / 1000:.2f} s" for side in sides)],
    ]  # fmt: skip
    setting = f"{found['processor']}, {found['date']}, {found['cores']} cores at a load of {found['load']:.0f}:"
    header = ["", OURS, f"curator {found['peer']['bespokelabs-curator']}"]
    return f"{setting}\n\n{record.table(header, rows)}"


if __name__ == "__main__":
    ours(*sys.argv[1:])
