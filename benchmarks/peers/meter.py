"""Processes that measure themselves. Every environment imports this, so it needs no package."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
#: On one thread: a second one would wait at barriers, and burn CPU, where other work has its core.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def run(peer: str | None, *arguments: object, **environment: str) -> Any:
    """Run Python in the environment that `run.sh` made for a peer, or in ours; what it prints last, read as JSON.

    Raises:
        RuntimeError: it failed.
    """
    python = sys.executable if peer is None else str(REPOSITORY / ".agentps" / "peers" / peer / "bin" / "python")
    command = [python, *map(str, arguments)]
    variables = os.environ | _ENVIRONMENT | environment
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def versions(peer: str, *packages: str) -> dict[str, str]:
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    found: dict[str, str] = run(peer, "-c", code, *packages)
    return found


def cpu_seconds() -> float:
    """Of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


class Meter:
    """Seconds since it was made, of this process and of its children that ended."""

    def __init__(self) -> None:
        self._cpu, self._wall = cpu_seconds(), time.perf_counter()

    def per(self, posts: int) -> dict[str, float]:
        """`cpu` and `wall`, divided by the number of posts."""
        cpu, wall = cpu_seconds() - self._cpu, time.perf_counter() - self._wall
        return {"cpu": round(cpu / posts, 5), "wall": round(wall / posts, 5)}


class LastEpoch:
    """Mixed into a `TrainerCallback`: the last epoch, up to the end of its last optimizer step; others warm up.

    Making the batches is in it; evaluation and saving are not.
    """

    def __init__(self, posts: int) -> None:
        self._posts = posts
        self.found: dict[str, float] = {}

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._meter = Meter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.found = self._meter.per(self._posts)
