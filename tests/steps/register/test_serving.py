"""A version that strangers send posts to: what it reads of its server, and what it tells."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import mlflow
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server

from model.settings import BackboneSettings
from steps.register import own_code, registry
from steps.register.pyfunc import IMAGE_ROOT
from tests.steps.register.test_registry import NAME, PREDICTIONS, report
from tests.support.posts import ingested
from tests.support.tiny import TASK, train_settings, write_checkpoint, write_images

_START_S = 300


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "open"
    folder.mkdir()
    return [Path(path) for path in write_images(folder, 2)]


def register(folder: Path, backbone: BackboneSettings, picture: Path) -> Path:
    """A version's model directory, as MLflow loads and serves it."""
    checkpoint = write_checkpoint(folder / "checkpoint", backbone, train_settings(variant="agentps_answers"))
    example = pd.DataFrame({"images": [[base64.b64encode(picture.read_bytes()).decode()]]})
    registry.register(checkpoint, report(), PREDICTIONS, TASK, example, name=NAME, tags={})
    return Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1", dst_path=str(folder / "version")))


class Server:
    """`ask` sends records as JSON, and gives the status and the whole answer."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, rows: list[dict[str, Any]]) -> tuple[int, str]:
        body = json.dumps({"dataframe_records": rows}).encode()
        request = Request(f"{self._url}/invocations", body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=_START_S) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def served(tracking: Path, tiny_backbone: BackboneSettings, pictures: list[Path]) -> Iterator[Server]:
    """`mlflow models serve` of a version, whose operator opened the pictures' folder."""
    version = register(tracking, tiny_backbone, pictures[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(version), "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    environment = os.environ | {IMAGE_ROOT: str(pictures[0].parent), "PATH": path}
    with (tracking / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=tracking, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
        while True:
            try:
                with urlopen(f"{url}/ping", timeout=5):
                    break
            except (URLError, OSError):
                assert server.poll() is None, (tracking / "server.log").read_text()
                assert time.monotonic() < deadline, (tracking / "server.log").read_text()
                time.sleep(0.2)
        yield Server(url)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def test_a_server_reads_only_what_its_operator_opened_and_tells_nothing_of_the_rest(
    served: Server, pictures: list[Path], tmp_path: Path
) -> None:
    folder, secret = pictures[0].parent, tmp_path / "secret.txt"
    secret.write_text("s3cr3t of the server")
    shutil.copy(pictures[0], tmp_path / "outside.png")
    (folder / "link").symlink_to(secret)
    (folder / "notes.txt").write_text("s3cr3t inside")
    data = base64.b64encode(pictures[0].read_bytes()).decode()
    paths = [
        str(secret), str(tmp_path / "none"), str(tmp_path / "outside.png"), "/etc/shadow", "/proc/self/environ",
        f"{folder}/../secret.txt", f"{folder}/link", "link", "../outside.png",
    ]  # fmt: skip
    good = [[data], [f"data:image/png;base64,{data}"], [str(pictures[0])], [pictures[0].name]]
    # A folder of the sender's choice is no column that is read.
    chosen = {"images": ["outside.png"], "root": str(tmp_path)}
    rows = [{"images": album} for album in good] + [chosen] + [{"images": [path]} for path in [*paths, "notes.txt"]]
    status, text = served.ask(rows)
    assert status == 200, text
    found = json.loads(text)["predictions"]
    assert len({row["score"] for row in found[:4]}) == 1
    assert [row["error"] for row in found[:4]] == [None] * 4
    assert "no such file" in found[4]["error"]
    said = {row["error"].partition("': ")[2] for row in found[5:-1]}
    assert len(said) == 1, said
    assert f"lies outside of the folder that is open to paths ({IMAGE_ROOT}" in said.pop()
    assert found[-1]["error"].endswith("'notes.txt': not a JPEG, PNG or WebP image")
    assert "s3cr3t" not in text
    assert "Traceback" not in text
    assert str(folder) not in text.replace(json.dumps(str(folder))[1:-1] + "/link", "").replace(f"{folder}/..", "")

    # Whatever else comes: an answer for each post, or MLflow's own refusal of the body.
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    odd = [deep, {}, {"a": 1}, "", 0, 1.5, True, None, ["a"], [["a"]], [None, 3, True, {}], [data] * 10_000]
    rows = [{"images": cell, "title": title, "post_id": deep} for cell in odd for title in (deep, True)]
    status, text = served.ask(rows)
    assert status == 200, text[:2_000]
    found = json.loads(text)["predictions"]
    assert len(found) == 2 * len(odd)
    assert all(row["error"] and len(row["error"]) < 500 for row in found)
    assert "Traceback" not in text


@pytest.fixture
def client(
    tracking: Path, tiny_backbone: BackboneSettings, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> TestClient:
    """The app of `mlflow models serve` in this process, without a folder that is open."""
    monkeypatch.delenv(IMAGE_ROOT)
    version = register(tracking, tiny_backbone, pictures[0])
    return TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(version))))


def test_without_a_folder_that_is_open_every_path_gets_the_same_answer(
    client: TestClient, pictures: list[Path]
) -> None:
    paths = [str(pictures[0]), "/etc/shadow", "/no/such/file", "a.png", "file:///etc/passwd", "http://127.0.0.1/a.png"]
    answer = client.post("/invocations", json={"dataframe_records": [{"images": [path]} for path in paths]})
    assert answer.status_code == 200, answer.text
    said = {row["error"].partition("': ")[2] for row in answer.json()["predictions"]}
    assert len(said) == 1
    assert f"send the picture itself, as base64 text or a data URL ({IMAGE_ROOT}" in said.pop()


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["images", "title", "title"], "data": [[["/a.png"], "a", "b"]]}},
        {"dataframe_records": [{"title": "no images"}]},
        {"dataframe_records": []},
        {"inputs": [["/a.png"]]},
    ],
)
def test_a_body_that_holds_no_table_of_posts_is_refused_without_a_trace(
    body: dict[str, Any], client: TestClient
) -> None:
    answer = client.post("/invocations", json=body)
    assert answer.status_code == 400
    assert "Failed to enforce schema" in answer.text
    assert "Traceback" not in answer.text


def test_the_example_that_a_version_carries_is_a_post_that_anybody_may_send(
    client: TestClient, pictures: list[Path]
) -> None:
    posts = pd.DataFrame({"title": ["a"], "text": ["b"], "images": [list(map(str, pictures))], "split": ["test"]})
    example = registry.example_of(ingested(posts, pictures[0].parent))
    answer = client.post("/invocations", json={"dataframe_split": json.loads(example.to_json(orient="split"))})
    (row,) = answer.json()["predictions"]
    assert row["error"] is None
    assert 0 < row["score"] < 1
    assert len(example.to_json()) < 10_000, "one picture, small, however large the album is"


def test_a_version_of_older_code_which_reads_any_path_is_given_none(
    tracking: Path,
    tiny_backbone: BackboneSettings,
    pictures: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older = tracking / "older" / "model"
    shutil.copytree(own_code.MODEL, older, ignore=shutil.ignore_patterns("__pycache__"))
    text = (older / "scorer.py").read_text()
    for old, new in (
        (", *, image_root: str | None = None", ""),
        ("points, image_root=image_root)", 'points, image_root="/")'),
    ):
        assert old in text
        text = text.replace(old, new)
    (older / "scorer.py").write_text(text)
    monkeypatch.setattr(registry, "MODEL", older)
    model = mlflow.pyfunc.load_model(str(register(tracking, tiny_backbone, pictures[0])))
    data = pictures[0].read_bytes()
    albums = [[str(pictures[0])], [data], [base64.b64encode(data).decode()], None]
    found = model.predict(pd.DataFrame({"images": albums}))
    assert found["error"].notna().tolist() == [True, False, False, True]
