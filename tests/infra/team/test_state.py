"""What the team's stack keeps in its folder, and what it says before anything is started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from infra.team import state, supervisor
from infra.team.databases import binary
from infra.team.servers import ALERTS, Server, answers, clean, run_file, servers
from infra.team.supervisor import start, stop, supervisor_of
from model.errors import ConfigError, DiskError
from model.yaml_file import load_yaml


def _modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()}


def test_a_new_stack_has_secrets_of_its_own_that_only_its_owner_reads(tmp_path: Path) -> None:
    one, other = state.make(tmp_path / "one"), state.make(tmp_path / "other")
    modes = _modes(one.folder)
    del modes["made.lock"]  # says which process makes it
    assert modes == {"secrets.json": 0o600, "team.yaml": 0o600}
    assert not set(one.secrets.values()) & set(other.secrets.values())
    assert all(len(value) >= 32 for value in one.secrets.values())
    assert len(set(one.secrets.values())) == len(one.secrets)


def test_a_second_make_changes_nothing(tmp_path: Path) -> None:
    assert state.make(tmp_path) == state.make(tmp_path) == state.load(tmp_path)


def test_two_starts_at_the_same_time_make_one_stack_with_one_set_of_secrets(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: state.make(tmp_path / "team"), range(8)))
    assert all(one == state.load(tmp_path / "team") for one in made)


def test_a_command_on_a_stack_of_before_says_that_it_is_to_be_started_again(tmp_path: Path) -> None:
    made = state.make(tmp_path)
    ports = {name: port for name, port in made.ports.items() if name != "stream"}
    (tmp_path / "team.yaml").write_text(yaml.safe_dump({"ports": ports}))
    with pytest.raises(ConfigError, match=r"no stream yet: make team"):
        run_file(state.load(tmp_path))


def test_a_stack_of_before_gets_the_secrets_and_ports_of_servers_that_are_new_and_keeps_its_own(tmp_path: Path) -> None:
    made = state.make(tmp_path)
    fewer = {name: value for name, value in made.secrets.items() if name != "s3_posts"} | {"service_key": "k"}
    (tmp_path / "secrets.json").write_text(json.dumps(fewer))
    options = yaml.safe_load((tmp_path / "team.yaml").read_text())
    for server in ("weed_filer", "prometheus"):
        del options["ports"][server]
    (tmp_path / "team.yaml").write_text(yaml.safe_dump(options))
    found = state.make(tmp_path)
    assert found.secrets.items() > fewer.items()
    assert found.secrets.keys() == made.secrets.keys() | {"service_key"}
    assert found.ports.items() > options["ports"].items()
    assert found.ports.keys() == made.ports.keys()
    assert state.make(tmp_path) == found


def test_a_taken_port_is_left_to_the_one_who_has_it_and_none_is_given_out_twice(tmp_path: Path) -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 5000))
            taken.listen()
        except OSError:
            pass  # another process has it: as good
        ports = state.make(tmp_path).ports
    assert ports["mlflow"] != 5000
    assert len(set(ports.values())) == len(ports)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("host: 1", "host"),
        ("ports: {mysql: 1}", "mysql"),
        ("ports: {mlflow: 70000}", "mlflow"),
        ("modls: []", "modls"),
        ("models: [champion]", "models"),
        ("models: []", "models"),
        ("alertmanagers: [http://alerts:9093]", "alertmanagers"),
        ("[", "YAML"),
    ],
)
def test_a_mistyped_option_is_named_with_its_file(text: str, named: str, tmp_path: Path) -> None:
    state.make(tmp_path)
    (tmp_path / "team.yaml").write_text(text)
    with pytest.raises(ConfigError, match=named) as error:
        state.load(tmp_path)
    assert str(tmp_path / "team.yaml") in str(error.value)


def test_where_no_stack_is_the_message_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make team"):
        state.load(tmp_path)
    assert not stop(tmp_path)


@pytest.mark.parametrize("name", ["admin", "Admin", "service", "../x", "a/b", "", "-x", "ALICE"])
def test_an_account_takes_no_servers_name_and_no_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from infra.team.__main__ import main

    monkeypatch.setenv("AGENTPS_TEAM", str(tmp_path))
    state.make(tmp_path)
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "alice.env").touch()  # ZenML's database takes ALICE for the same
    found = CliRunner().invoke(main, ["user", "--", name])
    assert isinstance(found.exception, ConfigError)


def test_a_folder_whose_secrets_are_gone_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    state.make(tmp_path)
    (tmp_path / "postgresql").mkdir()
    (tmp_path / "secrets.json").unlink()
    with pytest.raises(ConfigError, match=r"secrets\.json"):
        state.make(tmp_path)
    assert not (tmp_path / "secrets.json").exists()


class _Command(NamedTuple):
    """A server that is only a command of a shell."""

    words: str

    def of(self, name: str, ready: Callable[[], bool] = lambda: True) -> Server:
        return Server(name, ["sh", "-c", self.words], ready)


def _supervised(folder: Path, *servers: Server) -> threading.Thread:
    made = state.make(folder)
    thread = threading.Thread(target=lambda: _until(folder / "end", made, list(servers)))
    thread.start()
    return thread


def _until(end: Path, made: state.State, servers: list[Server]) -> None:
    with supervisor.up(made, servers) as processes:
        while not end.exists():
            supervisor.watch(made, processes)
            time.sleep(0.05)


def _await(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_that_ends_is_started_again_and_the_others_go_on(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    thread = _supervised(
        tmp_path, _Command("sleep 1000").of("one"), _Command(f"echo >> {runs}; sleep 0.2; exit 3").of("other")
    )
    _await(lambda: runs.exists() and len(runs.read_text()) >= 2)
    told = supervisor.status(tmp_path)
    assert told["pids"]["one"]
    (tmp_path / "end").touch()
    thread.join(60)
    with pytest.raises(ProcessLookupError):
        os.kill(told["pids"]["one"], 0)


def test_of_a_server_that_is_killed_no_process_stays(tmp_path: Path) -> None:
    """One that it had started would hold its port, and the next one could not have it."""
    pids = tmp_path / "children"
    thread = _supervised(tmp_path, _Command(f"sleep 1000 & echo $! >> {pids}; wait").of("one"))

    def children() -> list[int]:
        return [int(line) for line in pids.read_text().split()] if pids.exists() else []

    _await(lambda: len(children()) == 1 and supervisor.status(tmp_path)["pids"].get("one"))
    os.kill(supervisor.status(tmp_path)["pids"]["one"], signal.SIGKILL)
    _await(lambda: len(children()) == 2)
    assert not _runs(children()[0])
    (tmp_path / "end").touch()
    thread.join(60)
    _await(lambda: not _runs(children()[1]))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_could_not_be_set_up_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def set_up(self: object, what: str) -> None:
        tries.append(what)
        if 1 < len(tries) < 4:  # the first is as the stack starts: a failure there stops it
            raise state.TeamError("MLflow is busy")

    monkeypatch.setattr(supervisor._Process, "_set_up", set_up)
    thread = _supervised(tmp_path, replace(_Command("sleep 1000").of("one"), after="users"))
    _await(lambda: supervisor.status(tmp_path)["servers"].get("one") == "ready")
    os.kill(supervisor.status(tmp_path)["pids"]["one"], signal.SIGKILL)
    _await(lambda: len(tries) >= 4 and supervisor.status(tmp_path)["servers"]["one"] == "ready")
    assert tries == ["users"] * 4
    (tmp_path / "end").touch()
    thread.join(60)


def test_a_service_that_cannot_start_stops_none_of_the_servers_by_which_that_is_mended(tmp_path: Path) -> None:
    thread = _supervised(
        tmp_path, _Command("sleep 1000").of("mlflow"), replace(_Command("exit 3").of("service"), vital=False)
    )
    _await(lambda: supervisor.status(tmp_path)["up"])
    _await(lambda: supervisor.status(tmp_path)["servers"]["service"].startswith("ended with exit code 3"))
    assert supervisor.status(tmp_path)["servers"]["mlflow"] == "ready"
    (tmp_path / "end").touch()
    thread.join(60)


def test_what_has_a_servers_port_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be told passwords. One that others need stops the start; another is started once the port is free."""
    monkeypatch.setattr(supervisor, "_FREED", 0.2)
    made = state.make(tmp_path)
    one, other = (
        replace(_Command("sleep 1000").of(name, lambda: True), ports=(name,), vital=vital)
        for name, vital in (("postgresql", True), ("prometheus", False))
    )
    why = r"postgresql.*port \d+ .*ports\.postgresql, in .*team\.yaml"
    taken = socket.create_server(("127.0.0.1", made.ports["postgresql"]))
    with taken, pytest.raises(state.TeamError, match=why), supervisor.up(made, [one, other]):
        pass
    with socket.create_server(("127.0.0.1", made.ports["prometheus"])):
        thread = _supervised(tmp_path, one, other)
        _await(lambda: supervisor.status(tmp_path)["up"])
        assert "ports.prometheus" in supervisor.status(tmp_path)["servers"]["prometheus"]
        assert supervisor.status(tmp_path)["servers"]["postgresql"] == "ready"
    _await(lambda: supervisor.status(tmp_path)["servers"]["prometheus"] == "ready")
    (tmp_path / "end").touch()
    thread.join(60)


def test_a_stack_that_was_killed_gives_its_ports_back_before_the_next_one_starts(tmp_path: Path) -> None:
    made = state.make(tmp_path)
    taken = socket.create_server(("127.0.0.1", made.ports["mlflow"]))
    threading.Timer(1, taken.close).start()
    with supervisor.up(made, [replace(_Command("sleep 1000").of("mlflow"), ports=("mlflow",))]) as processes:
        assert [process.word for process in processes] == ["ready"]


def test_a_full_disk_while_one_server_is_started_again_stops_no_other(tmp_path: Path) -> None:
    full = [False]

    def prepare() -> None:
        if full[0]:
            Path("/dev/full").write_text("x")

    thread = _supervised(
        tmp_path, _Command("sleep 1000").of("one"), replace(_Command("sleep 1000").of("other"), prepare=prepare)
    )
    _await(lambda: supervisor.status(tmp_path)["up"])
    full[0] = True
    pids = supervisor.status(tmp_path)["pids"]
    os.kill(pids["other"], signal.SIGKILL)
    _await(lambda: "No space left" in supervisor.status(tmp_path)["servers"]["other"])
    full[0] = False
    _await(lambda: supervisor.status(tmp_path)["servers"]["other"] == "ready")
    assert supervisor.status(tmp_path)["pids"]["one"] == pids["one"]
    (tmp_path / "end").touch()
    thread.join(60)


def test_on_a_full_disk_nothing_is_told_that_was_true_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from infra.team.__main__ import main

    write = supervisor.write_whole
    full = [False]

    def write_whole(path: Path, content: str) -> None:
        if full[0]:
            raise DiskError("no space left")
        write(path, content)

    monkeypatch.setattr(supervisor, "write_whole", write_whole)
    monkeypatch.setenv("AGENTPS_TEAM", str(tmp_path))
    thread = _supervised(tmp_path, _Command("sleep 1000").of("one"))
    _await(lambda: supervisor.status(tmp_path)["up"])
    full[0] = True
    os.kill(supervisor.status(tmp_path)["pids"]["one"], signal.SIGKILL)
    _await(lambda: not supervisor.status(tmp_path)["up"])
    found = CliRunner().invoke(main, ["status"])
    assert found.exit_code == 1
    assert "disk is full" in found.output
    full[0] = False
    _await(lambda: supervisor.status(tmp_path)["servers"].get("one") == "ready")
    (tmp_path / "end").touch()
    thread.join(60)


def test_servers_reach_each_other_where_the_machine_is_given_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example.org")
    monkeypatch.delenv("NO_PROXY", raising=False)
    server = HTTPServer(("127.0.0.1", 0), _Figures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    script = "import sys, requests; print(requests.get(sys.argv[1]).status_code)"
    try:
        assert answers(url)
        done = subprocess.run(
            [sys.executable, "-c", script, url], env=clean({}), stdout=subprocess.PIPE, text=True, check=True
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.stdout == "200\n"
    assert clean({})["no_proxy"] == clean({})["NO_PROXY"] == "intranet.example.org,127.0.0.1,localhost"


def test_a_server_that_is_silent_later_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_CHECK", 0.1)
    answers = [True]
    thread = _supervised(tmp_path, _Command("sleep 1000").of("one", lambda: answers[0]))
    _await(lambda: supervisor.status(tmp_path)["servers"].get("one") == "ready")
    answers[0] = False
    _await(lambda: supervisor.status(tmp_path)["servers"]["one"] == "does not answer")
    (tmp_path / "end").touch()
    thread.join(60)


def test_no_secret_stands_in_a_command_that_every_user_of_the_machine_can_read(tmp_path: Path) -> None:
    made = state.make(tmp_path)
    words = " ".join(word for server in servers(made) for word in server.command)
    assert not [name for name, value in made.secrets.items() if value in words]


def test_without_a_host_every_server_listens_on_the_loopback_address(tmp_path: Path) -> None:
    made = state.make(tmp_path)
    words = " ".join(word for server in servers(made) for word in server.command)
    assert "0.0.0.0" not in words
    assert yaml.safe_load(run_file(made).read_text())["service"]["host"] == "127.0.0.1"


def test_what_people_set_is_laid_over_the_run_file_of_the_service(tmp_path: Path) -> None:
    state.make(tmp_path)
    options = yaml.safe_load((tmp_path / "team.yaml").read_text())
    run = {"service": {"queue_posts": 7}, "stream": {"source": "kafka://k:9092/posts"}, "task": "mine.yaml"}
    (tmp_path / "team.yaml").write_text(yaml.safe_dump(options | {"run": run}))
    found = yaml.safe_load(run_file(state.load(tmp_path)).read_text())
    assert found["task"] == "mine.yaml"
    assert found["service"]["queue_posts"] == 7
    assert found["service"]["keys"]
    assert found["stream"]["source"] == "kafka://k:9092/posts"
    assert found["stream"]["store"] == "env:STORE_URL"


def _worker(made: state.State) -> Server:
    (found,) = (server for server in servers(made) if server.name == "stream")
    return found


def test_the_stream_worker_of_a_new_stack_gets_the_key_that_is_drawn_while_the_others_start(tmp_path: Path) -> None:
    made = state.make(tmp_path)
    worker = _worker(made)  # before MLflow's first set-up
    state.save_secrets(tmp_path, made.secrets | {"service_key": "agentps_drawn"})
    worker.prepare()
    assert worker.environment["SERVICE_KEY"] == "agentps_drawn"


def test_the_stream_worker_is_ready_when_it_tells_prometheus_and_not_while_it_ends_again_and_again(
    tmp_path: Path,
) -> None:
    made = state.make(tmp_path)
    state.save_secrets(tmp_path, made.secrets | {"service_key": "k"})
    worker = _worker(made)
    worker.prepare()
    assert not worker.ready()
    with socket.create_server(("127.0.0.1", made.ports["stream"])):
        assert worker.ready()
    for given, ready in ((None, True), ("nowhere", False)):
        options = yaml.safe_load((tmp_path / "team.yaml").read_text())
        (tmp_path / "team.yaml").write_text(yaml.safe_dump(options | {"run": {"stream": {"metrics": given}}}))
        worker = _worker(state.load(tmp_path))
        worker.prepare()
        assert worker.ready() is ready


class _Figures(BaseHTTPRequestHandler):
    """A stream worker, as Prometheus sees it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"agentps_stream_waiting 1\n")

    def log_message(self, *_: object) -> None:
        pass


def _prometheus(made: state.State, path: str) -> Any:
    address = f"http://127.0.0.1:{made.ports['prometheus']}/api/v1/{path}"
    with urllib.request.urlopen(address, timeout=60) as answer:
        return json.load(answer)["data"]


@pytest.mark.skipif(binary("prometheus") is None, reason="no prometheus: apt-get install prometheus")
def test_prometheus_asks_service_and_worker_holds_the_rules_against_them_and_knows_where_alerts_go(
    tmp_path: Path,
) -> None:
    state.make(tmp_path)
    options = yaml.safe_load((tmp_path / "team.yaml").read_text())
    (tmp_path / "team.yaml").write_text(yaml.safe_dump(options | {"alertmanagers": ["127.0.0.1:9"]}))
    made = state.load(tmp_path)
    (server,) = (server for server in servers(made) if server.name == "prometheus")
    worker = HTTPServer(("127.0.0.1", made.ports["stream"]), _Figures)
    threading.Thread(target=worker.serve_forever, daemon=True).start()
    thread = _supervised(tmp_path, server)
    try:
        _await(lambda: supervisor.status(tmp_path)["servers"].get("prometheus") == "ready")
        rules = [rule for group in load_yaml(ALERTS)["groups"] for rule in group["rules"]]
        found = [rule for group in _prometheus(made, "rules")["groups"] for rule in group["rules"]]
        assert [rule["name"] for rule in found] == [rule["alert"] for rule in rules]
        manager = {"url": "http://127.0.0.1:9/api/v2/alerts"}
        _await(lambda: _prometheus(made, "alertmanagers")["activeAlertmanagers"] == [manager])
        # the worker answers, and waits for a broker; the service is not there
        _await(
            lambda: (
                {each["labels"]["alertname"] for each in _prometheus(made, "alerts")["alerts"]}
                == {"ServiceDown", "StreamWaits"}
            )
        )
        up = {each["labels"]["job"]: each["health"] for each in _prometheus(made, "targets")["activeTargets"]}
        assert up == {"agentps-service": "down", "agentps-stream": "up"}
    finally:
        (tmp_path / "end").touch()
        thread.join(60)
        worker.shutdown()
        worker.server_close()


def test_of_the_callers_environment_nothing_leads_a_server_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "AWS_PROFILE", "ZENML_STORE_URL", "RAY_ADDRESS", "AGENTPS_HOME"):
        monkeypatch.setenv(name, "elsewhere")
    assert "elsewhere" not in clean({}).values()
    assert clean({})["PATH"] == os.environ["PATH"]


def test_a_stack_whose_server_cannot_start_says_which_and_why_and_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infra.team.state import TeamError

    made = state.make(tmp_path)
    (tmp_path / "postgresql").write_text("a file, where a folder is expected")
    with pytest.raises(TeamError, match=r"(?i)postgresql"):
        start(made, lambda line: None)
    assert supervisor_of(tmp_path) is None
