"""`agentps schedule --stack` with ZenML's Kubernetes orchestrator and the real `kubernetes` client.

The API server is a stand-in on a port of its own: it keeps CronJobs and answers as the API does. What a cluster does
with them afterwards is not seen here.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.schedule.command import program
from tests.pipelines.workspace import Workspace

pytestmark = pytest.mark.pipeline

_STACK = """
from zenml.client import Client
from zenml.enums import StackComponentType as Kind
client = Client()
client.create_stack_component("k8s", "kubernetes", Kind.ORCHESTRATOR, {"kubernetes_context": "c", "local": True})
client.create_stack_component("k8s", "default", Kind.CONTAINER_REGISTRY, {"uri": "localhost:5000"})
client.create_stack("k8s", {Kind.ORCHESTRATOR: "k8s", Kind.ARTIFACT_STORE: "default", Kind.CONTAINER_REGISTRY: "k8s"})
"""

#: `agentps schedule` with one list of arguments after the other, in one process: most of its time is imports.
_SEVERAL = """
import json, sys, urllib.request
from cli.main import main
for arguments in json.loads(sys.argv[2]):
    try:
        main(["schedule", *arguments], prog_name="agentps")
    except SystemExit as end:
        print(f"\\n--- ended with {end.code} ---", flush=True)
    urllib.request.urlopen(sys.argv[1]).close()
"""


class Cluster(ThreadingHTTPServer):
    """`cron_jobs`: name -> manifest; `seen`: what they were at each GET."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cron_jobs: dict[str, dict[str, Any]] = {}
        self.seen: list[dict[str, dict[str, Any]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.kubeconfig = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")


class _Handler(BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        self.server.seen.append(copy.deepcopy(self.server.cron_jobs))
        self._answer(200, {})

    def do_POST(self) -> None:
        manifest = self._body()
        if manifest.get("kind") == "CronJob":
            self.server.cron_jobs[manifest["metadata"]["name"]] = manifest
        self._answer(201, manifest)

    def do_PATCH(self) -> None:
        job = self.server.cron_jobs[self.path.rpartition("/")[2]]
        job["spec"] |= self._body()["spec"]
        self._answer(200, job)

    def do_DELETE(self) -> None:
        del self.server.cron_jobs[self.path.rpartition("/")[2]]
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_schedule_on_a_stack_is_changed_in_place_and_never_doubled(workspace: Workspace, cluster: Cluster) -> None:
    workspace.python("-c", _STACK)
    docker = {"docker": {"skip_build": True, "parent_image": "registry.example/agentps"}}
    weekly = workspace.config("weekly.yaml", {"posts": "new", "settings": docker})
    other = workspace.config("other.yaml", {"posts": "newer", "settings": docker})

    make = ("--stack", "k8s", "--pipeline", "pipelines.agentps_retraining", "--cron")
    environment = {"KUBECONFIG": str(cluster.kubeconfig)}
    command = [program("agentps"), "schedule", *make, "0  3 * * 1", "-c", weekly]
    made = workspace.start(command, **environment).wait()
    assert made.exit_code == 0, made.output
    assert "on stack k8s: pipelines.agentps_retraining, cron 0 3 * * 1" in made.output
    ((name, job),) = cluster.cron_jobs.items()
    assert (job["spec"]["schedule"], job["spec"]["concurrencyPolicy"]) == ("0 3 * * 1", "Forbid")
    container = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/agentps"

    several = [
        (*make, "0 4 * * 1", "-c", weekly),
        (*make, "0 4 * * 1", "-c", other),
        ("--stack", "k8s", "--show"),
        ("--stack", "k8s", "--remove"),
        ("--stack", "k8s", "--remove"),
    ]
    command = [sys.executable, "-c", _SEVERAL, cluster.url, json.dumps(several)]
    output = workspace.start(command, **environment).wait().output
    later, replaced, shown, removed, nothing = re.split(r"^--- ended with 0 ---$", output, flags=re.MULTILINE)[:5]
    assert "cron 0 4 * * 1" in later
    states = [{name: job["spec"]["schedule"] for name, job in jobs.items()} for jobs in cluster.seen]
    assert states[0] == {name: "0 4 * * 1"}
    # what it runs cannot be changed in place: the old one goes before the new one comes
    assert list(states[1].values()) == ["0 4 * * 1"], replaced
    assert name not in states[1]
    assert states[2] == states[1]
    assert "cron 0 4 * * 1" in shown
    assert "the schedule is removed" in removed
    assert states[3:] == [{}, {}]
    assert "there was no schedule on stack k8s" in nothing


def test_a_stack_without_schedules_or_of_no_name_is_refused(workspace: Workspace, cluster: Cluster) -> None:
    several = [("--stack", stack, "--cron", "0 3 * * *") for stack in ("default", "nowhere")]
    output = workspace.python("-c", _SEVERAL, cluster.url, json.dumps(several)).output
    default, nowhere = re.split(r"^--- ended with 1 ---$", output, flags=re.MULTILINE)[:2]
    assert "stack default: its orchestrator, of flavor local, runs no schedules" in default
    assert "there is no ZenML stack 'nowhere'" in nowhere


def test_what_the_stack_starts_is_the_literal_command_and_its_failure_is_told(workspace: Workspace) -> None:
    told = workspace.root / "told.txt"
    config = {"posts": "nowhere.jsonl", "notify": {"command": f"tee -a {told}"}}
    scheduled = {"pipeline": "agentps_training", "config": config}
    run = workspace.start(
        workspace.command(workspace.config("s.yaml", scheduled), "pipelines.agentps_scheduled")
    ).wait()
    assert run.exit_code == 1
    (line,) = told.read_text(encoding="utf-8").splitlines()
    assert "agentps_training failed" in line
    assert "nowhere.jsonl" in line
    assert line in run.output
