"""The image as a cluster runs it: `AGENTPS_IMAGE=agentps pytest -m team tests/infra/team/test_image.py`, as root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steps.paths import REPOSITORY

IMAGE = os.environ.get("AGENTPS_IMAGE", "")
pytestmark = [
    pytest.mark.team,
    pytest.mark.skipif(not IMAGE or shutil.which("buildah") is None, reason="AGENTPS_IMAGE names no image of buildah"),
]
RUN = """\
sample: {train: 200, val: 80, test: 120, difficulty: easy}
fine_tune: {epochs: 1}
evaluate: {bootstrap: 20}
promote: {floor: 0.0, guessing: 1.0, bootstrap: 100}
"""


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """What is mounted as /state."""
    folder = Path(tempfile.mkdtemp(prefix="agentps-image-", dir="/var/tmp"))
    folder.chmod(0o1777)
    if (made := REPOSITORY / ".agentps" / "backbones").is_dir():  # to make one takes minutes
        shutil.copytree(made, folder / "agentps" / "backbones")
        for path in (folder / "agentps").rglob("*"):
            path.chmod(0o666 if path.is_file() else 0o777)
        (folder / "agentps").chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def _command(state: Path, *words: str) -> list[str]:
    return [str(REPOSITORY / "infra/image/run.sh"), IMAGE, str(state), *words]


def _in_image(state: Path, script: str) -> str:
    done = subprocess.run(
        _command(state, "sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def _inspected() -> Any:
    inspect = ["buildah", "inspect", "--type", "image", IMAGE]
    return json.loads(subprocess.run(inspect, stdout=subprocess.PIPE, text=True, check=True).stdout)


def test_it_runs_as_a_user_of_a_high_id_who_can_change_nothing_of_the_image(state: Path) -> None:
    found = _in_image(
        state, "id -u; touch /agentps/x /x 2>&1 | grep -c Read-only; touch /state/x /tmp/x && echo written"
    )
    assert found.split() == ["1000700000", "2", "written"]


def test_it_holds_the_code_and_nothing_else_of_the_folder_it_was_made_in(state: Path) -> None:
    paths = _in_image(state, "cd /agentps && find . -type f -not -path './.venv/*' -not -name '*.pyc'").split()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.splitlines()
    beside = {path for path in paths if path.removeprefix("./") not in tracked and ".egg-info/" not in path}
    assert beside == set()


def test_it_has_a_health_check_and_no_tool_of_developers(state: Path) -> None:
    check = _inspected()["Docker"]["config"]["Healthcheck"]
    assert "http://127.0.0.1:8000/healthz" in " ".join(check["Test"])
    there, gone = ["torch", "ray", "psycopg", "s3fs"], ["pytest", "mypy", "playwright", "mkdocs", "kubernetes_validate"]
    script = f"from importlib.util import find_spec; print([name for name in {there + gone} if find_spec(name)])"
    assert _in_image(state, f'python -c "{script}"').strip() == str(there)


def test_no_layer_and_no_line_of_its_history_holds_a_password(state: Path) -> None:
    config = _inspected()["OCIv1"]
    words = json.dumps([config["config"], config["history"]]).lower()
    assert not [word for word in ("password", "secret", "_key=", "token=", "@") if word in words]
    assert config["config"]["User"] == "10001"
    assert _in_image(state, "find / -xdev -name '*.env' -o -name '.netrc' -o -name 'pip.conf' 2>/dev/null; true") == ""


def test_the_main_job_and_the_service_run_in_it(state: Path) -> None:
    (state / "run.yaml").write_text(RUN)
    _in_image(state, "python -m infra.local_stack && zenml pipeline run agentps_training -c run.yaml")
    service = subprocess.Popen(_command(state, "agentps", "serve", "--port", "18765"), start_new_session=True)
    try:
        end = time.monotonic() + 600
        while True:
            try:
                with urllib.request.urlopen("http://127.0.0.1:18765/ready", timeout=10) as answer:
                    assert json.loads(answer.read())["version"] == "1"
                    break
            except OSError:
                assert service.poll() is None
                assert time.monotonic() < end
                time.sleep(1)
    finally:
        os.killpg(service.pid, 15)
        service.wait(120)
