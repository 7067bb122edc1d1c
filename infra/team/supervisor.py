"""One process that starts the servers, starts again what ends, and ends them all with itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from infra.team.databases import as_user
from infra.team.servers import Server, clean
from infra.team.state import State, TeamError
from model.errors import AgentPSError, DiskError
from model.files import write_whole
from steps.locks import holder, locked
from steps.paths import REPOSITORY

_LOCK, _STATUS, _LOGS = "running.lock", "status.json", "logs"
#: Seconds: of a server until it answers, the first time; of one to end; between two looks; of the longest pause before
#: one is started again; between two questions to one that has answered.
_START, _END, _LOOK, _LONGEST, _CHECK = 600.0, 90.0, 0.5, 60.0, 15.0
#: Seconds in which a stack that was killed gives its ports back.
_FREED = 30.0
_WAITS = "waits: "


class _Process:
    """A server and the process that it has now."""

    def __init__(self, server: Server, state: State) -> None:
        self.server, self._state = server, state
        self.process: subprocess.Popen[bytes] | None = None
        self.word = "not started"
        self._failures, self._again, self._check, self._ready = 0, 0.0, 0.0, False

    @property
    def log(self) -> Path:
        return self._state.folder / _LOGS / f"{self.server.name}.log"

    def look(self) -> None:
        """Start it where it is not there and may be; say how it is.

        Raises: TeamError where it cannot be prepared, or another program has its port.
        """
        if self.process is not None and (code := self.process.poll()) is not None:
            _kill_group(self.process.pid)  # those that it started hold its port
            self.process, self._ready, self._check = None, False, 0.0
            self._failures += 1
            pause = min(_LONGEST, 2.0**self._failures)
            self._again = time.monotonic() + pause
            self.word = f"ended with exit code {code}; it is started again in {pause:g} s"
        if self.process is None and time.monotonic() >= self._again:
            if (line := self.server.waits()) is not None:
                self.word, self._again = f"{_WAITS}{line}", time.monotonic() + 5
                return
            if (line := self.taken()) is not None:
                raise TeamError(line)
            self._start()
        if self.process is None or time.monotonic() < self._check:
            return
        answers = self.server.ready()
        if answers and not self._ready:
            if self.server.after is not None:
                self._set_up(self.server.after)
            self._ready, self._failures = True, 0
        if self._ready:
            self.word, self._check = "ready" if answers else "does not answer", time.monotonic() + _CHECK

    def fail(self, why: str) -> None:
        """It cannot be started or set up, while the others go on: it is tried again."""
        self.word, self._failures = why, self._failures + 1
        self._again = self._check = time.monotonic() + min(_LONGEST, 2.0**self._failures)

    def taken(self) -> str | None:
        """Where it cannot listen: what has its port would be taken for this server, and be told passwords."""
        for name in self.server.ports:
            host, port = address = self._state.address(name)
            try:
                socket.create_server(address, family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else error
                return (
                    f"{self.server.name} cannot listen on {host}, port {port} ({why}): stop what has it, or name "
                    f"another: ports.{name}, in {self._state.folder / 'team.yaml'}"
                )
        return None

    def _start(self) -> None:
        self.server.prepare()
        user = as_user(self.server.user) if self.server.user else []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                # killed with this process, however that ends
                [*user, "setpriv", "--pdeathsig", "TERM", *self.server.command],
                cwd=REPOSITORY if user == [] else "/",
                env=clean(self.server.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.word = "starting"

    def _set_up(self, what: str) -> None:
        """In a process of its own: MLflow and ZenML would stay in this one's memory."""
        command = [sys.executable, "-m", "infra.team.setup", what]
        environment = clean({"AGENTPS_TEAM": str(self._state.folder)})
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise TeamError(f"{self.server.name}: it cannot be set up: {done.stdout.strip()[-800:]}")

    def stop(self) -> None:
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(self.server.stop)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END)
        _kill_group(self.process.pid)
        self.process.wait()
        self.process, self.word = None, "stopped"

    @property
    def settled(self) -> bool:
        """It works, or waits for its work; or has failed, which stops nobody."""
        failed = self._failures > 0 and not self.server.vital
        return self._ready or failed or self.word.startswith(_WAITS)

    def last_words(self) -> str:
        with suppress(OSError):
            return " ".join(self.log.read_text(encoding="utf-8", errors="replace")[-2000:].split())[-500:]
        return ""


def _kill_group(leader: int) -> None:
    """What a server leaves of the processes that it started: each server has a group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


@contextmanager
def up(state: State, servers: list[Server], ended: Callable[[], bool] = lambda: False) -> Iterator[list[_Process]]:
    """The servers run while the block does.

    Args:
        ended: whether to stop while they are being started.

    Raises:
        TeamError: the stack runs already; or a server did not come up: then all are stopped.
    """
    (state.folder / _LOGS).mkdir(mode=0o700, exist_ok=True)
    processes = [_Process(server, state) for server in servers]
    try:
        with locked(state.folder / _LOCK, wait=False):
            try:
                for process in processes:  # each needs those before it
                    _bring_up(process, ended)
                    _tell(state, processes)
                yield processes
            except TeamError as error:
                _tell(state, processes, str(error))
                raise
            finally:
                for process in reversed(processes):
                    process.stop()
    except Timeout:
        raise TeamError(f"the stack of {state.folder} runs already: `make team-stop` stops it") from None


def run(state: State, servers: list[Server]) -> None:
    """Until SIGTERM or Ctrl-C; a server that ends is started again.

    Raises: TeamError as `up`.
    """
    ended = False

    def end(*_: Any) -> None:
        nonlocal ended
        ended = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    with up(state, servers, lambda: ended) as processes:
        while not ended:
            time.sleep(_LOOK)
            watch(state, processes)


def watch(state: State, processes: list[_Process]) -> None:
    """One look at each of those that are up: what fails now stops no other."""
    for process in processes:
        try:
            process.look()
        except (AgentPSError, OSError) as error:  # a full disk, no more processes: of this server only
            process.fail(str(error))
    try:
        _tell(state, processes)
    except DiskError:  # what was told before may be true no more
        (state.folder / _STATUS).unlink(missing_ok=True)


def _bring_up(process: _Process, ended: Callable[[], bool]) -> None:
    freed = time.monotonic() + _FREED
    while not ended() and process.taken() is not None and time.monotonic() < freed:
        time.sleep(_LOOK)
    end = time.monotonic() + _START
    while not ended():
        try:
            process.look()
        except (AgentPSError, OSError) as error:
            if process.server.vital:
                raise TeamError(str(error)) from error
            process.fail(str(error))
        if process.settled:
            return
        if process.process is None or time.monotonic() > end:
            raise TeamError(
                f"{process.server.name} did not start ({process.word}); {process.log} ends with: {process.last_words()}"
            )
        time.sleep(_LOOK)


def _tell(state: State, processes: list[_Process], failed: str | None = None) -> None:
    told = {each.server.name: each.word for each in processes}
    pids = {each.server.name: each.process and each.process.pid for each in processes}
    up = all(each.settled for each in processes)
    text = json.dumps({"servers": told, "pids": pids, "failed": failed, "up": up})
    path = state.folder / _STATUS
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)


def supervisor_of(folder: Path) -> int | None:
    """The process id of the one that runs this stack; None: it does not run."""
    with suppress(Timeout), locked(folder / _LOCK, wait=False):
        return None
    found = holder(folder / _LOCK)
    return found.pid if found else None


def status(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((folder / _STATUS).read_text(encoding="utf-8"))
        return found
    return {"servers": {}, "pids": {}, "failed": None, "up": False}


def start(state: State, say: Callable[[str], None]) -> None:
    """In a process of its own, which outlives this one; return when all servers are ready, or wait for their work.

    Raises: TeamError as `run`.
    """
    folder = state.folder
    made: subprocess.Popen[bytes] | None = None
    if supervisor_of(folder) is None:
        (folder / _STATUS).unlink(missing_ok=True)
        (folder / _LOGS).mkdir(mode=0o700, exist_ok=True)
        with (folder / _LOGS / "supervisor.log").open("ab") as log:
            made = subprocess.Popen(
                [sys.executable, "-m", "infra.team", "run"],
                cwd=REPOSITORY,
                env=os.environ | {"AGENTPS_TEAM": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while supervisor_of(folder) is None and made.poll() is None:
            time.sleep(_LOOK)
    said: dict[str, str] = {}
    while not (found := status(folder))["up"]:
        if found["failed"] or supervisor_of(folder) is None:
            if made is not None:
                made.wait()  # all are stopped then
            raise TeamError(found["failed"] or f"it ended: {folder / _LOGS / 'supervisor.log'} says why")
        for name, word in found["servers"].items():
            if word != said.get(name) and word not in ("not started", "starting"):
                say(f"{name}: {word}")
        said = found["servers"]
        time.sleep(_LOOK)
    for name, word in found["servers"].items():
        if word != said.get(name):
            say(f"{name}: {word}")


def stop(folder: Path) -> bool:
    """All servers, and whatever they work on is finished first; False: none runs."""
    pid = supervisor_of(folder)
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    while supervisor_of(folder) is not None:
        time.sleep(_LOOK)
    return True
