from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import ExecutionMode

from infra.schedule.failed_run import find
from infra.schedule.machine import install
from infra.schedule.run import run_due
from model.errors import AgentPSError
from pipelines.config import load_notify
from steps.notify import send
from steps.paths import REPOSITORY
from steps.settings import NotifySettings
from tests.infra.schedule.stand_ins import Machine, at, job


class Hook(HTTPServer):
    """Keeps what is posted to it, and answers `status`."""

    def __init__(self, status: int) -> None:
        received: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.headers["Content-Type"], json.loads(body)))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.received = received
        self.url = f"http://127.0.0.1:{self.server_port}/services/secret"


@pytest.fixture
def hook() -> Iterator[Callable[[int], Hook]]:
    running: list[Hook] = []

    def start(status: int = 200) -> Hook:
        server = Hook(status)
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


FAILS = (
    'echo "Step annotate failed."; echo; echo "Error: annotator openai:gpt-4o: no answer:"; echo " check it"; exit 3'
)


def failing(machine: Machine, tmp_path: Path, **notify: str) -> None:
    machine.with_cron()
    machine.zenml(FAILS)
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"posts": "gone.jsonl", "notify": notify}))
    install(job(config=config, notify=load_notify(config)), machine.home, at(23, 12))


def test_a_failed_run_reaches_the_webhook_and_the_command_in_one_line(
    machine: Machine, tmp_path: Path, hook: Callable[..., Hook]
) -> None:
    server, told = hook(), tmp_path / "told"
    machine.script("tell", f'echo "$1" > "{told}"; cat >> "{told}"')
    failing(machine, tmp_path, webhook=server.url, command=f"'{machine.bin}/tell' 'two words'")
    machine.script("python", 'echo \'{"run": "agentps_training-7", "step": "annotate"}\'')
    outcome = run_due(machine.home, at(24, 3))
    assert (outcome.code, outcome.undelivered) == (3, [])
    ((kind, body),) = server.received
    assert kind == "application/json"
    assert set(body) == {"text"}
    assert (
        "agentps_training failed: run agentps_training-7, step annotate: "
        "annotator openai:gpt-4o: no answer: check it (exit code 3, log " in body["text"]
    )
    assert told.read_text() == f"two words\n{body['text']}\n"
    assert outcome.line == body["text"]
    assert machine.logs[0].endswith(f"agentps: {body['text']}\n")


@pytest.mark.parametrize("status", [None, 404])
def test_a_notice_that_cannot_be_delivered_is_logged_and_the_runs_own_code_stays(
    machine: Machine, tmp_path: Path, hook: Callable[..., Hook], status: int | None
) -> None:
    url = "http://127.0.0.1:9/services/secret" if status is None else hook(status).url
    failing(machine, tmp_path, webhook=url, command=str(tmp_path / "nowhere"))
    outcome = run_due(machine.home, at(24, 3))
    assert outcome.code == 3
    assert len(outcome.undelivered) == 2
    assert outcome.undelivered[0].startswith("the notice was not delivered: webhook: ")
    assert "No such file" in outcome.undelivered[1]
    assert "secret" not in "".join(outcome.undelivered), "logs are shown to others"
    assert machine.logs[0].splitlines()[-2:] == [f"agentps: {text}" for text in outcome.undelivered]
    assert "no run was made: annotator openai:gpt-4o: no answer: check it" in outcome.line


def test_one_of_two_ways_that_fails_does_not_stop_the_other(tmp_path: Path, machine: Machine) -> None:
    machine.script("tell", f'cat > "{tmp_path / "told"}"; echo no >&2; exit 4')
    command = str(machine.bin / "tell")
    undelivered = send("a line", NotifySettings(webhook="http://127.0.0.1:9/", command=command))
    assert (tmp_path / "told").read_text() == "a line\n"
    assert undelivered[1] == f"the notice was not delivered: command {command}: exit code 4: no"


def test_a_config_that_can_no_longer_be_read_is_told_of_where_it_used_to_say(machine: Machine, tmp_path: Path) -> None:
    told = tmp_path / "told"
    machine.script("tell", f'cat > "{told}"')
    failing(machine, tmp_path, command=str(machine.bin / "tell"))
    (tmp_path / "mine.yaml").write_text("posts: [")
    assert run_due(machine.home, at(24, 3)).code == 3
    assert "agentps_training failed" in told.read_text()


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [("kill -9 $$", 137, "ended by SIGKILL"), (None, 127, "No such file or directory")],
)
def test_a_run_that_was_killed_or_could_not_start_is_a_failed_run(
    machine: Machine, tmp_path: Path, body: str | None, code: int, reason: str
) -> None:
    told = tmp_path / "told"
    machine.script("tell", f'cat > "{told}"')
    failing(machine, tmp_path, command=str(machine.bin / "tell"))
    if body is None:
        (machine.bin / "zenml").unlink()
    else:
        machine.zenml(body)
    assert run_due(machine.home, at(24, 3)).code == code
    assert reason in told.read_text()
    assert told.read_text().count("\n") == 1


def test_a_long_reason_is_cut(machine: Machine, tmp_path: Path) -> None:
    failing(machine, tmp_path)
    machine.zenml("printf 'x%.0s' $(seq 9000); exit 1")
    assert "x" * 499 + "… (exit code 1" in run_due(machine.home, at(24, 3)).line


@step(enable_cache=False)
def breaks() -> None:
    raise AgentPSError("posts.jsonl:3: no title: write one")


@pipeline(name="broken", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)  # as ours have it
def broken() -> None:
    breaks()


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning:zenml")  # it reads a field that it deprecated
def test_zenml_knows_the_run_the_step_and_the_reason(own_zenml: Client) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    assert find("broken", before) == {}, "a pipeline that never ran"
    with pytest.raises(AgentPSError):
        broken()
    found = find("broken", before)
    assert found["run"].startswith("broken-")
    assert (found["step"], found["reason"]) == ("breaks", "posts.jsonl:3: no title: write one")
    assert find("broken", datetime.now(UTC) + timedelta(seconds=2)) == {}, "only the run that was started"


def test_neither_zenml_nor_torch_is_imported_for_a_look_at_the_clock() -> None:
    code = (
        "import sys, infra.schedule.run, infra.schedule.failed_run\n"
        "sys.exit(bool({'zenml', 'torch', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
