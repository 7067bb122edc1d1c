"""`agentps schedule --stack` with ZenML's Kubernetes orchestrator and the real `kubernetes` client.

The API server is a stand-in on a port of its own: it keeps CronJobs and answers as the API does. What a cluster does
with them afterwards is not seen here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.schedule.command import program
from tests.pipelines.workspace import Outcome, Workspace

pytestmark = pytest.mark.pipeline

_STACK = """
from zenml.client import Client
from zenml.enums import StackComponentType as Kind
client = Client()
client.create_stack_component("k8s", "kubernetes", Kind.ORCHESTRATOR, {"kubernetes_context": "c", "local": True})
client.create_stack_component("k8s", "default", Kind.CONTAINER_REGISTRY, {"uri": "localhost:5000"})
client.create_stack("k8s", {Kind.ORCHESTRATOR: "k8s", Kind.ARTIFACT_STORE: "default", Kind.CONTAINER_REGISTRY: "k8s"})
"""


class Cluster(ThreadingHTTPServer):
    """`cron_jobs`: name -> manifest."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cron_jobs: dict[str, dict[str, Any]] = {}
        self.kubeconfig = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")

    @property
    def schedules(self) -> list[str]:
        return [job["spec"]["schedule"] for job in self.cron_jobs.values()]


class _Handler(BaseHTTPRequestHandler):
    server: Cluster

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

    def schedule(*arguments: str) -> Outcome:
        command = [program("agentps"), "schedule", *arguments]
        return workspace.start(command, KUBECONFIG=str(cluster.kubeconfig)).wait()

    pipeline = ("--pipeline", "pipelines.agentps_retraining")
    made = schedule("--stack", "k8s", "--cron", "0  3 * * 1", *pipeline, "-c", weekly)
    assert made.exit_code == 0, made.output
    assert "on stack k8s: pipelines.agentps_retraining, cron 0 3 * * 1" in made.output
    ((name, job),) = cluster.cron_jobs.items()
    assert (job["spec"]["schedule"], job["spec"]["concurrencyPolicy"]) == ("0 3 * * 1", "Forbid")
    container = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example/agentps"

    assert schedule("--stack", "k8s", "--cron", "0 4 * * 1", *pipeline, "-c", weekly).exit_code == 0
    assert {name: job["spec"]["schedule"] for name, job in cluster.cron_jobs.items()} == {name: "0 4 * * 1"}

    # what it runs cannot be changed in place: the old one goes before the new one comes
    assert schedule("--stack", "k8s", "--cron", "0 4 * * 1", *pipeline, "-c", other).exit_code == 0
    assert cluster.schedules == ["0 4 * * 1"]
    assert name not in cluster.cron_jobs

    assert "cron 0 4 * * 1" in schedule("--stack", "k8s", "--show").output
    assert "the schedule is removed" in schedule("--stack", "k8s", "--remove").output
    assert cluster.cron_jobs == {}
    assert "there was no schedule on stack k8s" in schedule("--stack", "k8s", "--remove").output


def test_a_stack_without_schedules_or_of_no_name_is_refused(workspace: Workspace) -> None:
    def refused(stack: str) -> str:
        outcome = workspace.start([program("agentps"), "schedule", "--stack", stack, "--cron", "0 3 * * *"]).wait()
        assert outcome.exit_code == 1
        return outcome.output

    assert "stack default: its orchestrator, of flavor local, runs no schedules" in refused("default")
    assert "there is no ZenML stack 'nowhere'" in refused("nowhere")


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
