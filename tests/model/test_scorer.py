from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ExifTags, Image

from model.agentps import normalize
from model.backbone import load_tokenizer
from model.checkpoint import OperatingPoints, load, write_operating_points
from model.data import Batches, Shards
from model.errors import CheckpointError, ImageError
from model.images import ImageLimits, decode, to_frame
from model.metrics import Calibration, OperatingPoint
from model.schema import TEST
from model.scorer import RawAnswers, Scorer, answer_columns, predict_rows
from model.settings import BackboneSettings, SequenceSettings, Variant
from steps.preprocess.shards import write_shards
from tests.support.posts import ingested
from tests.support.tiny import SEQUENCE, TASK, UNIQUE, train_settings, write_checkpoint, write_images

CALIBRATION = Calibration(scale=1.5, bias=-0.25)


def points(threshold: float) -> OperatingPoints:
    never = OperatingPoint(min_precision=0.8, threshold=math.inf, recall=0, precision=None)
    some = OperatingPoint(min_precision=0.6, threshold=threshold, recall=0.5, precision=0.7)
    return OperatingPoints(calibration=CALIBRATION, thresholds={"p60": some, "p80": never})


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Seven posts of 1 to 7 images, some shared; more images than frames in the last ones."""
    paths = [str(path) for path in write_images(tmp_path_factory.mktemp("images"), 7)]
    albums = [paths[: k + 1] for k in range(6)] + [paths[::-1]]
    return pd.DataFrame(
        {
            "title": ["a walk", "", "今天 🙂", "<ans>", "x" * 500, "sea", "light"],
            "text": ["along the sea", "", "", "<video> <video>", "y " * 300, "", "#tag"],
            "images": albums,
        },
        index=[f"row-{k}" for k in range(7)],
    )


@pytest.fixture(scope="module")
def directory(tiny_backbone: BackboneSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scored") / "checkpoint"
    write_checkpoint(path, tiny_backbone, train_settings(variant="agentps_answers"))
    write_operating_points(path, points(threshold=0.5))
    return path


@pytest.fixture(scope="module")
def table(directory: Path, posts: pd.DataFrame) -> pd.DataFrame:
    return Scorer.from_directory(directory).score(posts)


@pytest.mark.parametrize("sequence", [SEQUENCE, UNIQUE], ids=["repeated", "unique"])
def test_raw_posts_score_as_the_shards_of_the_same_posts_do(
    sequence: SequenceSettings, posts: pd.DataFrame, tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    directory = tmp_path / "checkpoint"
    write_checkpoint(directory, tiny_backbone, train_settings(variant="agentps_answers"), sequence=sequence)
    write_operating_points(directory, points(threshold=0.5))
    table = Scorer.from_directory(directory).score(posts)
    rows = posts.reset_index(drop=True).assign(
        post_id=[str(k) for k in range(len(posts))],
        split=TEST,
        **{name: pd.array([None] * len(posts), "Int8") for name in ("label", *TASK.question_ids)},
    )
    limits = ImageLimits(max_bytes=10**6, max_pixels=10**6)
    in_shards = ingested(rows, Path("/"))
    assert write_shards(tmp_path / "s", in_shards, TASK, sequence, load_tokenizer(tiny_backbone), limits) == 7
    loaded = load(directory)
    batches = Batches(Shards(tmp_path / "s"), loaded.prompt, TASK)
    answers = predict_rows(loaded.model, batches, np.arange(6, -1, -1), 3)
    answers = RawAnswers(answers.final_N[::-1], {name: found[::-1] for name, found in answers.questions.items()})
    expected = CALIBRATION.apply(answers.final_N)
    assert np.ptp(expected) > 0.01, "the posts must differ, or nothing is compared"
    assert table["score"].to_numpy() == pytest.approx(expected, abs=1e-6)
    columns = answer_columns(answers, TASK)
    assert table["answer_bright"].to_numpy() == pytest.approx(columns["answer_bright"], abs=1e-6)
    assert table["answer_kind_probability"].to_numpy() == pytest.approx(columns["answer_kind"], abs=1e-6)
    assert table["answer_kind"].tolist() == [("none", "some", "all")[k] for k in columns["class_kind"]]


def test_a_large_photo_is_the_same_frame_in_training_and_in_serving(
    directory: Path, tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(noise).save(path, exif=exif)
    limits = ImageLimits(max_bytes=10**6, max_pixels=10**6)
    post = {"post_id": "a", "split": TEST, "title": "", "text": "", "images": [str(path)]}
    posts = ingested(pd.DataFrame([post | dict.fromkeys(("label", *TASK.question_ids))]), tmp_path)
    write_shards(tmp_path / "shards", posts, TASK, SEQUENCE, load_tokenizer(tiny_backbone), limits)
    trained = Shards(tmp_path / "shards").images([0])
    whole = to_frame(decode(path.read_bytes(), limits), SEQUENCE.image_size)
    assert not np.array_equal(trained[0], whole), "the photo must be large enough that it is decoded at a smaller scale"
    scorer = Scorer.from_directory(directory)
    served = scorer._batch(posts)["tower_states_UPW"]
    torch.testing.assert_close(served, scorer._loaded.model.tower_states(normalize(trained)), rtol=0, atol=0)


def test_the_table_has_one_row_a_post_and_its_columns_in_order(posts: pd.DataFrame, table: pd.DataFrame) -> None:
    assert table.index.tolist() == posts.index.tolist()
    assert table.columns.tolist() == [
        "score",
        "decision_p60",
        "decision_p80",
        "answer_bright",
        "answer_kind",
        "answer_kind_probability",
        "answer_calm",
    ]
    assert table["decision_p60"].tolist() == (table["score"] >= 0.5).tolist()
    assert not table["decision_p80"].any(), "a threshold of inf flags nothing"
    assert table["answer_kind_probability"].between(1 / 3, 1).all()


def test_a_score_equal_to_the_threshold_is_flagged(directory: Path, posts: pd.DataFrame, table: pd.DataFrame) -> None:
    highest = float(table["score"].max())
    again = Scorer(load(directory), points(threshold=highest)).score(posts)
    assert again["decision_p60"].tolist() == (table["score"] == highest).tolist()
    assert again["decision_p60"].sum() == 1


def test_bytes_score_as_the_files_do(directory: Path, posts: pd.DataFrame, table: pd.DataFrame) -> None:
    as_bytes = posts.assign(images=[[Path(path).read_bytes() for path in album] for album in posts["images"]])
    assert Scorer.from_directory(directory).score(as_bytes)["score"].to_numpy() == pytest.approx(table["score"], abs=0)


@pytest.mark.parametrize("micro_batch", [1, 2, 7])
def test_scores_do_not_depend_on_the_micro_batch(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame, micro_batch: int
) -> None:
    scorer = Scorer(load(directory), points(threshold=0.5), micro_batch=micro_batch)
    assert scorer.score(posts)["score"].to_numpy() == pytest.approx(table["score"], abs=1e-6)


def test_the_same_post_twice_scores_the_same(directory: Path, posts: pd.DataFrame, table: pd.DataFrame) -> None:
    twice = Scorer.from_directory(directory).score(pd.concat([posts, posts]))
    assert twice["score"].to_numpy() == pytest.approx(np.tile(table["score"], 2), abs=1e-6)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_missing_title_or_text_is_an_empty_one(directory: Path, posts: pd.DataFrame, missing: object) -> None:
    scorer = Scorer.from_directory(directory)
    some = posts.iloc[:2]
    empty = scorer.score(some.assign(title="", text=""))
    given = some.assign(title=pd.Series([missing] * 2, some.index, object), text=["", missing])
    assert scorer.score(given)["score"].tolist() == empty["score"].tolist()


def test_no_posts_give_an_empty_table_with_the_same_columns(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame
) -> None:
    assert Scorer.from_directory(directory).score(posts.iloc[:0]).columns.tolist() == table.columns.tolist()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([b"no image"], "not a JPEG, PNG or WebP image"),
        (["/no/such/file.jpg"], "no such file"),
        (["relative.jpg"], "is not an absolute path"),
        ([], "no image"),
    ],
)
def test_a_post_whose_images_cannot_be_used_is_an_error(
    directory: Path, posts: pd.DataFrame, images: list[str | bytes], message: str
) -> None:
    bad = pd.concat([posts.iloc[:1], pd.DataFrame({"title": ["t"], "text": [""], "images": [images]})])
    with pytest.raises(ImageError, match=message):
        Scorer.from_directory(directory).score(bad)


def test_a_checkpoint_without_thresholds_scores_nothing(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").symlink_to(directory)
    partial = tmp_path / "partial"
    partial.mkdir()
    for path in directory.iterdir():
        if path.name != "operating_points.json":
            (partial / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match="only a registered checkpoint has thresholds"):
        Scorer.from_directory(partial)


@pytest.mark.parametrize("variant", ["vanilla", "multitask"])
def test_a_variant_answers_the_questions_that_it_has_heads_for(
    tiny_backbone: BackboneSettings, posts: pd.DataFrame, tmp_path: Path, variant: Variant
) -> None:
    path = write_checkpoint(tmp_path / "checkpoint", tiny_backbone, train_settings(variant=variant))
    columns = Scorer(load(path), points(0.5)).score(posts.iloc[:2]).columns
    answers = [column for column in columns if column.startswith("answer_")]
    assert len(answers) == (0 if variant == "vanilla" else 4)


def test_an_image_seen_before_is_neither_decoded_nor_encoded_again_and_scores_the_same(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer.from_directory(directory)
    network, encoded = scorer._loaded.model, []
    compute = network.tower_states
    monkeypatch.setattr(network, "tower_states", lambda pixels: encoded.append(len(pixels)) or compute(pixels))
    scorer.score(posts.iloc[:3])  # of images 0, 0-1 and 0-2
    monkeypatch.setattr("model.scorer.read_frame", lambda *_: pytest.fail("decoded again"))
    again = scorer.score(posts.iloc[:3])
    monkeypatch.undo()
    assert encoded == [3]
    assert again["score"].to_numpy() == pytest.approx(table["score"].iloc[:3], abs=1e-6)


@pytest.mark.parametrize("room", [0, 2])
def test_with_little_memory_the_images_read_last_are_kept_and_scores_are_the_same(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame, room: int
) -> None:
    states = 16 * 64 * 4  # patches of 8 x 8 pixels, width, bytes of a float32
    scorer = Scorer(load(directory), points(threshold=0.5), micro_batch=1, seen_bytes=room * states)
    assert scorer.score(posts)["score"].to_numpy() == pytest.approx(table["score"], abs=1e-6)
    kept = scorer._seen._states
    assert len(kept) == room
    last_album = [hashlib.sha256(Path(path).read_bytes()).digest() for path in posts["images"].iloc[-1]]
    assert set(kept) <= set(last_album)
