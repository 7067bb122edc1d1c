"""Broken input ends the command with one message, an exit code, and nothing registered."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from tests.pipelines.workspace import STEPS, Workspace

pytestmark = pytest.mark.pipeline

EXAMPLE = "examples/custom_task"
#: The entry point of the `zenml` command, several times in one process: most of a run's time is imports.
_SEVERAL = """
import sys
from zenml.cli.cli import cli
for config in sys.argv[1:]:
    try:
        cli.main(["pipeline", "run", "agentps_training", "-c", config], prog_name="zenml")
    except SystemExit as end:
        print(f"\\n--- {config} ended with {end.code} ---", flush=True)
"""


def _told_once(output: str, message: str) -> None:
    """The last thing printed is the message, which stands there once and without a traceback."""
    assert "Traceback" not in output, output
    assert output.count("Error: ") == 1, output
    told = output[output.index("Error: ") :]
    assert re.search(message, told), f"expected {message!r}, found:\n{output}"


def test_every_fault_is_one_message_with_file_row_or_key_and_remedy(workspace: Workspace) -> None:
    models = workspace.rows("mlflow.db", "registered_models")
    workspace.python(f"{EXAMPLE}/make_posts.py", "faulty")
    folder = workspace.root / "faulty"
    posts = [json.loads(line) for line in (folder / "posts.jsonl").read_text(encoding="utf-8").splitlines()]
    task_file = workspace.root / EXAMPLE / "task.yaml"
    task = task_file.read_text(encoding="utf-8")
    (workspace.root / "typo.yaml").write_text(task.replace("rule:", "rul:", 1), encoding="utf-8")
    (workspace.root / "clash.yaml").write_text(task.replace("id: price_tag", "id: label"), encoding="utf-8")

    def manifest(name: str, rows: list[dict[str, Any]]) -> str:
        (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        return f"faulty/{name}"

    negative = [post | {"label": 0} for post in posts]
    strange = [post | {"backdrop": "moon"} if k < 10 else post for k, post in enumerate(posts)]
    (folder / "broken.jsonl").write_text(json.dumps(posts[0]) + "\n{'post_id': 1}\n", encoding="utf-8")
    own = {"task": f"{EXAMPLE}/task.yaml"}
    # config, the message that it must end in
    faults = {
        "unknown": ({"post": "a.jsonl"}, r"config unknown\.yaml: post: unknown key: remove it or correct its name"),
        "section": ({"fine_tune": {"epoch": 3}}, r"config section\.yaml: fine_tune\.epoch: unknown key"),
        "type": ({"seed": "one"}, r"config type\.yaml: seed: .*integer.*found 'one'"),
        "task": ({"task": "typo.yaml"}, r"task typo\.yaml: questions\.1\.rul: unknown key: remove it or correct"),
        "id": ({"task": "clash.yaml"}, r"task clash\.yaml: .*'label' is the name of another column: rename"),
        "missing": (
            {"posts": "my/posts.jsonl"},
            r"manifest .*/my/posts\.jsonl: no such file; give the path, or the URL",
        ),
        "json": (own | {"posts": "faulty/broken.jsonl"}, r"broken\.jsonl:2: not JSON: .*correct or remove the line"),
        "rejects": (
            own | {"posts": manifest("strange.jsonl", strange), "ingest": {"max_reject_share": 0.05}},
            r"strange\.jsonl: 10 of 160 posts are rejected, 5\.0% at most .*row 1 \(listing-000\): backdrop: 'moon'; .*"
            r"Correct these rows, or raise ingest\.max_reject_share",
        ),
        "down": (
            {"sample": {"train": 40, "val": 20, "test": 20}, "annotator": "openai"},
            r"annotator openai:gpt-4o at http://127\.0\.0\.1:9/v1/: .*check that the endpoint runs",
        ),
        "positives": (own | {"posts": manifest("negative.jsonl", negative)}, r"positive.*test"),
    }
    configs = [workspace.config(f"{name}.yaml", config) for name, (config, _) in faults.items()]

    command = [sys.executable, "-c", _SEVERAL, *configs]
    nobody = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "none"}
    output = workspace.start(command, **nobody).wait().output

    parts = re.split(r"^--- (\w+)\.yaml ended with (\d+) ---$", output, flags=re.MULTILINE)
    ended = dict(zip(parts[1::3], zip(parts[0::3], parts[2::3], strict=False), strict=True))
    assert list(ended) == list(faults)
    for name, (_, message) in faults.items():
        said, exit_code = ended[name]
        assert exit_code == "1", said
        _told_once(said, f"(?s){message}")
    down = ended["down"][0]
    assert "Step annotate failed." in down
    assert re.findall(r"^Step `?(\w+)`? has finished in", down, re.MULTILINE) == ["ingest"]
    assert not set(STEPS[3:]) & set(re.findall(r"Step `?(\w+)`? has started", output)), "stopped before preprocess"
    assert workspace.rows("mlflow.db", "registered_models") == models
