"""The literal command on a manifest of videos: trained, gated and scored; broken files are rejected by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.model.test_video import BROKEN
from tests.pipelines.workspace import STEPS, Workspace
from tests.support.clips import clip

pytestmark = pytest.mark.pipeline


def write(folder: Path) -> None:
    """120 short clips, of which every other one shows a bright disc that moves; and all kinds of broken and hostile
    files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :96]
    rows = []
    for number in range(120):
        content = []
        for k in range(24):
            pixels = np.full((64, 96, 3), rng.integers(20, 90), dtype=np.uint8)
            if number % 2:
                pixels[(x - 20 - 2 * k) ** 2 + (y - 32) ** 2 < 200] = (250, 240, 120)
            content.append(pixels)
        (folder / f"{number:03d}.mp4").write_bytes(clip(24, content=content))
        labels = {"label": number % 2, "disc": number % 2}
        rows.append({"post_id": f"v{number}", "video": f"{number:03d}.mp4", "title": "a clip"} | labels)
    for name, (make, _) in BROKEN.items():
        (folder / f"{name}.mp4").write_bytes(make())
    rows += [{"post_id": name, "video": f"{name}.mp4"} for name in (*BROKEN, "none")]
    (folder / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


TASK = """\
name: discs
version: 1
questions:
  - {id: disc, ask: 'Any disc?', annotate: 'Is there a disc?', answer: class}
final: {ask: 'Is it good?', classes: [bad, good], positive: good}
"""


def test_videos_are_trained_on_and_scored_and_broken_ones_are_named(workspace: Workspace) -> None:
    folder = workspace.home / "videos"
    write(folder)
    (folder / "task.yaml").write_text(TASK, encoding="utf-8")
    options = {
        "posts": str(folder / "posts.jsonl"),
        "task": str(folder / "task.yaml"),
        "ingest": {"max_reject_share": 0.2, "val_share": 0.2, "max_image_pixels": 4_000_000},
        "fine_tune": {"epochs": 2},
        "evaluate": {"bootstrap": 20, "examples": 1},
        "promote": {"floor": 0.0, "guessing": 1.0},
    }
    config = workspace.config("videos.yaml", options)
    run = workspace.train(config)
    assert run.exit_code == 0, run.output
    assert run.finished == list(STEPS)
    rejects = workspace.table("ingest", "rejects").set_index("post_id")["reason"]
    assert len(BROKEN) >= 10
    assert set(rejects.index) == {*BROKEN, "none"}
    for name, (_, expected) in BROKEN.items():
        start, reason = f"video {name}.mp4: ", rejects[name]
        assert reason.startswith(start)
        assert re.search(expected, reason.removeprefix(start))
    assert rejects["none"] == "video none.mp4: no such file"
    posts = workspace.table("ingest", "posts")
    assert posts["images"].map(len).eq(16).all()

    again = workspace.train(config)
    assert "ingest" in again.cached, again.output

    test = posts[posts["split"] == "test"].set_index("post_id")
    none = [[] for _ in range(len(test))]
    paths = test[["title", "text"]].assign(images=none, video=[str(folder / name) for name in test["video"]])
    scored = workspace.score("models:/agentps-discs@challenger", paths)
    assert scored["error"].isna().all(), scored["error"].tolist()
    predictions = workspace.table("evaluate", "predictions").set_index("post_id").loc[test.index]
    np.testing.assert_allclose(scored["score"], predictions["score"], rtol=0, atol=1e-5)
