"""How processes end: real ones, by real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # seconds, on a busy machine
ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
IN_BLOCK = """
import asyncio, logging, signal, sys, time
from steps import lifetime
lifetime._PATIENCE = 0.2
def ready(): print("ready", flush=True)
def close(): print("closed", flush=True)
def sleep(): ready(); time.sleep(600)
"""


def start(script: str) -> subprocess.Popen[str]:
    """A process, in a group of its own as from a terminal, that has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", line + process.communicate()[1]
    return process


def wait_until(moment: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not moment():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """A zombie, which nobody has waited for, has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", ALL)
def test_each_signal_ends_a_process_with_one_line_and_its_own_exit_code(number: signal.Signals) -> None:
    process = start(f"{IN_BLOCK}\nwith lifetime.ends_by_signal(lambda: ': words', close): sleep()")
    process.send_signal(number)
    said, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (128 + number, "closed\n")
    assert errors.split("\n") == ["", f"Ended by {number.name}: words", ""]


@pytest.mark.parametrize(
    "body",
    [
        "asyncio.run(work())",
        # a library that takes what is raised for an error of its own
        "try:\n        sleep()\n    except Exception:\n        time.sleep(600)",
        "try:\n        sleep()\n    except BaseException:\n        time.sleep(600)",
        "Freed()\n    time.sleep(600)",
        # what is told of the end of a step
        "try:\n        sleep()\n    finally:\n        logging.error('hundreds of lines')",
    ],
    ids=["asyncio", "except", "bare", "freed", "log"],
)
def test_nothing_swallows_a_signal_or_adds_a_line(body: str) -> None:
    script = f"""{IN_BLOCK}
async def work():
    ready()
    await asyncio.gather(*(asyncio.sleep(600) for _ in range(3)))
class Freed:
    def __del__(self): sleep()
with lifetime.ends_by_signal():
    {body}
"""
    process = start(script)
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (143, "\nEnded by SIGTERM\n")


def test_a_signal_that_is_ignored_stays_so_and_without_one_all_is_as_before() -> None:
    script = f"""{IN_BLOCK}
signal.signal(signal.SIGHUP, signal.SIG_IGN)
before = signal.getsignal(signal.SIGINT)
with lifetime.ends_by_signal():
    signal.raise_signal(signal.SIGHUP)
assert signal.getsignal(signal.SIGINT) is before
ready()
"""
    process = start(script)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


POOL = """
import os, sys, time
from pathlib import Path
from steps import lifetime
from steps.parallel import ordered_map
def work(number):
    Path(FOLDER, str(os.getpid())).touch()
    time.sleep(600)
with lifetime.ends_by_signal():
    print("ready", flush=True)
    list(ordered_map(work, range(10), chunk=1, workers=2))
"""


@pytest.mark.parametrize("number", [*ALL, signal.SIGKILL])
def test_the_processes_of_a_pool_end_with_the_one_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    process = start(POOL.replace("FOLDER", repr(str(tmp_path))))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "the pool never worked")
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert all(map(alive, workers))
    if number in (signal.SIGINT, signal.SIGHUP):
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    wait_until(lambda: not any(map(alive, workers)), "a worker outlived the process that started it")
    if number != signal.SIGKILL:
        assert (process.returncode, errors) == (128 + number, f"\nEnded by {number.name}\n")


def test_a_second_ctrl_c_ends_what_takes_long_to_close() -> None:
    body = "with lifetime.ends_by_signal(close=lambda: (close(), time.sleep(600))): sleep()"
    process = start(f"{IN_BLOCK}\nlifetime._ONE = 0.0\n{body}")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "closed\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
