"""Processes that promote: `python -m tests.support.promoters crowd DB COUNT` and `… kill DB SCENARIO`.

Forked from one process that has imported everything, each opens the database for itself. Versions here
hold no files: their tag `quality` is what the gate of `_decide` compares.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from mlflow.tracking import MlflowClient

from steps.promote.gate import Decision
from steps.register import history, registry
from steps.register.moves import RegistryState

NAME, TARGET = "agentps-small", "production"
WRITES = (
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "set_model_version_tag",
    "copy_model_version",
)


def use(database: Path) -> MlflowClient:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ[name] = f"sqlite:///{database}"
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    mlflow.set_registry_uri(f"sqlite:///{database}")
    return MlflowClient()


def add_version(quality: int) -> registry.RegisteredVersion:
    """A version without files; the one that is there where there is one of this quality."""
    client = MlflowClient()
    if not client.search_registered_models(f"name = '{NAME}'"):
        client.create_registered_model(NAME)
    found = client.search_model_versions(f"name = '{NAME}' and tags.quality = '{quality}'")
    version = found[0] if found else client.create_model_version(NAME, "test:/none", tags={"quality": str(quality)})
    return registry.get(NAME, str(version.version))


def quality_of(version: registry.RegisteredVersion) -> int:
    return int(registry.tags_of(version)["quality"])


def promote(version: registry.RegisteredVersion) -> Decision:
    def decide(state: RegistryState) -> Decision:
        better = state.champion is None or quality_of(version) > quality_of(state.champion)
        reason = f"against {state.aliases.get('champion')}"
        return Decision(verdict="promoted" if better else "kept", reason=reason)

    return history.settle(version, decide)


def run(database: Path, work: Callable[[], object]) -> int:
    """`work` in a process of its own; its wait status."""
    child = os.fork()
    if child == 0:
        use(database)
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def crowd(database: Path, count: int) -> None:
    """`count` processes promote a version each, all at once; prints the registry after them."""

    def start() -> None:
        for quality in range(count):
            add_version(quality)

    assert run(database, start) == 0
    ready, go = os.pipe()
    children = []
    for quality in range(count):
        child = os.fork()
        if child == 0:
            use(database)
            os.close(go)
            version = add_version(quality)
            os.read(ready, 1)  # all of them wait for the pipe to be closed
            promote(version)
            os._exit(0)
        children.append(child)
    os.close(ready)
    os.close(go)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count
    assert run(database, lambda: tell(0)) == 0


def kill_after(write: int) -> None:
    """SIGKILL to this process once so many writes to MLflow are done."""
    left = [write]

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in WRITES:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))


def scenario(name: str) -> Callable[[], object]:
    def promotion() -> None:
        version = add_version(2)
        history.challenge(version)
        promote(version)
        history.publish(NAME, TARGET)

    def first() -> None:
        version = add_version(1)
        history.challenge(version)
        promote(version)

    def rollback() -> None:
        history.rollback(NAME, "a test")

    return {"promotion": promotion, "first": first, "rollback": rollback}[name]


def prepare(name: str) -> None:
    if name != "first":
        promote(add_version(1))
        history.publish(NAME, TARGET)
    if name == "rollback":
        promote(add_version(2))


def tell(write: int) -> None:
    sys.stdout.write(json.dumps({"write": write, **describe()}) + "\n")
    sys.stdout.flush()


def _strings(aliases: dict[str, Any]) -> dict[str, str]:
    return {alias: str(version) for alias, version in aliases.items()}


def describe() -> dict[str, Any]:
    client = MlflowClient()
    state = history.sync(NAME)
    versions = client.search_model_versions(f"name = '{NAME}'")
    copies = client.search_model_versions(f"name = '{TARGET}'")
    return {
        "aliases": _strings(client.get_registered_model(NAME).aliases),
        "decided": dict(state.aliases),
        "numbers": [entry.number for entry in state.entries],
        "kinds": [entry.move.kind for entry in state.entries],
        "champions": [
            (e.move.expects.get("champion"), e.move.sets["champion"])
            for e in state.entries
            if e.counts and "champion" in e.move.sets
        ],
        "counts": all(entry.counts for entry in state.entries),
        "done": all(entry.done for entry in state.entries),
        "verdicts": {v.version: v.tags.get(history.VERDICT) for v in versions},
        "copies": sorted(copy.source for copy in copies),
        "target": _strings(client.get_registered_model(TARGET).aliases) if copies else {},
    }


def killed_at_every_write(database: Path, name: str) -> None:
    """Prints a JSON line for each write: the registry after a kill there and one more run."""
    start = database.with_name("start.db")
    shutil.copy(database, start)
    assert run(start, lambda: prepare(name)) == 0
    copies: list[Path] = []
    while True:
        copy = database.with_name(f"killed-{len(copies) + 1}.db")
        shutil.copy(start, copy)

        def killed() -> None:
            kill_after(len(copies) + 1)
            scenario(name)()

        status = run(copy, killed)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        copies.append(copy)
    for write, copy in enumerate(copies, start=1):
        use(copy)
        if name != "rollback":
            scenario(name)()
        tell(write)


def main() -> None:
    database = Path(sys.argv[2])
    history.fetch = lambda version: Path()  # type: ignore[assignment]  # versions here hold no files
    warm = database.with_name("warm.db")  # what MLflow and SQLAlchemy set up at first use, once for all processes
    shutil.copy(database, warm)
    use(warm)
    prepare("rollback")
    if sys.argv[1] == "crowd":
        crowd(database, int(sys.argv[3]))
    else:
        killed_at_every_write(database, sys.argv[3])


if __name__ == "__main__":
    main()
