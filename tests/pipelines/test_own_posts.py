"""The literal command with the profile for one's own posts: a backbone is made of them, and a version scores alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.pipelines.workspace import Workspace

pytestmark = pytest.mark.pipeline

TASK = """\
name: mugs
version: 1
questions:
  - {id: red, ask: 'Is any mug of these pictures red?', annotate: 'Is any mug red?', answer: class}
final: {ask: 'Should a moderator look at it?', classes: [pass, look], positive: look}
"""


def write(folder: Path) -> None:
    """120 albums of one or two pictures, every other one red."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(120):
        colour = (200, 40, 40) if number % 2 else (40, 60, 200)
        names = [f"{number}-{k}.png" for k in range(1 + number % 3 % 2)]
        for name in names:
            pixels = rng.normal(0, 20, (80, 96, 3)) + colour
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        labels = {"label": number % 2, "red": number % 2}
        rows.append({"post_id": f"m{number}", "images": names, "title": f"mug number {number}"} | labels)
    (folder / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "task.yaml").write_text(TASK, encoding="utf-8")


def test_the_backbone_is_made_of_the_posts_and_its_version_needs_nothing_else(workspace: Workspace) -> None:
    folder = workspace.home / "mugs"
    write(folder)
    options = yaml.safe_load((workspace.root / "configs" / "own-posts.yaml").read_text(encoding="utf-8"))
    options |= {
        "posts": str(folder / "posts.jsonl"),
        "task": str(folder / "task.yaml"),
        "fine_tune": options["fine_tune"] | {"epochs": 4},
        "ingest": {"val_share": 0.2},
        "evaluate": {"bootstrap": 20, "examples": 1},
        "promote": {"floor": 0.0, "guessing": 1.0},
    }
    run = workspace.train(workspace.config("own.yaml", options))
    assert run.exit_code == 0, run.output
    assert "it is for trying the pipeline and a baseline to beat" in run.output
    assert "The next profile is configs/smolvlm2-256m.yaml" in run.output

    predictions = workspace.table("evaluate", "predictions").set_index("post_id")
    posts = workspace.table("ingest", "posts").set_index("post_id").loc[predictions.index]
    assert (
        predictions.loc[predictions["label"] == 1, "score"].min()
        > predictions.loc[predictions["label"] == 0, "score"].max()
    ), "red and blue are told apart"
    paths = posts[["title", "text"]].assign(
        images=[[str(folder / name) for name in names] for names in posts["images"]]
    )
    scored = workspace.score("models:/agentps-mugs@challenger", paths)
    np.testing.assert_allclose(scored["score"], predictions["score"], rtol=0, atol=1e-5)
