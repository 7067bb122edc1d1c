"""What the speed benchmarks have in common: the machine, medians, memory, the committed record, the page's tables."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from model.files import write_whole
from steps.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "speed.md"


def machine(*packages: str) -> dict[str, Any]:
    """The date, the processor, the cores, Python's version and those of the packages."""
    names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def in_turn(arms: dict[str, Callable[[], object]], rounds: int, *, warm: bool = True) -> dict[str, dict[str, float]]:
    """Median seconds of each arm, `wall` and `cpu`; `warm`: not of a first round, which also prepares kernels."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(rounds + warm):
        for name, run in arms.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {clock: median(pair[k] for pair in pairs[warm:]) for k, clock in enumerate(("wall", "cpu"))}
        for name, pairs in seconds.items()
    }


def memory(field: str) -> float:
    """MB of this process: `VmRSS` now, `VmHWM` at its highest."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) / 1024


def forget_peak() -> None:
    """Let `VmHWM` begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def write(path: Path, record: dict[str, Any]) -> None:
    write_whole(path, json.dumps(record, indent=1) + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def put(tables: dict[str, str], page: Path = PAGE) -> None:
    """Write each table between its two marks on the page.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    for name, rendered in tables.items():
        found = re.search(rf"<!-- {re.escape(name)} -->\n(.*?)<!-- /{re.escape(name)} -->", text, re.DOTALL)
        if found is None:
            raise ValueError(f"{page}: no marks <!-- {name} --> and <!-- /{name} --> for its table; add them")
        text = text[: found.start(1)] + rendered + "\n" + text[found.end(1) :]
    write_whole(page, text)
