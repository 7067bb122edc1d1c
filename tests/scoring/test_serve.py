"""The service as people run it: `agentps serve` on Ray Serve, with real processes, ports and signals."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import httpx2
import psutil
import pytest
from click.testing import CliRunner

from cli.main import main
from model.settings import BackboneSettings
from steps.register import registry
from tests.support.service import data_url, post
from tests.support.tiny import write_images
from tests.support.versions import point, register_versions, registry_in

NAME = "agentps-ucc"
#: Seconds. Ray starts in 12 on an idle machine.
LONG = 300


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port: int = tried.getsockname()[1]
        return port


def until(true: Callable[[], object], what: Callable[[], str] = str) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


@contextmanager
def running(home: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str, Callable[[], str]]]:
    """`agentps serve` once it takes posts: the process, its address, what it has said."""
    port = free_port()
    log = home / "said.log"
    command = [sys.executable, "-c", "from cli.main import main; main()", "serve", "--port", str(port), *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"AGENTPS_HOME": str(home)})
    try:
        until(lambda: b"takes posts" in log.read_bytes() or process.poll() is not None, log.read_text)
        assert process.poll() is None, log.read_text()
        yield process, f"http://127.0.0.1:{port}", log.read_text
    finally:
        process.kill()
        process.wait()
        until(lambda: is_free(port), lambda: f"port {port} is still listened to")


def is_free(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def family(root: int) -> list[psutil.Process]:
    """The process and its descendants."""
    process = psutil.Process(root)
    return [process, *process.children(recursive=True)]


def listeners(root: int) -> set[tuple[str, int]]:
    """The addresses to which the process and its descendants listen."""
    found = set()
    for process in family(root):
        with suppress(psutil.NoSuchProcess):  # it has ended since
            found |= {each.laddr for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    return found


def ready(client: httpx2.Client) -> dict[str, object]:
    answer = client.get("/ready")
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


def assert_asks_for_the_token(port: int) -> None:
    """It unpickles what it is sent: who has no token must not come so far."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.pipeline
def test_the_service_scores_swaps_and_drains(
    empty_database: Path, tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    config = tmp_path / "run.yaml"
    config.write_text("service: {poll: 0.2}\n")
    images = [data_url(path.read_bytes()) for path in write_images(tmp_path, 3)]
    with registry_in(tmp_path):
        register_versions(tmp_path, tiny_backbone, NAME, 2)
        with running(tmp_path, "--config", str(config)) as (process, url, said):
            for fixed in (30_000, 8_500):
                assert ("127.0.0.1", fixed) not in listeners(process.pid), "two services of one user would share it"
            for address, port in listeners(process.pid):
                if "127.0.0.1" not in address:  # Ray Serve's ports between its own processes
                    assert_asks_for_the_token(port)
            answers: list[httpx2.Response] = []
            stop = threading.Event()

            def send(client: httpx2.Client) -> None:
                while not stop.is_set():
                    body = {"posts": [post(str(k), images=images) for k in range(5)]}
                    answers.append(client.post("/score", json=body))

            with httpx2.Client(base_url=url, timeout=LONG) as client:
                senders = [threading.Thread(target=send, args=(client,)) for _ in range(3)]
                for sender in senders:
                    sender.start()
                for version in ("2", "1"):
                    point(NAME, registry.CHAMPION, version)
                    until(lambda wanted=version: ready(client)["version"] == wanted, said)
                    until(lambda wanted=version: f"{NAME}: version {wanted} serves" in said(), said)
                count = len(answers)
                until(lambda: len(answers) > count + 3)
                stop.set()
                for sender in senders:
                    sender.join()
                assert {answer.status_code for answer in answers} == {200}
                records = [answer.json()["records"] for answer in answers]
                assert {record["model_version"] for each in records for record in each} == {"1", "2"}
                assert all([record["post_id"] for record in each] == list("01234") for each in records)

                next(each for each in family(process.pid) if "agentps:model" in each.cmdline()[0]).kill()

                def scored() -> bool:
                    answer = client.post("/score", json={"posts": [post("again", images=images)]})
                    assert answer.status_code == 200 or "Retry-After" in answer.headers, answer.text
                    return answer.status_code == 200

                until(scored)

                last = threading.Thread(target=lambda: answers.append(client.post("/score", json=large)))
                large = {"posts": [post(str(k), images=images * 10) for k in range(64)]}
                last.start()
                until(lambda: ready(client)["queued_posts"] == 64)
                process.send_signal(signal.SIGTERM)
                last.join()
                assert answers[-1].status_code == 200
                assert len(answers[-1].json()["records"]) == 64
            assert process.wait(LONG) == 0, said()
            assert "(raylet)" not in said().partition("\nEnding: ")[2]


def test_an_address_that_is_taken_is_one_message(agentps_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(main, ["serve", "--port", port])
    assert result.exit_code == 1
    assert f"127.0.0.1 port {port} cannot be listened to (Address already in use): name a free one" in result.output
