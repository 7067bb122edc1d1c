from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from steps.ingest import ahead


def _note(path: Path) -> None:
    path.write_text(f"{os.getpid()} {os.nice(0)}", encoding="utf-8")


def _refuse() -> None:
    raise RuntimeError("the disk is full")


def test_work_is_done_by_a_process_that_gives_way_and_waited_for(tmp_path: Path) -> None:
    ahead.begin(partial(_note, tmp_path / "note"))
    ahead.wait()
    process, niceness = map(int, (tmp_path / "note").read_text(encoding="utf-8").split())
    assert process != os.getpid()
    assert niceness == min(19, os.nice(0) + 10)


def test_a_failure_is_left_to_the_one_who_asks_for_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    ahead.begin(_refuse)
    ahead.wait()
    assert "the disk is full" in capfd.readouterr().err


def test_a_program_that_ends_takes_what_it_began_with_it(tmp_path: Path) -> None:
    """The work writes its process, then one of its own does, which sleeps; nobody waits."""
    program = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from steps.ingest import ahead

def sleep(path):
    Path(path + ".part").write_text(str(os.getpid()))
    os.replace(path + ".part", path)
    time.sleep(300)

def work():
    with ProcessPoolExecutor(1) as pool:
        list(pool.map(sleep, [sys.argv[1]]))

ahead.begin(work)
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
"""
    note = tmp_path / "process"
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", program, str(note)], cwd=root, check=True, timeout=60)
    process = int(note.read_text(encoding="utf-8"))
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        if ") Z " in Path(f"/proc/{process}/stat").read_text(encoding="utf-8"):
            break  # ended; nobody has asked for its exit code
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{process}").exists()
