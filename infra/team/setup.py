"""What each server is told once it answers: `python -m infra.team.setup buckets|mlflow|zenml`; and people's rights."""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.team.servers import AGENTPS, BUCKETS, clean, run_file, stores
from infra.team.state import KEPT, State, draw, load, save_secrets, team_folder
from infra.team.supervisor import up
from model.files import write_whole
from steps.paths import REPOSITORY
from steps.register.names import log_name

if TYPE_CHECKING:
    from mlflow.server.auth.client import AuthServiceClient

#: MLflow's experiments: one per pipeline, with its name.
EXPERIMENTS = ("agentps_training", "agentps_retraining", "agentps_study")
STACK = "agentps-team"
#: ZenML's secret with a user's login to MLflow: private, so that each has one.
LOGIN = "agentps_mlflow"


def as_admin(state: State) -> dict[str, str]:
    """The environment of one who may everything."""
    return {
        "AGENTPS_TEAM": str(state.folder),
        "MLFLOW_TRACKING_URI": state.url("mlflow"),
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": state.secrets["mlflow_admin"],
        "ZENML_CONFIG_PATH": str(state.folder / "admin"),
        "ZENML_STORE_URL": state.url("zenml"),
        "ZENML_STORE_USERNAME": "admin",
        "ZENML_STORE_PASSWORD": state.secrets["zenml_admin"],
    }


def buckets(state: State) -> None:
    import boto3

    client = boto3.client("s3")
    there = {each["Name"] for each in client.list_buckets()["Buckets"]}
    for name in BUCKETS:
        if name not in there:
            client.create_bucket(Bucket=name)


def mlflow(state: State) -> None:
    from mlflow import create_experiment, get_experiment_by_name

    from steps.register.registry import create_model

    for name in EXPERIMENTS:
        if get_experiment_by_name(name) is None:
            create_experiment(name)
    for name in [each for model in state.options.models for each in (model, log_name(model))]:
        create_model(name)  # who makes a model may delete it
    _mlflow_user(state, "service", state.secrets["mlflow_service"], "READ")
    if "service_key" not in state.secrets:
        save_secrets(state.folder, state.secrets | {"service_key": _service_key(state, "stream")})


def zenml(state: State) -> None:
    """The stack, for all who use this server: their own process runs a pipeline, artifacts go to the object store."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    parts: dict[str, tuple[str, dict[str, Any]]] = {
        "orchestrator": ("local", {}),
        "artifact_store": (
            "s3",
            {
                "path": "s3://zenml",
                "key": "agentps-zenml",
                "secret": state.secrets["s3_zenml"],
                "client_kwargs": {"endpoint_url": state.url("s3"), "region_name": "us-east-1"},
            },
        ),
        # each user's own: a private secret of that name. ZenML hands what else it keeps to all its users
        "experiment_tracker": (
            "mlflow",
            {
                "tracking_uri": state.url("mlflow"),
                "tracking_username": f"{{{{{LOGIN}.username}}}}",
                "tracking_password": f"{{{{{LOGIN}.password}}}}",
            },
        ),
    }
    client = Client()
    login()
    for key, (flavor, configuration) in parts.items():
        kind = StackComponentType(key)
        try:
            found = client.get_stack_component(kind, STACK, allow_name_prefix_match=False)
        except KeyError:
            client.create_stack_component(STACK, flavor, kind, configuration)
        else:
            client.update_stack_component(found.id, kind, configuration=configuration)
    try:
        client.get_stack(STACK, allow_name_prefix_match=False)
    except KeyError:
        client.create_stack(STACK, {StackComponentType(key): STACK for key in parts})


def login() -> None:
    """Keep the login to MLflow of the user who asks ZenML, both as the environment has them."""
    from zenml.client import Client

    values = {name: os.environ[f"MLFLOW_TRACKING_{name.upper()}"] for name in ("username", "password")}
    client = Client()
    try:
        found = client.get_secret(LOGIN, private=True, allow_partial_name_match=False)
    except KeyError:
        client.create_secret(LOGIN, values, private=True)
    else:
        client.update_secret(found.id, add_or_update_values=values)


def _auth() -> AuthServiceClient:
    from mlflow.server.auth.client import AuthServiceClient

    return AuthServiceClient(os.environ["MLFLOW_TRACKING_URI"])


def _there(call: Callable[..., object], *arguments: str) -> bool:
    """Whether what `call` would make is there already; else it makes it."""
    from mlflow.exceptions import MlflowException

    try:
        call(*arguments)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return True
    return False


def _mlflow_user(state: State, name: str, password: str, permission: str) -> None:
    """Args: permission: on the experiments, on the models and on their histories."""
    from mlflow import get_experiment_by_name

    auth = _auth()
    if _there(auth.create_user, name, password):
        auth.update_user_password(name, password)
    found = map(get_experiment_by_name, EXPERIMENTS)
    granted = [("experiment", each.experiment_id) for each in found if each is not None]
    granted += [("registered_model", each) for model in state.options.models for each in (model, log_name(model))]
    for kind, what in granted:
        if _there(auth.grant_user_permission, name, kind, what, permission):
            auth.revoke_user_permission(name, kind, what)
            auth.grant_user_permission(name, kind, what, permission)


def user(state: State, name: str, *, train: bool) -> Path:
    """Make an account, or give it a new password and key; returns the file of its variables.

    Args:
        train: it may register into the models and move their champions; else it reads.
    """
    from zenml.client import Client

    password = secrets.token_hex(16)
    _mlflow_user(state, name, password, "EDIT" if train else "READ")
    client = Client()
    try:
        client.get_service_account(name, allow_name_prefix_match=False)
    except KeyError:
        client.create_service_account(name)
    for old in client.list_api_keys(service_account_name_id_or_prefix=name, size=100):
        client.delete_api_key(name, old.id)
    key = client.create_api_key(name, f"key-{secrets.token_hex(4)}").key
    stack = client.get_stack(STACK, allow_name_prefix_match=False)
    variables = {
        "MLFLOW_TRACKING_URI": state.url("mlflow"),
        "MLFLOW_TRACKING_USERNAME": name,
        "MLFLOW_TRACKING_PASSWORD": password,
        "ZENML_STORE_URL": state.url("zenml"),
        "ZENML_STORE_API_KEY": str(key),
        "ZENML_ACTIVE_STACK_ID": str(stack.id),
    }
    if train:
        variables |= {"AGENTPS_LEDGER": state.database("ledger"), "STORE_URL": state.database("scores")}
        variables |= state.s3("posts")
        variables |= {"SERVICE_URL": state.url("service"), "SERVICE_KEY": _service_key(state, name)}
    login = [sys.executable, "-m", "infra.team.setup", "login"]
    subprocess.run(login, env=clean(variables | {"ZENML_CONFIG_PATH": str(state.folder / "admin" / name)}), check=True)
    path = state.folder / "users" / f"{name}.env"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    text = "".join(f"export {variable}={shlex.quote(value)}\n" for variable, value in variables.items())
    write_whole(path, f"# Who has this file is {name}: . {path}\n{text}", private=True)
    return path


def _service_key(state: State, name: str) -> str:
    command = [AGENTPS, "key", name, "-c", str(run_file(state))]
    environment = clean({"AGENTPS_HOME": str(state.folder / "home")})
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def rotate(state: State) -> None:
    """New secrets of the servers, of this running stack; those of people stay. It is to be started again then.

    A password that a server keeps itself is written down the moment that the server has it, so that the stack starts
    again wherever this is killed.
    """
    from zenml.client import Client

    known = dict(state.secrets)
    new = {name: value for name, value in draw().items() if name not in KEPT}

    def take(name: str) -> None:
        known[name] = new[name]
        save_secrets(state.folder, known)

    Client().update_user("admin", updated_password=new["zenml_admin"], old_password=known["zenml_admin"])
    take("zenml_admin")
    _auth().update_user_password("admin", new["mlflow_admin"], current_password=known["mlflow_admin"])
    take("mlflow_admin")
    for path in (state.folder / "users").glob("*.env"):
        text = path.read_text(encoding="utf-8")
        for name, value in new.items():
            text = text.replace(state.secrets[name], value)
        write_whole(path, text, private=True)
    save_secrets(state.folder, known | new)  # all others are told theirs as they start


def migrate(state: State) -> None:
    """MLflow's tables as this version of MLflow has them; those of its users it brings up to date by itself.

    Raises: TeamError where the stack runs.
    """
    from mlflow.store.db import utils

    database, *_ = stores(state)
    with up(state, [database]):
        utils._upgrade_db(utils.create_sqlalchemy_engine_with_retry(state.database("mlflow")))


def enter(state: State) -> None:
    """This process asks as the admin from here on. To be called before MLflow, ZenML or boto3 is imported."""
    environment = clean(as_admin(state) | state.s3("admin") | {"ZENML_LOGGING_VERBOSITY": "ERROR"})
    (state.folder / "admin").mkdir(mode=0o700, exist_ok=True)  # ZenML keeps its tokens there
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)


def main(what: str) -> None:
    if what == "login":
        login()
        return
    state = load(team_folder())
    enter(state)
    {"buckets": buckets, "mlflow": mlflow, "zenml": zenml}[what](state)


if __name__ == "__main__":
    main(sys.argv[1])
