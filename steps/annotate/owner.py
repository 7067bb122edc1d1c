"""Which process holds a lease, and whether it is known to be dead."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path


def new_owner() -> str:
    """A name for this process's leases, which no other process has, nor another call."""
    host = socket.gethostname().replace("/", "")[:32]
    return f"{_here()}/{os.getpid()}/{_started(os.getpid())}/{uuid.uuid4().hex[:8]}@{host}"


def describe(owner: str) -> str:
    """The owner of a lease, as people can find it."""
    place, _, process = owner.partition("/")
    where = "this machine" if place and place == _here() else owner.rpartition("@")[2] if "@" in owner else "elsewhere"
    return f"process {process.partition('/')[0]} on {where}"


def _here() -> str:
    """Names this machine and its set of process ids (a container has its own); "" where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process was started, which tells it from a later one of the same id; "" where there is none."""
    try:
        # the fields after the name, which stands in parentheses and may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        return ""


def died(owner: str) -> bool:
    """Whether the owner of a lease is known to be dead; of another machine's that is never known."""
    place, _, process = owner.rpartition("/")[0].partition("/")
    pid, _, started = process.partition("/")
    return bool(place) and place == _here() and pid.isdigit() and _started(int(pid)) != started
