"""The literal `zenml pipeline run pipelines.agentps_retraining -c FILE`: first, idle, stopped by a drift, finished."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from steps.retrain.fresh import cursor_path, read_cursor
from tests.pipelines.workspace import Workspace

pytestmark = pytest.mark.pipeline

MODEL = "agentps-fresh_listings"
STEPS = ["live", "ingest", "annotate", "validate", "preprocess", "drift", "fine_tune", "evaluate", "register",
         "promote", "refit", "advance"]  # fmt: skip
FIRST = 110


# One test: each part goes on from what the one before left, and every start of the command takes seconds.
def test_fresh_posts_are_trained_on_once_and_only_a_run_that_succeeded_moves_the_cursor(
    workspace: Workspace,
) -> None:
    workspace.python("examples/custom_task/make_posts.py", "listings")
    folder = workspace.root / "listings"
    lines = (folder / "posts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "posts.jsonl").unlink()
    (folder / "1.jsonl").write_text("".join(lines[:FIRST]), encoding="utf-8")
    # a task of its own: the workspace is shared, and another test registers versions of the example's
    task = (workspace.root / "examples/custom_task/task.yaml").read_text(encoding="utf-8")
    (workspace.root / "fresh.yaml").write_text(task.replace("name: listings", "name: fresh_listings"), encoding="utf-8")
    options: dict[str, Any] = {
        "posts": "listings",
        "task": "fresh.yaml",
        "ingest": {"val_share": 0.2},
        "fine_tune": {"epochs": 1},
        "evaluate": {"bootstrap": 20, "examples": 1},
        "promote": {"floor": 0.0, "guessing": 1},  # on 24 test posts nothing is better than that
        "retrain": {"min_fresh": 50, "on_drift": "fail"},
    }

    def run(**retrain: Any) -> Any:
        config = options | {"retrain": options["retrain"] | retrain}
        command = workspace.command(workspace.config("retrain.yaml", config), "pipelines.agentps_retraining")
        return workspace.start(command).wait()

    def newest() -> str:
        cursor = read_cursor(cursor_path(workspace.home, MODEL))
        assert cursor is not None
        return cursor.newest.isoformat()

    first = run()
    assert first.exit_code == 0, first.output
    assert sorted(first.finished) == sorted(STEPS)
    page = workspace.home / "reports" / "drift.html"
    assert "There is no champion yet: nothing to compare with." in page.read_text(encoding="utf-8")
    assert workspace.aliases(MODEL) == {"champion": "1", "challenger": "1"}
    assert newest() == json.loads(lines[FIRST - 1])["created_at"]

    # Nothing fresh: no step, no run, no version.
    runs = workspace.rows("mlflow.db", "runs")
    idle = run()
    assert idle.exit_code == 0
    assert idle.output == (
        "agentps_retraining: nothing to retrain on: 0 of 110 posts are fresh newer than "
        f"{newest()}, retrain.min_fresh is 50"
    )
    assert (workspace.versions(MODEL), workspace.rows("mlflow.db", "runs")) == (1, runs)

    # What the champion says of the posts goes to the store, and people's labels of them are live figures from then on.
    labelled = [json.loads(line) for line in lines]
    rows = [json.dumps({"post_id": post["post_id"], "label": post["label"]}) + "\n" for post in labelled]
    (workspace.root / "labels.jsonl").write_text("".join(rows), encoding="utf-8")
    options["retrain"]["labels"] = "labels.jsonl"
    scored = workspace.python(
        "-c", "from cli.main import main; main()", "score", "--posts", "listings", "-c", "retrain.yaml"
    )
    assert f"{MODEL} version 1: {FIRST} posts scored" in scored.output

    # Fresh posts whose texts are much longer: told, and not trained on.
    posts = [json.loads(line) for line in lines[FIRST:]]
    for post in posts:
        post["text"] *= 5
    (folder / "2.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts), encoding="utf-8")
    stopped = run()
    assert stopped.exit_code == 1
    assert f"{MODEL} version 1: {FIRST} of {FIRST} scored posts are labelled; NOTHING is flagged" in stopped.output
    assert "characters of title and text; the page is" in stopped.output
    assert (workspace.versions(MODEL), newest()) == (1, json.loads(lines[FIRST - 1])["created_at"])

    # The same posts once more: trained on from the champion's weights, through the gate, and then old.
    again = run(on_drift="warn")
    assert again.exit_code == 0, again.output
    assert {"ingest", "annotate", "validate", "preprocess"} <= set(again.cached)
    assert re.search(
        r"characters of title and text</td>\s*<td class=\"bad\">drift</td>", page.read_text(encoding="utf-8")
    )
    assert workspace.versions(MODEL) == 2
    assert newest() == posts[-1]["created_at"]
    made = (workspace.home / "artifacts" / "fine_tune" / "checkpoint").glob("**/checkpoint.json")
    starts = {json.loads(path.read_text(encoding="utf-8"))["provenance"].get("start") for path in made}
    assert starts == {None, f"{MODEL} version 1"}
