"""Training and scoring beside ms-swift: each round runs every form in a process of its own, ours first."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import textwrap
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import record
from benchmarks.peers.meter import REPOSITORY, run, versions
from benchmarks.peers.posts import POSTS, write_all

RECORD = REPOSITORY / "benchmarks" / "peers" / "network.json"
PAGE = REPOSITORY / "docs" / "speed-network.md"
OURS = "AgentPS, `agentps_answers`"
#: Environment, module and arguments of each arm; the second is the strongest form of the peer.
ARMS: dict[str, tuple[str | None, str, *tuple[str, ...]]] = {OURS: (None, "ours")} | {
    f"ms-swift, {form}": ("swift", "theirs", form)
    for form in (
        "multi-label, album template",
        "multi-label, shipped template",
        "one answer per prompt, album template",
    )
}
KEPT, SEEN = "training, the tower's states kept", "scoring, images seen before"
#: Measured in the first round only: it takes longer than all others together, and is far beyond the aims.
ONCE = list(ARMS)[-1]
#: What AgentPS aims at: how many times the CPU time of ours a peer takes.
AIMS = {"training": 3, "scoring": 5}


def cpu(found: dict[str, Any], arm: str, what: str) -> float:
    """Median CPU seconds per post."""
    return median(seconds["cpu"] for seconds in found["seconds_per_post"][arm][what])


def table() -> str:
    """Markdown of the record: each form's CPU seconds per post, how many times ours, and whether the aim is met."""
    found = json.loads(RECORD.read_text(encoding="utf-8"))

    def against(arm: str, what: str, ours: str) -> str:
        times = cpu(found, arm, what) / cpu(found, OURS, ours)
        return f"**{times:.2f}x**, {'met' if times >= AIMS[what] else 'not met'}"

    rows = []
    for arm in ARMS:
        rounds = len(found["seconds_per_post"][arm]["training"])
        row = [f"{arm} ({rounds} round{'s' * (rounds > 1)})"]
        for what in AIMS:
            row += [f"{cpu(found, arm, what):.3f} s", "–" if arm == OURS else against(arm, what, what)]
        rows.append(row)
    header = ["CPU time per post", *(word for what, aim in AIMS.items() for word in (what, f"of ours; aim {aim}x"))]
    versions = ", ".join(f"{package} {number}" for package, number in found["peer"].items())
    setting = (
        f"{found['processor']}, {found['date']}; AgentPS on torch {found['torch']}, its peer on {versions}. Medians."
    )
    strongest = list(ARMS)[1]
    kept = (
        "What AgentPS keeps makes it faster. Against the strongest form, training with the tower's states kept is "
        f"{against(strongest, 'training', KEPT)}; scoring images seen before is {against(strongest, 'scoring', SEEN)}."
    )
    return "\n\n".join((textwrap.fill(setting, 120), record.table(header, rows), textwrap.fill(kept, 120)))


def measure(rounds: int) -> None:
    """Writes RECORD after each process."""
    peer_versions = versions("swift", "ms-swift", "torch", "transformers")
    seconds: dict[str, dict[str, list[dict[str, float]]]] = {arm: {} for arm in ARMS}
    with tempfile.TemporaryDirectory() as work:
        write_all(Path(work))
        for number in range(rounds):
            for arm, (peer, module, *form) in ARMS.items():
                if number and arm == ONCE:
                    continue
                for what, found in run(peer, "-m", f"benchmarks.peers.{module}", work, *form).items():
                    seconds[arm].setdefault(what, []).append(found)
                    sys.stderr.write(f"{number + 1}/{rounds} {arm}: {what} {found['cpu']:.3f} s\n")
                record.write(
                    RECORD,
                    record.machine("torch", "transformers")
                    | {
                        "peer": peer_versions,
                        "posts": POSTS,
                        "load": os.getloadavg()[2],
                        "seconds_per_post": seconds,
                    },
                )
