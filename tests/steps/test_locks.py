"""One process at a time."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from model.errors import ConfigError
from steps import locks
from steps.locks import Timeout, holder, locked
from tests.support.disk import files_end_at

ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys; from pathlib import Path; from steps.locks import locked\n"
    "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
)


def process_that_holds(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_process_does_not_get_what_another_holds_and_a_killed_one_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    holder = process_that_holds(path)
    with pytest.raises(Timeout), locked(path, wait=False):
        pass
    holder.kill()
    holder.communicate()
    with locked(path, wait=False):
        pass


def test_a_child_that_got_the_descriptor_holds_the_lock_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(Timeout), locked(path, wait=False):
        pass
    child.communicate(b"\n")
    with locked(path, wait=False):
        pass


def test_who_waits_is_told_again_and_again_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "_FIRST_WORD", 0.0)
    monkeypatch.setattr(locks, "_NEXT_WORD", 0.1)
    path = tmp_path / "lock"
    process = process_that_holds(path)

    def kill() -> None:
        deadline = time.monotonic() + 60
        while len(caplog.messages) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with caplog.at_level(logging.WARNING), locked(path, "the other training"):
        mine = holder(path)
    killer.join()
    process.communicate()
    assert mine is not None
    assert mine.pid == os.getpid()
    assert holder(path) is None, "nobody holds it any more"
    start = f"Waiting for the other training: it is held by process {process.pid} on {socket.gethostname()} (since "
    assert len(caplog.messages) >= 3
    assert all(line.startswith(start) and line.endswith(f"-c {path})") for line in caplog.messages)


def test_a_full_disk_takes_no_lock_away(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with files_end_at(10), locked(path):
        assert holder(path) is None
        with pytest.raises(Timeout), locked(path, wait=False):
            pass


def test_a_file_system_without_locks_is_refused_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "lock_descriptor", refuse)
    expected = r"lock cannot be locked \(No locks available\).*AGENTPS_HOME"
    with pytest.raises(ConfigError, match=expected), locked(tmp_path / "lock"):
        pass
