"""Posts to records: one record per post, in order, with the scores of the plain scorer."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from model.checkpoint_info import OperatingPoints, write_operating_points
from model.errors import DataError, ImageError
from model.scorer import Scorer
from model.settings import BackboneSettings, PostLimits
from scoring.score import Input, LocalScore, read_input
from steps.register.registry import RegisteredVersion
from tests.steps.register.test_registry import report
from tests.support.tiny import train_settings, write_checkpoint, write_images

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PICTURES = {"a.png": b"A", "b.png": b"B"}


def read(name: Any) -> bytes:
    if name not in PICTURES:
        raise ImageError("no such file")
    return PICTURES[name]


def test_an_input_has_the_hash_of_what_is_scored() -> None:
    """Title, text and pictures; not of their names, and not of the post's id."""
    post = {"post_id": 7, "title": "t", "text": None, "images": ["a.png", "b.png"], "label": "?"}
    found = read_input(post, read, PostLimits())
    assert found == Input("7", "t", "", (b"A", b"B"))
    assert found.sha256 == Input("other", "t", "", (b"A", b"B")).sha256
    others = [Input("7", "t", "", (b"B", b"A")), Input("7", "", "t", (b"A", b"B")), Input("7", "t", "", (b"AB",))]
    assert len({found.sha256, *(other.sha256 for other in others)}) == 4


@pytest.mark.parametrize(
    ("cells", "error"),
    [
        ({"images": []}, "images: []; a list of one or more images is expected"),
        ({"images": "a.png"}, "images: 'a.png'; a list of one or more images is expected"),
        ({"images": ["a.png", "c.png", "d.png"]}, "image 2: no such file"),
        ({"images": ["a.png"], "title": 3.5}, "title: 3.5; text or null is expected"),
        ({"images": ["c.png"] * 9}, "images: 9 images; at most 8 are read (ingest.max_images)"),
        ({"images": ["c.png"], "text": "x" * 20}, "title and text: 20 characters; at most 10 are read"),
    ],
)
def test_what_is_wrong_with_a_post_is_its_error(cells: dict[str, Any], error: str) -> None:
    found = read_input({"post_id": "a"} | cells, read, PostLimits(max_images=8, max_text_characters=10))
    assert found.error is not None
    assert found.error.startswith(error)
    assert (found.images, found.sha256) == ((), None)


@pytest.mark.parametrize("post_id", [None, "", float("nan"), ["a"], "a\nb"])
def test_a_post_without_an_id_gets_no_record(post_id: Any) -> None:
    with pytest.raises(DataError, match="post_id"):
        read_input({"post_id": post_id, "images": ["a.png"]}, read, PostLimits())


def test_the_records_say_what_the_scorer_says(tmp_path: Path, tiny_backbone: BackboneSettings) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_backbone, train_settings(variant="agentps_answers"))
    operating = OperatingPoints(calibration=report().calibration, thresholds=report().operating_points)
    write_operating_points(checkpoint, operating)
    paths = write_images(tmp_path, 3)
    pictures = [path.read_bytes() for path in paths]
    scorer = Scorer.from_directory(checkpoint)
    score = LocalScore(RegisteredVersion(name="m", version="7", run_id=None, source=None), checkpoint, scorer)
    bad = Input("bad", error="image 1: no such file")
    cut = Input("cut", images=(pictures[0][:50],))
    posts = [Input("a", "a walk", "", (pictures[0],)), bad, cut, Input("b", "", "sea", tuple(pictures))]
    records = score(posts, NOW)
    frame = pd.DataFrame({"title": ["a walk", ""], "text": ["", "sea"], "images": [pictures[:1], pictures]})
    expected = scorer.score(frame)
    assert [record.post_id for record in records] == ["a", "bad", "cut", "b"]
    assert [records[k].score for k in (0, 3)] == expected["score"].tolist()
    assert [records[k].decisions for k in (0, 3)] == [
        {point: bool(expected[f"decision_{point}"][row]) for point in score.points} for row in range(2)
    ]
    for question in score.task.question_ids:
        assert [records[k].answers[question].answer for k in (0, 3)] == expected[f"answer_{question}"].tolist()
    assert records[1].error == "image 1: no such file"
    assert str(records[2].error).startswith("image 1: ")  # without the number of a row that the sender does not know
    assert {record.scored_at for record in records} == {NOW}
