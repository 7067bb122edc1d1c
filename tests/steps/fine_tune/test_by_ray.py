"""Training by Ray Train: the result of one process, whatever dies meanwhile. `pytest -m ray` runs them all."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fsspec.core import url_to_fs

from infra.team.servers import stores, weed
from infra.team.state import make
from infra.team.supervisor import up
from model.data import Shards
from model.errors import ConfigError
from model.schema import LABEL_SOURCE, POST_ID
from model.settings import BackboneSettings
from steps import ray_settings
from steps.fine_tune import ahead
from steps.fine_tune.launch import TrainingJob, job_directory
from steps.paths import REPOSITORY
from steps.settings import load_settings
from tests.support.tiny import TASK, train_settings, write_posts

PATIENCE = 900.0  # seconds, on a busy machine
RUN = """
import json, sys
from pathlib import Path
import pandas as pd
from model.settings import TrainSettings
from steps.fine_tune.launch import TrainingJob, run
from steps.fine_tune.stored import Store
folder, work = Path(sys.argv[1]), Path(sys.argv[2])
job = TrainingJob.model_validate_json((folder / "job.json").read_text())
labels = pd.read_parquet(folder / "labels.parquet")
job = job.model_copy(update={"train": TrainSettings.model_validate_json(sys.argv[3])})
run(job, labels, work, Store(*json.loads(sys.argv[4])) if len(sys.argv) > 4 else None)
"""
MACHINES = """
import sys, time
from steps import ray_settings
ray_settings.prepare()
from ray._private import services
from ray.cluster_utils import Cluster
once = services.get_node
def patiently(*arguments):  # Ray itself gives a node 30 seconds to start
    end = time.monotonic() + 600
    while True:
        try:
            return once(*arguments)
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
services.get_node = patiently
first, second = ({"AGENTPS_HOME": home} for home in sys.argv[2:])
options = {"num_cpus": 1, "include_dashboard": False, "temp_dir": sys.argv[1], "env_vars": first}
machines = Cluster(True, head_node_args=options)
other = machines.add_node(num_cpus=1, env_vars=second)
machines.wait_for_nodes()
print(machines.address, flush=True)
for line in sys.stdin:
    machines.remove_node(other, allow_graceful=False)
machines.shutdown()
"""
psutil = pytest.importorskip("psutil", reason="no psutil, which finds the workers")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def folder(tiny_backbone: BackboneSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose posts divide by nothing: 19 posts of train in steps of 4."""
    folder = tmp_path_factory.mktemp("job")
    shards = write_posts(folder / "shards", tiny_backbone, train=19, val=8, test=2)
    job = TrainingJob(
        task=TASK,
        train=train_settings(),
        backbone=tiny_backbone,
        resolved_backbone=tiny_backbone,
        shards=shards.root,
        provenance={},
    )
    (folder / "job.json").write_text(job.model_dump_json())
    labels = Shards(job.shards).posts[[POST_ID, *TASK.question_ids]].assign(**{LABEL_SOURCE: "human"})
    labels.to_parquet(folder / "labels.parquet")
    return folder


def start(
    folder: Path,
    work: Path,
    cluster: dict[str, str] | None = None,
    store: tuple[str, dict[str, Any]] | None = None,
    **settings: object,
) -> subprocess.Popen[bytes]:
    """Args:
    cluster: the variables by which a cluster is joined; None: Ray is started on this machine.
    store: what a `Store` is made of.
    """
    options = {"epochs": 2, "batch": 4, "micro_batch": 2, "head_dropout": 0.1} | settings
    command = [sys.executable, "-c", RUN, str(folder), str(work), train_settings(**options).model_dump_json()]
    command += [] if store is None else [json.dumps(store)]
    work.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= cluster or {}
    with (work / "output.txt").open("w") as output:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def finish(process: subprocess.Popen[bytes], work: Path) -> Path:
    """The directory of the finished training."""
    try:
        assert process.wait(PATIENCE) == 0, (work / "output.txt").read_text()[-4000:]
    finally:
        process.kill()
    (directory,) = (path.parent for path in work.glob("*/result.json"))
    return directory


def parameters(directory: Path) -> bytes:
    return (directory / "checkpoint" / "trained.safetensors").read_bytes()


def difference(one: Path, other: Path) -> float:
    from safetensors.torch import load_file

    left, right = (load_file(path / "checkpoint" / "trained.safetensors") for path in (one, other))
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def history(directory: Path) -> list[dict[str, float]]:
    wanted = ("loss", "eval_average_precision", "step")
    result = json.loads((directory / "result.json").read_text())
    return [{name: row[name] for name in wanted if name in row} for row in result["history"] if "train_loss" not in row]


def workers(process: subprocess.Popen[bytes]) -> list[Any]:
    """Those that train, as Ray names its processes."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def wait_for(moment: Callable[[], bool], process: subprocess.Popen[bytes], work: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not moment():
        assert process.poll() is None, (work / "output.txt").read_text()[-4000:]
        assert time.monotonic() < deadline, (work / "output.txt").read_text()[-4000:]
        time.sleep(0.02)


@contextmanager
def two_machines(place: Path, *, shared: bool = True) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """Two nodes of a cluster with room for one process each. Yields them, and the variables of who joins.

    `shared`: all have the same AGENTPS_HOME; else each has a folder of its own.
    The line `lose` on their standard input ends one of them, as when its power fails.
    """
    # sockets of Ray lie there, whose paths may have 107 bytes
    token, folder = secrets.token_hex(32), Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "AGENTPS_HOME": str(place / "home")}
    # who joins, too: without it Ray puts this machine's other address in place of 127.0.0.1, where nobody listens
    variables |= ray_settings.LOOPBACK
    homes = [str(place / name) for name in (("home", "home") if shared else ("first", "second"))]
    command = [sys.executable, "-c", MACHINES, str(folder), *homes]
    with (place / "machines.txt").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        assert address, (place / "machines.txt").read_text()[-4000:]
        yield process, variables | {"RAY_ADDRESS": address}
    finally:
        process.communicate(timeout=PATIENCE)  # the end of its input ends them
        shutil.rmtree(folder, ignore_errors=True)


def checkpoints(work: Path) -> set[str]:
    return {path.parent.name for path in work.glob("*/trainer/checkpoint-*/trainer_state.json")}


def test_where_a_training_runs_does_not_name_it_and_how_posts_are_shared_names_those_of_several(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steps import recipe

    job = TrainingJob.model_validate_json((folder / "job.json").read_text())
    labels = pd.read_parquet(folder / "labels.parquet")

    def name(**settings: object) -> str:
        return job_directory(job.model_copy(update={"train": train_settings(**settings)}), labels, Path()).name

    alone, two = name(), name(processes=2, micro_batch=2)
    assert name(engine="ray") == alone
    assert name(engine="ray", processes=2, micro_batch=2, least_processes=1) == two != alone
    monkeypatch.setattr(recipe, "SEVERAL", recipe.SEVERAL + 1)
    assert (name(), name(processes=2, micro_batch=2) == two) == (alone, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_processes": 1, "processes": 2, "micro_batch": 1}, "least_processes is for engine ray"),
        (
            {"engine": "ray", "least_processes": 3, "processes": 2, "micro_batch": 1},
            "least_processes 3 is more than processes 2",
        ),
    ],
)
def test_an_elastic_number_that_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings({"fine_tune": options})


def test_without_ray_the_engine_is_refused_before_anybody_is_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fine_tune\.engine ray: Ray is not installed: `pip install -e \.\[serve\]`"):
        ahead.check_machine(load_settings({"fine_tune": {"engine": "ray"}}))


@needs_ray
@pytest.mark.ray
def test_two_processes_by_torchrun_and_by_ray_train_what_one_does_though_posts_divide_unevenly(
    folder: Path, tmp_path: Path
) -> None:
    settings = {"head_dropout": 0.0}
    alone = finish(start(folder, tmp_path / "alone", **settings, micro_batch=4), tmp_path / "alone")
    torchrun = finish(start(folder, tmp_path / "torchrun", **settings, processes=2), tmp_path / "torchrun")
    ray = finish(start(folder, tmp_path / "ray", **settings, processes=2, engine="ray"), tmp_path / "ray")
    assert parameters(ray) == parameters(torchrun)
    assert difference(ray, alone) <= 1e-4
    assert len(history(alone)) > 4
    for one, other in zip(history(alone), history(ray), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@needs_ray
@pytest.mark.ray
def test_a_training_whose_workers_are_killed_twice_finishes_by_itself_with_the_same_parameters(
    folder: Path, tmp_path: Path
) -> None:
    settings = {"engine": "ray", "processes": 2, "epochs": 12, "saves_per_epoch": 5}
    expected = finish(start(folder, tmp_path / "whole", **settings), tmp_path / "whole")
    work = tmp_path / "killed"
    process = start(folder, work, **settings)
    killed: set[int] = set()

    def fresh() -> list[Any]:
        return sorted((worker for worker in workers(process) if worker.pid not in killed), key=lambda one: one.pid)

    for which in (0, -1):
        seen = checkpoints(work)
        wait_for(lambda seen=seen: bool(checkpoints(work) - seen) and len(fresh()) == 2, process, work)
        alive = fresh()
        alive[which].send_signal(signal.SIGKILL)
        killed |= {worker.pid for worker in alive}
    directory = finish(process, work)
    assert json.loads((directory / "result.json").read_text())["resumed_from_step"] > 0
    assert parameters(directory) == parameters(expected)


@needs_ray
@pytest.mark.ray
def test_what_no_restart_mends_ends_the_training_in_its_own_words(folder: Path, tmp_path: Path) -> None:
    process = start(folder, tmp_path / "work", engine="ray", processes=2, learning_rate=1e30, max_grad_norm=1e30)
    assert process.wait(PATIENCE) == 1
    last = (tmp_path / "work" / "output.txt").read_text().splitlines()[-1]
    assert last.startswith("model.errors.AgentPSError: the training diverged: after epoch")


@needs_ray
@pytest.mark.ray
def test_processes_on_two_machines_train_what_those_of_one_do_on_a_copy_of_shards_that_only_one_has(
    folder: Path, tmp_path: Path
) -> None:
    settings = {"processes": 2, "head_dropout": 0.0}
    expected = finish(start(folder, tmp_path / "one", **settings), tmp_path / "one")  # by torchrun
    with two_machines(tmp_path) as (machines, variables):
        process = start(folder, tmp_path / "two", variables, **settings, engine="ray", saves_per_epoch=5)
        wait_for(lambda: len(workers(machines)) == 2, process, tmp_path / "two")
        assert len({worker.ppid() for worker in workers(machines)}) == 2, "both are on one machine"
        directory = finish(process, tmp_path / "two")
    assert parameters(directory) == parameters(expected)
    assert not (directory / "shards").exists()


@needs_ray
@pytest.mark.ray
def test_where_a_machine_is_lost_for_good_those_that_are_left_finish_with_the_same_parameters(
    folder: Path, tmp_path: Path
) -> None:
    settings = {"processes": 2, "head_dropout": 0.0, "epochs": 12, "saves_per_epoch": 5}
    expected = finish(start(folder, tmp_path / "whole", **settings), tmp_path / "whole")
    work = tmp_path / "lost"
    with two_machines(tmp_path) as (machines, variables):
        process = start(folder, work, variables, **settings, engine="ray", least_processes=1)
        wait_for(lambda: bool(checkpoints(work)) and len(workers(machines)) == 2, process, work)
        assert machines.stdin is not None
        machines.stdin.write(b"lose\n")
        machines.stdin.flush()
        wait_for(lambda: len(workers(machines)) < 2, process, work)
        directory = finish(process, work)
    assert json.loads((directory / "result.json").read_text())["resumed_from_step"] > 0
    assert difference(directory, expected) <= 1e-4


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a `Store` is made of, with the keys that ZenML would have."""
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        yield (tmp_path / "store").as_uri(), {}
        return
    for name in ("s3fs", "boto3"):
        pytest.importorskip(name, reason=f"no {name}: make team")
    if weed() is None:
        pytest.skip("no SeaweedFS: make team")
    state = make(tmp_path / "team")
    servers = [server for server in stores(state) if server.name == "s3"]
    with up(state, servers):
        environment = state.s3("zenml")
        yield (
            "s3://zenml",
            {
                "key": environment["AWS_ACCESS_KEY_ID"],
                "secret": environment["AWS_SECRET_ACCESS_KEY"],
                "client_kwargs": {"endpoint_url": environment["AWS_ENDPOINT_URL"], "region_name": "us-east-1"},
            },
        )


@needs_ray
@pytest.mark.ray
def test_machines_that_share_no_folder_finish_by_the_store_with_the_same_parameters_after_one_was_killed(
    folder: Path, tmp_path: Path, store: tuple[str, dict[str, Any]]
) -> None:
    settings = {"processes": 2, "epochs": 6, "saves_per_epoch": 5}
    expected = finish(start(folder, tmp_path / "whole", **settings), tmp_path / "whole")  # by torchrun
    work, (files, path) = tmp_path / "work", url_to_fs(store[0], **store[1], use_listings_cache=False)
    with two_machines(tmp_path, shared=False) as (machines, variables):
        process = start(folder, work, variables, store, **settings, engine="ray")

        def stored() -> bool:
            """Ray counts a checkpoint: all processes have stored their part."""
            return bool(files.glob(f"{path}/fine_tune/*/run/checkpoint_manager_snapshot.json"))

        wait_for(lambda: len(workers(machines)) == 2 and stored(), process, work)
        for name in ("first", "second"):
            assert list((tmp_path / name).glob("work/ray/*/job.json")), name
        workers(machines)[0].send_signal(signal.SIGKILL)
        directory = finish(process, work)
    assert json.loads((directory / "result.json").read_text())["resumed_from_step"] > 0
    assert parameters(directory) == parameters(expected)
    # SeaweedFS keeps empty folders for a while
    assert files.du(f"{path}/fine_tune") == 0, "the store keeps what nobody needs"
    assert not [found for name in ("first", "second") for found in (tmp_path / name).glob("work/ray/*/*")]
