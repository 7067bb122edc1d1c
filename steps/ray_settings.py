"""Ray as this project runs it: locally unless `RAY_ADDRESS` names a cluster. The only place that sets its options.

Ray reads most of them while it is imported, and hands them on to the processes that it starts. What the environment
says already is kept.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from model.errors import ConfigError

#: Where the cluster is; not set: one is started on this machine, for this process alone.
ADDRESS = "RAY_ADDRESS"
#: With fewer logical CPUs than this, Ray's own helpers wait for each other.
LEAST_CPUS = 4
#: Bytes of shared memory for what processes hand to each other: requests, no data sets.
_OBJECT_STORE = 2**29
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # without it, whoever reaches a port of Ray's runs code here
    "RAY_AUTH_MODE": "token",
    # Ray's own proxy answers fewer requests the more there are
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Ray's own value is 15: beside any other work on the machine, its processes would get next to nothing
    "RAY_worker_niceness": "0",
    # an actor that asked for no GPU sees those of the machine as they are
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
#: And where none is joined: its ports are open on the loopback address only, as Ray has it on macOS (issue 18730). On
#: Linux it replaces a loopback address that is given to it, and this variable is the only way.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def prepare() -> None:
    """Set the environment. To be called before `import ray`.

    Raises:
        ConfigError: Ray is not installed.
    """
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise ConfigError("Ray is not installed: `pip install -e .[serve]`, in the folder of AgentPS, installs it")
    alone = ADDRESS not in os.environ
    for name, value in (_ENVIRONMENT | (LOOPBACK if alone else {})).items():
        os.environ.setdefault(name, value)
    if alone and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def running(**options: Any) -> Iterator[ModuleType]:
    """Ray, connected; what was started here is stopped at the end. Yields the module `ray`.

    Args:
        options: of `ray.init`, laid over these.

    Raises:
        ConfigError: Ray is not installed, or the cluster does not answer.
    """
    prepare()
    import ray

    # to the workers' own log files: what fails is raised here, and their warnings are those of this process
    ours: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if ADDRESS not in os.environ:
        ours |= {
            "address": "local",
            "num_cpus": max(LEAST_CPUS, os.cpu_count() or 1),
            "object_store_memory": _OBJECT_STORE,
            "include_dashboard": False,
        }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**ours | options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own
    except Exception as error:  # a bare one where its own processes did not start within 30 s
        where = os.environ.get(ADDRESS)
        busy = "cannot be started here (on a busy machine another try helps)"
        what = f"the cluster at {ADDRESS}={where} cannot be joined" if where else busy
        raise ConfigError(f"Ray: {what}: {error!s:.500}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
