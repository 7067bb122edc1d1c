"""What a team's stack keeps: its folder, the options that people set, and the secrets that were drawn."""

from __future__ import annotations

import json
import os
import secrets
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, StringConstraints, ValidationError

from model.errors import AgentPSError, ConfigError
from model.files import write_whole
from model.strict import Chosen, explain_validation
from model.yaml_file import load_yaml
from steps.locks import locked
from steps.paths import home
from steps.register.names import ModelName

_FOLDER = "AGENTPS_TEAM"
_OPTIONS, _SECRETS, _LOCK = "team.yaml", "secrets.json", "made.lock"
_HEAD = """\
# The team's stack (docs/team.md): what you may change, for the next `make team-stop` and `make team`.
# host: what people reach is listened to there; databases and the inside of the object store stay on 127.0.0.1
# names: under which a proxy in front is reached, as mlflow.example.org
# models: the registered models that people with the right `train` may register into and move the champion of; the
#   service scores with the first one
# ports: where each server listens
# alertmanagers: HOST:PORT of each to which Prometheus sends its alerts; without one they are only shown
# run: a run file's options for the service and the stream worker: task, register, service, stream
"""
#: Server -> the port that is taken where it is free at the first start.
_PORTS = {
    "postgresql": 5433, "mariadb": 3307, "s3": 8333, "mlflow": 5000, "zenml": 8237, "service": 8000,
    "stream": 9108, "prometheus": 9090,
    "weed_master": 9333, "weed_master_grpc": 19333, "weed_volume": 8085, "weed_volume_grpc": 18085,
    "weed_filer": 8888, "weed_filer_grpc": 18888, "weed_s3_grpc": 18333,
}  # fmt: skip
#: Those that people reach: they listen where `host` says; all others on the loopback address.
_REACHED = ("s3", "mlflow", "zenml", "service")
#: Each is drawn by itself.
_DRAWN = (
    "postgresql_mlflow", "postgresql_agentps", "mariadb_zenml", "mlflow_admin", "mlflow_service", "mlflow_flask",
    "zenml_admin", "zenml_jwt", "zenml_encryption", "weed_volume", "weed_volume_read", "weed_filer", "weed_filer_read",
    "s3_admin", "s3_mlflow", "s3_zenml", "s3_posts",
)  # fmt: skip
#: What would make kept data unreadable if it changed.
KEPT = frozenset({"zenml_encryption"})


class TeamError(AgentPSError):
    """A server of the team's stack cannot be had."""


class _Known(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise ConfigError(
            f"this stack was made by an older version, and has no {name} yet: make team-stop, then make team"
        )


class Options(Chosen):
    """The file `team.yaml`."""

    host: str = "127.0.0.1"
    names: list[str] = []
    models: list[ModelName] = Field(default=["agentps-ucc"], min_length=1)
    ports: dict[str, Annotated[int, Field(ge=1, le=65_535)]] = Field(default_factory=dict)
    alertmanagers: list[Annotated[str, StringConstraints(pattern=r"^(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}$")]] = []
    run: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """One stack, in its folder."""

    folder: Path
    options: Options
    secrets: dict[str, str]

    @property
    def ports(self) -> dict[str, int]:
        return _Known(self.options.ports)

    @property
    def reached(self) -> str:
        """The host part of what people of this machine reach."""
        return "127.0.0.1" if self.options.host in ("0.0.0.0", "::") else self.options.host

    def address(self, server: str) -> tuple[str, int]:
        """Where it listens."""
        return (self.options.host if server in _REACHED else "127.0.0.1", self.ports[server])

    def url(self, server: str) -> str:
        return f"http://{self.reached}:{self.ports[server]}"

    def database(self, name: str) -> str:
        """The URL of `mlflow`, `mlflow_auth`, `scores` or `ledger` in PostgreSQL, with its password."""
        role = "mlflow" if name.startswith("mlflow") else "agentps"
        password = self.secrets[f"postgresql_{role}"]
        return f"postgresql+psycopg://{role}:{password}@127.0.0.1:{self.ports['postgresql']}/{name}"

    def s3(self, who: str) -> dict[str, str]:
        """The variables by which boto3, s3fs and pyarrow reach the object store.

        Args:
            who: `admin`, or a bucket, whose key opens nothing else.
        """
        return {
            "AWS_ACCESS_KEY_ID": f"agentps-{who}", "AWS_SECRET_ACCESS_KEY": self.secrets[f"s3_{who}"],
            "AWS_ENDPOINT_URL": self.url("s3"), "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip


def team_folder() -> Path:
    """`$AGENTPS_TEAM`, else `team/` in the project's home."""
    return Path(os.environ.get(_FOLDER) or home() / "team").resolve()


def exists(folder: Path) -> bool:
    return (folder / _SECRETS).exists()


def load(folder: Path) -> State:
    """The stack that is kept in `folder`.

    Raises:
        ConfigError: there is none, or a file of it breaks a rule.
    """
    if not exists(folder):
        raise ConfigError(
            f"there is no team's stack in {folder}: `make team` makes one; {_FOLDER} names another folder"
        )
    drawn = json.loads((folder / _SECRETS).read_text(encoding="utf-8"))
    return State(folder, _read(folder / _OPTIONS), _Known(drawn))


def make(folder: Path, host: str | None = None) -> State:
    """The stack of `folder`, with secrets of its own and ports that are free; one of before gets what is new since."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder / _LOCK, f"another start of the stack in {folder}"):  # else each would draw its own secrets
        return _make(folder, host)


def _make(folder: Path, host: str | None) -> State:
    if exists(folder):
        kept = json.loads((folder / _SECRETS).read_text(encoding="utf-8"))
    else:
        if found := sorted({"postgresql", "mariadb", "s3"} & {path.name for path in folder.glob("*")}):
            raise ConfigError(
                f"{folder} holds {found[0]} but no {_SECRETS}, without which it cannot be opened: put that back, or "
                "restore a back-up into an empty folder"
            )
        kept = {}
    before = _read(folder / _OPTIONS) if (folder / _OPTIONS).exists() else Options()
    options = before.model_copy(update={"ports": _free(before.ports), "host": host or before.host})
    if options != before:
        _save(folder, options)
    if not kept.keys() >= set(_DRAWN):
        save_secrets(folder, draw() | kept)
    return load(folder)


def save_secrets(folder: Path, known: dict[str, str]) -> None:
    write_whole(folder / _SECRETS, json.dumps(known, indent=1) + "\n", private=True)


def draw() -> dict[str, str]:
    """Secrets that nobody has known."""
    return {name: secrets.token_hex(24) for name in _DRAWN}


def _save(folder: Path, options: Options) -> None:
    text = _HEAD + yaml.safe_dump(options.model_dump(), sort_keys=False)
    write_whole(folder / _OPTIONS, text, private=True)


def _read(path: Path) -> Options:
    try:
        options = Options.model_validate(load_yaml(path) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain_validation(error)}") from error
    if unknown := options.ports.keys() - _PORTS.keys():
        raise ConfigError(f"{path}: ports.{min(unknown)}: there is no such server: {', '.join(_PORTS)} are expected")
    return options


def _free(chosen: dict[str, int]) -> dict[str, int]:
    """The usual ports, others where those are taken; `chosen` ones as they are."""
    found: dict[str, int] = {}
    with ExitStack() as held:  # until all are known: none is given out twice
        for name, usual in _PORTS.items():
            found[name] = chosen.get(name) or _bound(held, usual)
    return found


def _bound(held: ExitStack, usual: int) -> int:
    for port in (usual, 0):
        tried = held.enter_context(socket.socket())
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            continue
        return int(tried.getsockname()[1])
    raise TeamError("no port of 127.0.0.1 is free")
