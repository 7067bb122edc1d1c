"""A user's own posts and policy: the example of `examples/custom_task/`, and a policy without questions."""

from __future__ import annotations

import json
import re
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from model.schema import IMAGES, POST_ID, ROOT, SPLIT, TEST
from model.task import load_task
from scoring.store import Store
from steps.paths import REPOSITORY
from tests.pipelines.workspace import STEPS, ZENML, Workspace

pytestmark = pytest.mark.pipeline

EXAMPLE = "examples/custom_task"


def test_two_lines_of_config_train_the_example_with_its_three_class_question(workspace: Workspace) -> None:
    workspace.python(f"{EXAMPLE}/make_posts.py", ".agentps/custom_task")
    config = yaml.safe_load((workspace.root / EXAMPLE / "config.yaml").read_text(encoding="utf-8"))
    assert list(config) == ["posts", "task"]

    run = workspace.train(f"{EXAMPLE}/config.yaml")

    assert run.exit_code == 0, run.output
    assert run.finished == list(STEPS)
    assert "HTTP Request" not in run.output, "a line a request hides what matters"
    assert workspace.aliases("agentps-listings")["challenger"] == "1"
    labels = workspace.table("annotate", "labels")
    assert set(labels["label_source"]) == {"human"}
    assert set(labels["backdrop"]) == {0, 1, 2}

    posts = workspace.table("ingest", "posts").set_index(POST_ID)
    posts = posts[posts[SPLIT] == TEST]
    posts[IMAGES] = [[f"{root}/{name}" for name in names] for root, names in posts[[ROOT, IMAGES]].to_numpy()]
    scored = workspace.score("models:/agentps-listings@challenger", posts)
    assert set(scored["answer_backdrop"]) <= {"studio", "room", "outdoors"}
    assert scored["probability_backdrop"].between(1 / 3, 1).all(), "the most probable of three"
    assert set(scored["answer_price_tag"]) <= {"no", "yes"}
    assert scored["error"].isna().all()
    # a fresh process gives the scores that evaluate had from the shards
    predictions = workspace.table("evaluate", "predictions").set_index(POST_ID).loc[posts.index]
    np.testing.assert_allclose(scored["score"], predictions["score"], rtol=0, atol=1e-5)
    answers = ["probability_price_tag", "probability_shows_title"]
    np.testing.assert_allclose(scored[answers], predictions[answers], rtol=0, atol=1e-5)
    _scores_in_a_batch(workspace)


def _scores_in_a_batch(workspace: Workspace) -> None:
    """The commands of docs/batch-scoring.md: the records of the trained posts have the scores of evaluation."""
    page = (REPOSITORY / "docs" / "batch-scoring.md").read_text(encoding="utf-8")
    shown, command = re.findall(r"```\w+\n(.*?)```", page, re.DOTALL)[:2]
    assert command.split()[:2] == ["zenml", "pipeline"]
    options = yaml.safe_load(shown)
    options["scoring"] |= {"posts": ".agentps/custom_task/posts.jsonl", "version": "1"}
    workspace.config("score.yaml", options | {"task": f"{EXAMPLE}/task.yaml"})
    for _ in range(2):
        run = workspace.start([str(ZENML), *command.split()[1:]]).wait()
        assert run.exit_code == 0, run.output
        assert "agentps-listings version 1: " in run.output
        assert ", 0 could not be scored, 0 rows rejected" in run.output
    assert "all of these posts were scored before" in run.output
    records = pd.read_parquet(workspace.root / "scores").set_index(POST_ID)
    posts, predictions = (workspace.table(*place) for place in (("ingest", "posts"), ("evaluate", "predictions")))
    assert sorted(records.index) == sorted(posts[POST_ID])
    found = records.loc[predictions[POST_ID], "score"]
    np.testing.assert_allclose(found, predictions["score"], rtol=0, atol=1e-6)
    # the small door to the same code: the same scores to the last bit, in the store
    workspace.python(
        "-c", "from cli.main import main; main()", "score", "--posts", options["scoring"]["posts"], "-c", "score.yaml"
    )
    with Store.open(f"sqlite:///{workspace.home}/scores.db") as store:
        kept = {post_id: said[0].score for post_id, said in store.current(records.index).items()}
    assert kept == records["score"].to_dict()


def test_a_task_without_questions_trains_on_what_is_left_of_a_damaged_manifest(workspace: Workspace) -> None:
    workspace.python(f"{EXAMPLE}/make_posts.py", "damaged")
    folder = workspace.root / "damaged"
    good = (folder / "posts.jsonl").read_text(encoding="utf-8").splitlines()
    jpeg = (folder / "images" / "000-0.jpg").read_bytes()
    bomb = BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    files = {
        "bomb.png": bomb.getvalue(),
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.jpg": b"",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>',
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    # post_id, the columns that make it bad, what the reason must name
    bad = [
        ("bomb", {"images": ["bomb.png"]}, "200 megapixels"),
        ("cut", {"images": ["cut.jpg"]}, "cut.jpg"),
        ("empty", {"images": ["empty.jpg"]}, "empty.jpg"),
        ("svg", {"images": ["drawing.png"]}, "drawing.png"),
        ("gone", {"images": ["gone.jpg"]}, "gone.jpg"),
        ("outside", {"images": ["../../etc/passwd"]}, "outside the manifest's folder"),
        ("none", {"images": []}, "images: []"),
        ("label", {"label": 7}, "label: 7"),
        ("listing-000", {}, "already the post of row 1"),
    ]
    rows: list[dict[str, Any]] = [
        {"post_id": post_id, "images": ["images/000-0.jpg"]} | columns for post_id, columns, _ in bad
    ]
    (folder / "posts.jsonl").write_text("\n".join([*good, *map(json.dumps, rows)]) + "\n", encoding="utf-8")
    task = yaml.safe_load((workspace.root / EXAMPLE / "task.yaml").read_text(encoding="utf-8"))
    workspace.config("bare-task.yaml", {"name": "bare", "version": 1, "final": task["final"]})
    assert load_task(workspace.root / "bare-task.yaml").questions == ()
    config = {"posts": "damaged/posts.jsonl", "task": "bare-task.yaml", "ingest": {"max_reject_share": 0.1}}

    run = workspace.train(workspace.config("bare.yaml", config | {"fine_tune": {"epochs": 1}}))

    assert run.exit_code == 0, run.output
    assert workspace.versions("agentps-bare") == 1
    rejects = workspace.table("ingest", "rejects")
    assert rejects["row"].tolist() == list(range(161, 161 + len(bad)))
    assert rejects["post_id"].tolist() == [post_id for post_id, _, _ in bad]
    for reason, (post_id, _, named) in zip(rejects["reason"], bad, strict=True):
        assert named in reason, f"{post_id}: {reason}"
