"""Ray as it is started here: open to nobody else, and telling nobody."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from model.errors import ConfigError
from scoring.ray_batch import workers_of
from steps import ray_settings
from steps.paths import REPOSITORY

_STARTED = """
import os, signal, sys, psutil
import pipelines.config, scoring.batch, scoring.settings
from model.errors import DataError
from scoring.batch import load
from scoring.ray_batch import _next
from steps.ray_settings import running

print("not imported", "ray" not in sys.modules)
before = signal.getsignal(signal.SIGTERM)
with running() as ray:
    from ray.util import ActorPool

    @ray.remote
    class Failing:
        def fail(self, value):
            raise DataError(f"no {value}: try another")

    pool = ActorPool([Failing.remote()])
    pool.submit(lambda actor, value: actor.fail.remote(value), "thing")
    try:
        _next(pool, ray)
    except DataError as error:
        print(f"told: {error}")
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    ports = {c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == "LISTEN"}
    ports = {ip.removeprefix("::ffff:") for ip in ports}
    print("listens", ports, len(processes) > 3)
    print("cores", int(ray.cluster_resources()["CPU"]) >= 4)
    print("handler", signal.getsignal(signal.SIGTERM) == before)
print(*(f"{k}={os.environ[k]}" for k in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_SERVE_ENABLE_HA_PROXY")))
print("token", len(os.environ["RAY_AUTH_TOKEN"]), "left", len(psutil.Process().children(recursive=True)))
"""


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@needs_ray
def test_ray_listens_on_the_loopback_with_a_token_and_a_worker_s_error_is_told_as_it_is() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    found = subprocess.run(
        [sys.executable, "-c", _STARTED], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert found.stdout.splitlines() == [
        "not imported True",
        "told: no thing: try another",
        "listens {'127.0.0.1'} True",
        "cores True",
        "handler True",
        "RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_SERVE_ENABLE_HA_PROXY=1",
        "token 64 left 0",
    ], found.stderr


@needs_ray
def test_what_the_environment_says_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    ray_settings.prepare()
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert "RAY_AUTH_TOKEN" not in os.environ, "the cluster has its own"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ


def test_without_ray_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Ray is not installed: `pip install -e \.\[serve\]`"):
        ray_settings.prepare()


@pytest.mark.parametrize(
    ("wanted", "threads", "cores", "gpus", "count"),
    [(None, 1, 8, 0, 8), (None, 4, 8, 0, 2), (None, 4, 2, 0, 1), (None, 1, 8, 2, 2), (3, 1, 8, 0, 3), (1, 1, 8, 2, 1)],
)
def test_as_many_workers_as_there_is_room_for(
    wanted: int | None, threads: int, cores: int, gpus: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert workers_of(wanted, threads, cores, gpus) == count


def test_more_workers_than_a_cluster_has_room_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself waits for ever."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"scoring\.workers 9: Ray has 8 cores, which is room for 4: set 4 or fewer"):
        workers_of(9, 2, 8, 0)
    with pytest.raises(ConfigError, match=r"scoring\.workers 3: Ray has 2 GPUs, which is room for 2"):
        workers_of(3, 1, 8, 2)
    monkeypatch.delenv("RAY_ADDRESS")
    assert workers_of(9, 2, 2, 0) == 9, "of this machine the user knows more"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_start_that_takes_ray_too_long_is_told_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as in ray/_private/node.py

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv(ray_settings.ADDRESS, raising=False)
    told = r"busy machine another try helps.*timed out during startup"
    with pytest.raises(ConfigError, match=told), ray_settings.running():
        pass
