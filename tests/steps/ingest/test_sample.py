from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from model.task import load_task
from steps.ingest import sample
from steps.ingest.posts import read_manifest
from steps.ingest.sample import (
    LABEL_NOISE,
    SUBJECTS,
    compose_post,
    final_label,
    render_sample,
    single_images,
    split_fingerprint,
)
from steps.paths import REPOSITORY
from steps.settings import Difficulty, SampleSettings, load_settings

TASK = load_task("ucc")
SETTINGS = SampleSettings(train=300, val=60, test=60, seed=3, difficulty="standard", gold_share=0.5)


def files(root: Path) -> dict[str, str]:
    """Content hash by name of every file below `root`, but the Parquet file, whose metadata name its writer."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".parquet"
    }


def read(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_sample(SETTINGS, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def posts(manifest: Path) -> list[dict[str, Any]]:
    return read(manifest)


@pytest.fixture(scope="module")
def truth(manifest: Path) -> pd.DataFrame:
    return pd.read_parquet(manifest.with_name("truth.parquet")).set_index("post_id")


def test_the_same_settings_give_the_same_bytes_anywhere(manifest: Path, truth: pd.DataFrame, tmp_path: Path) -> None:
    again = render_sample(SETTINGS, tmp_path)
    assert files(again.parent) == files(manifest.parent)
    assert pd.read_parquet(again.with_name("truth.parquet")).set_index("post_id").equals(truth)


def test_another_seed_gives_other_posts_in_another_folder(manifest: Path, tmp_path: Path) -> None:
    small = SampleSettings(train=5, val=1, test=1, seed=3, difficulty="standard", gold_share=0.5)
    first, second = (render_sample(small.model_copy(update={"seed": seed}), tmp_path) for seed in (3, 4))
    assert first.parent != second.parent
    assert not set(files(first.parent).values()) & set(files(second.parent).values())


def test_a_larger_sample_begins_with_the_smaller_one(posts: list[dict[str, Any]], tmp_path: Path) -> None:
    smaller = SETTINGS.model_copy(update={"train": 20, "val": 7, "test": 5})
    found = read(render_sample(smaller, tmp_path))
    by_id = {post["post_id"]: post for post in posts}
    assert len(found) == 32
    for post in found:
        # the time of a post depends on how many there are: the splits follow one another
        assert {**post, "created_at": None} == {**by_id[post["post_id"]], "created_at": None}


def test_every_post_of_the_sample_can_be_ingested(manifest: Path) -> None:
    result = read_manifest(manifest, TASK, load_settings({}).ingest)
    assert len(result.rejects) == 0
    assert {split: result.counts[split] for split in ("train", "val", "test")} == {"train": 300, "val": 60, "test": 60}


def test_the_truth_is_of_the_files_as_they_lie_there(
    manifest: Path, posts: list[dict[str, Any]], truth: pd.DataFrame
) -> None:
    for post in posts[::20]:
        hashes = [hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest() for name in post["images"]]
        assert list(truth.loc[post["post_id"], "images_sha256"]) == hashes
        assert truth.loc[post["post_id"], "n_images"] == len(hashes)


def test_process_labels_follow_from_the_true_counts_by_the_task_s_rules(
    posts: list[dict[str, Any]], truth: pd.DataFrame
) -> None:
    labelled = 0
    for post in posts:
        for question in TASK.questions:
            if post[question.id] is not None:
                expected = question.class_of(int(truth.loc[post["post_id"], question.id]), len(post["images"]))
                assert post[question.id] == expected, (post["post_id"], question.id)
                labelled += 1
    assert labelled > 5 * 120, "val and test carry them all"


def test_people_s_process_labels_are_on_a_gold_share_of_train_and_on_all_others(posts: list[dict[str, Any]]) -> None:
    gold = {split: [p["ugc"] is not None for p in posts if p["split"] == split] for split in ("train", "val", "test")}
    assert all(gold["val"])
    assert all(gold["test"])
    # 300 draws of 0.5: a standard deviation of 0.029
    assert 0.4 < np.mean(gold["train"]) < 0.6


def test_the_final_label_is_the_rule_s_but_for_the_people_s_mistakes(
    posts: list[dict[str, Any]], truth: pd.DataFrame
) -> None:
    wrong = []
    for post in posts:
        counts = truth.loc[post["post_id"]]
        answers = {q.id: q.class_of(int(counts[q.id]), len(post["images"])) for q in TASK.questions}
        wrong.append(final_label(answers) != post["label"])
    # 420 draws: a standard deviation of 0.011
    assert abs(np.mean(wrong) - LABEL_NOISE) < 0.035


@pytest.mark.parametrize(
    ("watermark", "ugc", "title", "text", "theme", "expected"),
    [
        (0, 1, 0, 0, 0, 0),  # one's own pictures
        (0, 0, 0, 0, 1, 1),  # others' pictures, nothing of one's own said about them
        (0, 0, 1, 0, 1, 0),  # a title of one's own
        (1, 1, 0, 0, 1, 1),  # a watermark, and nothing said
        (1, 1, 0, 1, 1, 0),  # a watermark, yet all else is one's own
        (1, 1, 1, 1, 0, 1),
        (1, 0, 1, 1, 1, 1),
    ],
)
def test_the_rule_of_the_sample_s_policy(
    watermark: int, ugc: int, title: int, text: int, theme: int, expected: int
) -> None:
    answers = dict(zip(TASK.question_ids, (watermark, ugc, title, text, theme), strict=True))
    assert final_label(answers) == expected


def test_the_positive_share_is_neither_rare_nor_the_rule(posts: list[dict[str, Any]]) -> None:
    assert 0.15 < np.mean([post["label"] for post in posts]) < 0.5


def test_every_class_of_every_question_occurs(truth: pd.DataFrame) -> None:
    for question in TASK.questions:
        counts = zip(truth[question.id], truth["n_images"], strict=True)
        classes = Counter(question.class_of(int(c), int(n)) for c, n in counts)
        assert min(classes[0], classes[1]) > 0.1 * len(truth), (question.id, classes)


def test_no_image_and_no_wording_stands_in_two_splits(posts: list[dict[str, Any]], truth: pd.DataFrame) -> None:
    splits = [post["split"] for post in posts]
    of_image: dict[str, set[str]] = {}
    of_wording: dict[tuple[str, str], set[str]] = {}
    for post, split in zip(posts, splits, strict=True):
        of_wording.setdefault((post["title"], post["text"]), set()).add(split)
        for digest in truth.loc[post["post_id"], "images_sha256"]:
            of_image.setdefault(digest, set()).add(split)
    assert all(len(found) == 1 for found in of_image.values())
    assert all(len(found) == 1 for found in of_wording.values())


def test_train_is_before_val_is_before_test(posts: list[dict[str, Any]]) -> None:
    times = {split: [p["created_at"] for p in posts if p["split"] == split] for split in ("train", "val", "test")}
    assert max(times["train"]) < min(times["val"]) <= max(times["val"]) < min(times["test"])


def test_counts_never_exceed_the_album(truth: pd.DataFrame) -> None:
    for question in TASK.question_ids:
        assert truth[question].between(0, truth["n_images"]).all()


def test_an_interrupted_rendering_is_not_taken_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = SampleSettings(train=4, val=1, test=1, seed=0, difficulty="standard", gold_share=0.5)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", fail)  # the last thing that is written
        with pytest.raises(OSError, match="no space left"):
            render_sample(small, tmp_path)
    assert all(folder.suffix == ".part" for folder in (tmp_path / "sample").iterdir())

    manifest = render_sample(small, tmp_path)

    assert len(read(manifest)) == 6
    assert len(pd.read_parquet(manifest.with_name("truth.parquet"))) == 6
    for post in read(manifest):
        for name in post["images"]:
            with Image.open(manifest.parent / name) as image:
                image.load()


def test_a_rendered_sample_is_used_again(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("rendered twice")

    monkeypatch.setattr(sample, "ProcessPoolExecutor", never)
    assert render_sample(SETTINGS, manifest.parents[2]) == manifest


def test_single_images_show_every_subject_style_and_overlay() -> None:
    images, attributes = single_images(300, seed=3)
    assert images.shape == (300, sample.IMAGE_SIZE, sample.IMAGE_SIZE, 3)
    assert images.dtype == np.uint8
    assert [len(set(column)) for column in attributes.T] == [len(sample.SUBJECTS), 2, 3]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.word)
def test_turning_what_is_drawn_alone_gives_pillow_s_rotation(subject: sample.Subject) -> None:
    side = sample.IMAGE_SIZE * 3
    corners = itertools.product((0.42, 0.58), (0.42, 0.5, 0.58), (0.26, 0.36), (-22, -8.3, 8, 15.7, 22))
    for x, y, r, angle in corners:
        image = Image.new("RGB", (side, side), "#f4e3c1")
        subject.draw(ImageDraw.Draw(image), (x * side, y * side, r * side), "#1f3f7a")
        whole = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor="#f4e3c1")
        reach = subject.reach * r * side + sample._PEN
        assert whole.getcolors() != image.getcolors()
        assert sample._turned(image, angle, (x * side, y * side), reach, "#f4e3c1").tobytes() == whole.tobytes()


def told(wording: str) -> int | None:
    """The subject that a title or text names; None: it is plain."""
    words = wording.replace("!!", "").split()
    named = next(k for k, subject in enumerate(SUBJECTS) if subject.word in words)
    templates = [template.replace("{w}", SUBJECTS[named].word) for template in sample._ORIGINAL]
    return named if any(wording.startswith(template) for template in templates) else None


@pytest.mark.parametrize(
    ("difficulty", "leading", "of_another"), [("easy", 0.74, 0.0), ("standard", 0.5, 0.24), ("hard", 0.4, 0.4)]
)
def test_a_harder_sample_tells_more_of_other_subjects(
    difficulty: Difficulty, leading: float, of_another: float
) -> None:
    posts = [compose_post(np.random.default_rng((0, k)), difficulty) for k in range(2000)]
    names = [(told(post.title), post) for post in posts]
    assert np.mean([name == post.subjects[0] for name, post in names]) == pytest.approx(leading, abs=0.04)
    others = [(name, post) for name, post in names if name is not None and name != post.subjects[0]]
    assert len(others) / len(posts) == pytest.approx(of_another, abs=0.04)
    if difficulty == "hard":
        assert all(name in post.subjects for name, post in others if len(set(post.subjects)) > 1)


def test_the_public_test_split_is_that_of_the_dataset_card(tmp_path: Path) -> None:
    settings = load_settings({"sample": {"train": 1, "val": 1}}).sample
    fingerprint = split_fingerprint(render_sample(settings, tmp_path), "test")
    card = (REPOSITORY / "docs" / "benchmark.md").read_text(encoding="utf-8")
    assert f"`{fingerprint}`" in card


def test_a_splits_fingerprint_changes_with_its_posts_and_not_with_the_others(manifest: Path, tmp_path: Path) -> None:
    def fingerprint(**changes: Any) -> str:
        return split_fingerprint(render_sample(SETTINGS.model_copy(update=changes), tmp_path), "test")

    assert fingerprint(train=10, gold_share=1.0) == split_fingerprint(manifest, "test")
    assert fingerprint(train=10, test=59) != split_fingerprint(manifest, "test")
    assert fingerprint(train=10, seed=4) != split_fingerprint(manifest, "test")
