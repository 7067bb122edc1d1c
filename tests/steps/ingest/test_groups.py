"""steps/ingest/groups.py: posts that share a picture or a text are in one split, and stay there."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from model.errors import ManifestError
from steps.annotate.human import human_labels
from steps.ingest.groups import split_of
from steps.ingest.posts import group_splits, parse_posts, read_manifest
from steps.settings import IngestSettings, load_settings
from steps.validate.expectations import validate_posts
from tests.support.photos import photo
from tests.support.tasks import DEMO as TASK

pytestmark = pytest.mark.usefixtures("agentps_home")

GROUPED = load_settings({"ingest": {"group_by": ["image", "text"]}}).ingest
ALONE = load_settings({}).ingest


def pictures(folder: Path, number: int) -> list[str]:
    """Three files of one picture: as it is, smaller at another quality, and cropped a little."""
    image = photo(number)
    copies = {"a": image, "b": image.resize((160, 120)), "c": image.crop((1, 1, 319, 239))}
    for name, copy in copies.items():
        copy.save(folder / f"{number}{name}.jpg", quality=90 if name == "a" else 60)
    return [f"{number}{name}.jpg" for name in copies]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "posts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def splits(folder: Path, rows: list[dict[str, Any]], settings: IngestSettings = GROUPED) -> dict[str, str]:
    posts = read_manifest(write(folder, rows), TASK, settings).posts
    return dict(zip(posts["post_id"], posts["split"], strict=True))


def in_split(split: str, start: int = 0) -> str:
    """An id whose hash says this split."""
    return next(f"p{n}" for n in range(start, start + 1000) if split_of(f"p{n}", 0.1, 0.2) == split)


@pytest.fixture
def reposts(tmp_path: Path) -> list[dict[str, Any]]:
    """Sixty posts of twenty pictures, each in three files, and of texts that some share."""
    names = [name for number in range(20) for name in pictures(tmp_path, number)]
    return [
        {"post_id": f"p{k}", "images": [name], "title": f"Title {k // 4}", "text": f"words {k}" if k % 4 else "  Same"}
        for k, name in enumerate(names)
    ]


def leaks(posts: pd.DataFrame) -> list[str]:
    settings = load_settings({"validate": {"min_posts": {"train": 0, "val": 0, "test": 0}}}).validate_
    outcome = validate_posts(posts, human_labels(posts, TASK, ["train"]), TASK, settings, max_images=64)
    return [finding.message for finding in outcome.critical + outcome.warnings if "leakage" in finding.rule]


def test_the_remedy_that_validate_names_leaves_no_leak(tmp_path: Path) -> None:
    names = [pictures(tmp_path, number)[0] for number in range(4)]
    rows = [{"post_id": f"p{k}", "images": [names[k % 4]], "title": f"T{k % 3}", "text": "t"} for k in range(60)]
    found = leaks(read_manifest(write(tmp_path, rows), TASK, ALONE).posts)
    assert found
    assert all("`ingest.group_by: [image, text]`" in message for message in found)
    assert leaks(read_manifest(write(tmp_path, rows), TASK, GROUPED).posts) == []


def test_pictures_that_look_alike_are_in_one_split(tmp_path: Path, reposts: list[dict[str, Any]]) -> None:
    found = splits(tmp_path, reposts)
    apart = splits(tmp_path, reposts, ALONE)
    groups = [{found[f"p{3 * k + n}"] for n in range(3)} for k in range(20)]
    assert all(len(group) == 1 for group in groups)
    assert len(set(found.values())) == 3
    assert any(len({apart[f"p{3 * k + n}"] for n in range(3)}) > 1 for k in range(20))


def test_without_group_by_a_split_is_the_hash_of_the_id_and_nothing_is_remembered(
    tmp_path: Path, agentps_home: Path, reposts: list[dict[str, Any]]
) -> None:
    assert splits(tmp_path, reposts, ALONE) == {row["post_id"]: split_of(row["post_id"], 0.1, 0.2) for row in reposts}
    assert not (agentps_home / "splits").exists()


@pytest.mark.parametrize("order", ["appended", "first", "reversed"])
def test_a_post_that_was_in_a_split_stays_as_posts_arrive(
    tmp_path: Path, reposts: list[dict[str, Any]], order: str
) -> None:
    early = [row for k, row in enumerate(reposts) if k % 3]  # one of each picture's three comes later
    late = [row for k, row in enumerate(reposts) if not k % 3]
    before = splits(tmp_path, early)
    rows = {"appended": early + late, "first": late + early, "reversed": [*reversed(early + late)]}[order]
    after = splits(tmp_path, rows)
    assert {post_id: after[post_id] for post_id in before} == before
    assert all(after[f"p{3 * k}"] == after[f"p{3 * k + 1}"] for k in range(20))


def test_appended_posts_move_none_where_nothing_is_remembered(
    tmp_path: Path, agentps_home: Path, reposts: list[dict[str, Any]]
) -> None:
    """As on another machine."""
    before = splits(tmp_path, reposts[:40])
    next((agentps_home / "splits").glob("*.json")).unlink()
    after = splits(tmp_path, reposts)
    assert {post_id: after[post_id] for post_id in before} == before


def test_a_group_that_grows_across_splits_is_told_and_nobody_is_moved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = pictures(tmp_path, 0), pictures(tmp_path, 1)
    train, test = in_split("train"), in_split("test")
    rows = [{"post_id": train, "images": [first[0]]}, {"post_id": test, "images": [second[0]]}]
    assert splits(tmp_path, rows) == {train: "train", test: "test"}
    both = {"post_id": "joins", "images": [first[1], second[1]]}
    with caplog.at_level(logging.WARNING):
        result = read_manifest(write(tmp_path, [*rows, both]), TASK, GROUPED)
    assert result.posts["split"].tolist() == ["train", "test", "train"]
    assert result.counts["posts_across"] == 3
    assert "1 groups of 3 posts lie in more than one split" in caplog.text
    assert f"{test} (test), {train} (train)" in caplog.text


def test_the_split_that_a_manifest_names_is_kept_and_its_group_follows(tmp_path: Path) -> None:
    names = pictures(tmp_path, 0)
    rows = [{"post_id": in_split("train", 100 * k), "images": [name]} for k, name in enumerate(names)]
    rows[2]["split"] = "test"
    assert set(splits(tmp_path, rows).values()) == {"test"}


def test_a_text_is_the_same_but_for_capitals_blanks_and_forms_of_characters(tmp_path: Path) -> None:
    names = [pictures(tmp_path, number)[0] for number in range(3)]
    texts = ["Cafe\u0301 am  See", "caf\u00e9 AM see", "another"]
    ids = [in_split("train"), in_split("test"), in_split("val")]
    rows = [
        {"post_id": post_id, "images": [name], "title": "T", "text": text}
        for post_id, name, text in zip(ids, names, texts, strict=True)
    ]
    only_text = GROUPED.model_copy(update={"group_by": ("text",)})
    assert list(splits(tmp_path, rows, only_text).values()) == ["train", "train", "val"]
    only_images = GROUPED.model_copy(update={"group_by": ("image",)})
    assert list(splits(tmp_path, rows, only_images).values()) == ["train", "test", "val"]


def test_plain_pictures_join_nobody(tmp_path: Path) -> None:
    """All of one colour look alike; the same file joins all the same."""
    from PIL import Image

    for name, colour in (("white", "white"), ("grey", "#eeeeee")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
    train, test, other = in_split("train"), in_split("test"), in_split("test", 500)
    rows = [
        {"post_id": train, "images": ["white.png"]},
        {"post_id": test, "images": ["grey.png"]},
        {"post_id": other, "images": ["white.png"]},
    ]
    assert splits(tmp_path, rows) == {train: "train", test: "test", other: "train"}


def test_one_picture_in_very_many_posts_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [pictures(tmp_path, number)[0] for number in range(3)]
    rows = [{"post_id": f"p{k}", "images": [names[0] if k < 5 else names[k % 3]]} for k in range(12)]
    splits(tmp_path, rows)
    assert "of 12 posts are one group" in caplog.text


def test_splits_that_cannot_be_read_are_told(tmp_path: Path, agentps_home: Path, reposts: list[dict[str, Any]]) -> None:
    splits(tmp_path, reposts[:3])
    kept = next((agentps_home / "splits").glob("*.json"))
    kept.write_text("[", encoding="utf-8")
    with pytest.raises(ManifestError, match="restore it, or delete it to split all posts anew"):
        splits(tmp_path, reposts[:3])


def test_retraining_takes_the_splits_that_ingest_gives(tmp_path: Path, reposts: list[dict[str, Any]]) -> None:
    from model.post import row_of

    path = write(tmp_path, [*reposts, {"post_id": "broken", "images": ["none.jpg"]}])
    posts, _ = parse_posts(path, row_of(TASK), lambda post: None)
    found = group_splits(posts, str(tmp_path), GROUPED)
    assert "broken" not in found
    assert found == splits(tmp_path, reposts)
