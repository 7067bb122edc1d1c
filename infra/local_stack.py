"""Register and activate the stack of `infra/stacks/local.yaml`, or remove it: `python -m infra.local_stack [--remove]`.

All clones of one user share one ZenML database, so the stack and its components are named after the clone's home
(`agentps-local-1a2b3c`); which stack is active is kept in the clone's own `.zen/`. A moved clone therefore gets a stack
of its own: run `make clean` before you move one.

Registering takes 4 s of CPU, most of it the import of ZenML and MLflow. So a second call does nothing, in 0.1 s, while
a stamp in the home still holds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import socket
import sqlite3
import sys
from contextlib import closing
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies
from uuid import UUID

import click
import yaml
from pydantic import Field, ValidationError

from model.errors import ConfigError
from model.files import write_whole
from model.strict import Strict, explain_validation
from model.yaml_file import load_yaml
from steps.edge import sick_database, told, zenml_folder
from steps.lifetime import ends_by_signal
from steps.locks import locked
from steps.paths import REPOSITORY, home
from steps.secrets import masked

if TYPE_CHECKING:
    from zenml.client import Client

LOCAL_STACK = REPOSITORY / "infra" / "stacks" / "local.yaml"
HOME_PLACEHOLDER = "${AGENTPS_HOME}"
SQLITE = "sqlite:///"
#: Where a server of MLflow, or a database that MLflow opens itself, listens unless its address says otherwise.
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
#: Seconds.
_PATIENCE = 10


class Orchestrator(Strict):
    flavor: Literal["local"]


class ArtifactStore(Strict):
    flavor: Literal["local"]
    #: Absolute directory.
    path: str = Field(pattern="^/")


class ExperimentTracker(Strict):
    flavor: Literal["mlflow"]
    #: `sqlite:///` and the absolute path of the database.
    tracking_uri: str = Field(pattern=f"^{SQLITE}/")


class Experiments(Strict):
    """The MLflow experiments: one per pipeline, with its name."""

    names: list[str]
    #: Absolute directory.
    artifact_location: str = Field(pattern="^/")


class LocalStack(Strict):
    """The content of `infra/stacks/local.yaml` for one home."""

    name: str
    orchestrator: Orchestrator
    artifact_store: ArtifactStore
    experiment_tracker: ExperimentTracker
    experiments: Experiments

    @property
    def components(self) -> dict[str, tuple[str, dict[str, str]]]:
        """ZenML's component type -> (flavor, configuration)."""
        parts = self.model_dump(include={"orchestrator", "artifact_store", "experiment_tracker"})
        return {key: (part.pop("flavor"), part) for key, part in parts.items()}

    @property
    def mlflow_db(self) -> Path:
        return Path(self.experiment_tracker.tracking_uri.removeprefix(SQLITE))


def load_stack(path: Path, home_dir: Path) -> LocalStack:
    """The stack of `path` with its placeholders replaced, named after `home_dir`.

    Raises:
        ConfigError: the file cannot be read or breaks a rule, or the home cannot be part of a database URI.
    """
    if set(str(home_dir)) & set("?#%"):
        raise ConfigError(
            f"AGENTPS_HOME {home_dir}: ?, # and % have a meaning in MLflow's database URI; use a path without them"
        )
    try:
        raw = load_yaml(path)
        stack = LocalStack.model_validate(_expand(raw, str(home_dir)))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"stack {path}: cannot be read as YAML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"stack {path}: {explain_validation(error)}") from error
    return stack.model_copy(update={"name": f"{stack.name}-{home_suffix(home_dir)}"})


def tracking_uri(home_dir: Path) -> str:
    """Where MLflow is: `MLFLOW_TRACKING_URI`, else where `make` put it.

    Raises:
        ConfigError: the variable holds no such address, or nothing listens there. MLflow itself would try for minutes.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return load_stack(LOCAL_STACK, home_dir).experiment_tracker.tracking_uri
    named, expected = f"MLFLOW_TRACKING_URI {masked(uri)}", "https://HOST:PORT or sqlite:////PATH is expected"
    try:
        parts = urlsplit(uri)
        scheme, host, port = parts.scheme.partition("+")[0], parts.hostname, parts.port
    except ValueError:  # half an IPv6 address, a port that is no number: the error would name what may be a password
        raise ConfigError(f"{named}: {expected}") from None
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    if scheme not in {*_PORTS, *plugins, "sqlite", "file", "databricks", "uc"} and not Path(uri).is_dir():
        raise ConfigError(f"{named}: not an address that MLflow knows: {expected}")
    if scheme not in _PORTS or (scheme.startswith("http") and getproxies()):
        return uri
    if not host:
        raise ConfigError(f"{named}: it names no host: {scheme}://HOST:PORT is expected")
    try:
        socket.create_connection((host, port or _PORTS[scheme]), timeout=_PATIENCE).close()
    except OSError as error:
        raise ConfigError(f"{named}: nothing answers ({error}): start the server, or correct the address") from error
    return uri


def home_suffix(home_dir: Path) -> str:
    """Six digits of the home's path, which keep what clones of one user name apart."""
    return hashlib.sha256(str(home_dir).encode()).hexdigest()[:6]


def _expand(value: Any, home_dir: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand(inner, home_dir) for key, inner in value.items()}
    return value.replace(HOME_PLACEHOLDER, home_dir) if isinstance(value, str) else value


def require_active(home_dir: Path) -> None:
    """Refuse to run on a local stack that is not this home's; a stack that the user made may be anyone's.

    Raises:
        ConfigError: another local stack is active.
    """
    from zenml.client import Client

    stack = load_stack(LOCAL_STACK, home_dir)
    variable = os.environ.get("ZENML_ACTIVE_STACK_ID")
    try:
        active = Client().active_stack_model.name
    except KeyError as error:
        if variable:
            raise ConfigError(f"there is no stack {variable!r}: unset ZENML_ACTIVE_STACK_ID") from error
        raise
    kind = stack.name.removesuffix(home_suffix(home_dir))
    if active == stack.name or not (active == "default" or active.startswith(kind)):
        return
    raise ConfigError(
        f"the active stack is {active}, but the home {home_dir} has the stack {stack.name}: "
        + ("unset ZENML_ACTIVE_STACK_ID" if variable else f"run `make setup` in {REPOSITORY}, with AGENTPS_HOME as now")
    )


def register(stack: LocalStack, repository: Path) -> None:
    """Create or update the stack and its components, activate it for `repository`, create the MLflow experiments.

    Raises:
        ConfigError: something of the stack's name exists, but is not what this project made.
    """
    client = _client(repository)
    if not Path(stack.artifact_store.path).is_dir():
        # Somebody deleted the artifacts. ZenML's cache knows them by their artifact store: a new one
        # makes the steps run again instead of handing on files that are gone.
        unregister(stack, repository)
    Path(stack.artifact_store.path).mkdir(parents=True, exist_ok=True)
    for name in stack.experiments.names:
        _create_experiment(stack, name)
    _register_components(client, stack)
    client.activate_stack(stack.name)


def unregister(stack: LocalStack, repository: Path) -> bool:
    """Remove the stack and its components from ZenML; files stay. False where no such stack is registered.

    Raises:
        ConfigError: the stack is active outside of `repository` too.
    """
    from zenml.config.global_config import GlobalConfiguration

    client = _client(repository)
    try:
        found = client.get_stack(stack.name, allow_name_prefix_match=False)
    except KeyError:
        return False
    if found.id == GlobalConfiguration().active_stack_id:
        raise ConfigError(
            f"stack {stack.name} is active outside of {repository} too: "
            "run `zenml stack set default` in another directory first"
        )
    if found.id == client.active_stack_model.id:
        client.activate_stack("default")
    client.delete_stack(found.id, recursive=True)
    return True


def _client(repository: Path) -> Client:
    from zenml.client import Client

    if not Client.is_repository_directory(repository):
        Client.initialize(root=repository)
    client = Client()
    client.activate_root(repository)  # where the command was started from does not matter
    return client


def _register_components(client: Client, stack: LocalStack) -> None:
    from zenml.enums import StackComponentType

    for key, (flavor, configuration) in stack.components.items():
        component_type = StackComponentType(key)
        try:
            found = client.get_stack_component(component_type, stack.name, allow_name_prefix_match=False)
        except KeyError:
            client.create_stack_component(stack.name, flavor, component_type, configuration)
            continue
        if found.flavor_name != flavor:
            raise ConfigError(
                f"ZenML's {key} {stack.name} has the flavor {found.flavor_name}, {flavor} was expected: "
                f"run `zenml {key.replace('_', '-')} delete {stack.name}`"
            )
        if found.configuration != configuration:
            # None removes what the file does not name
            removed = dict.fromkeys(found.configuration.keys() - configuration.keys())
            client.update_stack_component(found.id, component_type, configuration={**removed, **configuration})
    components = {StackComponentType(key): stack.name for key in stack.components}
    try:
        found_stack = client.get_stack(stack.name, allow_name_prefix_match=False)
    except KeyError:
        client.create_stack(stack.name, components)
        return
    if any([part.name for part in found_stack.components.get(key, [])] != [name] for key, name in components.items()):
        client.update_stack(found_stack.id, component_updates=components)


def _create_experiment(stack: LocalStack, name: str) -> None:
    import mlflow

    location = stack.experiments.artifact_location
    mlflow.set_tracking_uri(stack.experiment_tracker.tracking_uri)
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        mlflow.create_experiment(name, artifact_location=location)
    elif found.lifecycle_stage != "active":
        raise ConfigError(
            f"MLflow's experiment {name} in {stack.mlflow_db} was deleted: restore it with "
            f"`MLFLOW_TRACKING_URI={shlex.quote(stack.experiment_tracker.tracking_uri)} mlflow experiments restore "
            f"-x {found.experiment_id}`"
        )
    elif found.artifact_location != location:
        raise ConfigError(
            f"MLflow's experiment {name} in {stack.mlflow_db} keeps its artifacts in "
            f"{found.artifact_location}, {location} was expected. MLflow cannot change that: "
            f"move the directory back to where it was, or delete {stack.mlflow_db} to start anew"
        )


def is_current(stack: LocalStack, repository: Path, home_dir: Path) -> bool:
    """Whether `register` has nothing to do, told in milliseconds without ZenML; False in any doubt."""
    traces, stamp = _traces(stack, repository), _stamp_path(home_dir)
    return traces is not None and stamp.exists() and stamp.read_text(encoding="utf-8") == traces


def write_stamp(stack: LocalStack, repository: Path, home_dir: Path) -> None:
    """Let `is_current` say yes next time; where ZenML's store is a server, it is asked every time instead."""
    write_whole(_stamp_path(home_dir), _traces(stack, repository) or "")


def _stamp_path(home_dir: Path) -> Path:
    return home_dir / "local-stack.stamp"


def _traces(stack: LocalStack, repository: Path) -> str | None:
    """Hash of all that a registration depends on, and of what it leaves; None where something of that is missing."""
    settings = [repository / ".zen", zenml_folder()]
    try:
        own, users = ((folder / "config.yaml").read_text(encoding="utf-8") for folder in settings)
        database = Path(yaml.safe_load(users)["store"]["database"])
        # The one look behind ZenML's back: a stack deleted from another directory leaves no other trace here.
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            active = UUID(yaml.safe_load(own)["active_stack_id"]).hex
            found = connection.execute("SELECT name FROM stack WHERE id = ?", (active,)).fetchone()
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError, sqlite3.Error):
        return None
    if found != (stack.name,) or not Path(stack.artifact_store.path).is_dir() or not stack.mlflow_db.is_file():
        return None
    environment = sorted(item for item in os.environ.items() if item[0].startswith("ZENML_"))
    depends = [stack.model_dump(), version("zenml"), version("mlflow"), environment, own, users]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m infra.local_stack", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--remove", action="store_true", help="remove the stack and its components from ZenML")
    options = parser.parse_args(arguments)
    with ends_by_signal():
        try:
            click.echo(_set_up(home(), remove=options.remove))
        except Exception as error:
            if (line := told(error)) is None:
                raise
            click.echo(f"error: {line}", err=True)
            return 1
    return 0


def _set_up(home_dir: Path, *, remove: bool) -> str:
    """What was done, in a line."""
    stack = load_stack(LOCAL_STACK, home_dir)
    # where ZenML keeps what is active: elsewhere in an image, whose own files cannot be changed
    repository = Path(os.environ.get("ZENML_REPOSITORY_PATH") or REPOSITORY)
    if not remove and is_current(stack, repository, home_dir):
        return f"stack {stack.name}: active"
    # of all who share ZenML's database, then of all who share the home: two would make the same tables
    with (
        locked(zenml_folder() / "agentps.lock", "another set-up with the same ZenML database"),
        locked(home_dir / "locks" / "set-up.lock", "another set-up of the same home"),
    ):
        if remove:
            removed = unregister(stack, repository)
            _stamp_path(home_dir).unlink(missing_ok=True)
            return f"stack {stack.name}: {'removed' if removed else 'was not registered'}"
        if (line := sick_database()) is not None:  # ZenML and MLflow would try for minutes
            raise ConfigError(line)
        register(stack, repository)
        write_stamp(stack, repository, home_dir)
        return f"stack {stack.name}: registered and active, artifacts in {home_dir}"


if __name__ == "__main__":
    sys.exit(main())
