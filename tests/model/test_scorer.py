from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ExifTags, Image

from model.backbone import load_tokenizer
from model.checkpoint import Loaded, load
from model.checkpoint_info import OperatingPoints, read_info, write_info, write_operating_points
from model.data import Batches, Shards
from model.errors import ConfigError, DataError
from model.images import ImageLimits, decode, frame_indices, to_frame
from model.metrics import Calibration, OperatingPoint
from model.reader import PostReader, raw_post
from model.schema import TEST
from model.scorer import RawAnswers, Scorer, answer_columns, predict_rows
from model.settings import BackboneSettings, PostLimits, SequenceSettings, Variant
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
    return Scorer.from_directory(directory, image_root="/").score(posts)


@pytest.mark.parametrize("sequence", [SEQUENCE, UNIQUE], ids=["repeated", "unique"])
def test_raw_posts_score_as_the_shards_of_the_same_posts_do(
    sequence: SequenceSettings, posts: pd.DataFrame, tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    directory = tmp_path / "checkpoint"
    write_checkpoint(directory, tiny_backbone, train_settings(variant="agentps_answers"), sequence=sequence)
    write_operating_points(directory, points(threshold=0.5))
    table = Scorer.from_directory(directory, image_root="/").score(posts)
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
    _compare_batches(loaded, batches, posts)
    answers = predict_rows(loaded.model, batches, np.arange(6, -1, -1), 3)
    answers = RawAnswers(answers.final_N[::-1], {name: found[::-1] for name, found in answers.questions.items()})
    expected = CALIBRATION.apply(answers.final_N)
    assert np.ptp(expected) > 0.01, "the posts must differ, or nothing is compared"
    assert table["score"].to_numpy() == pytest.approx(expected, abs=1e-6)
    columns = answer_columns(answers, TASK)
    assert list(columns) == [f"{column}_{q}" for q in TASK.question_ids for column in ("answer", "probability")]
    for question in TASK.questions:
        assert table[f"probability_{question.id}"].to_numpy() == pytest.approx(
            columns[f"probability_{question.id}"], abs=1e-6
        )
        places = answers.questions[question.id].argmax(1)
        assert table[f"answer_{question.id}"].tolist() == [question.classes[k] for k in places]
        assert columns[f"answer_{question.id}"].tolist() == [question.classes[k] for k in places]


def _compare_batches(loaded: Loaded, batches: Batches, posts: pd.DataFrame) -> None:
    """What the network is given, from shards and from raw posts, is the same to the bit."""
    reader = PostReader(loaded, seen_bytes=0, image_root="/")
    raw, read = [raw_post(cells, PostLimits()) for cells in posts.to_dict("records")], {}
    served = reader.batch(raw, [reader.album(post, read) for post in raw], read)
    trained = batches(np.arange(len(posts)))
    for name in ("input_ids_BT", "answer_positions_BA"):
        assert torch.equal(served[name], trained[name])
    states_UPW = loaded.model.tower_states(trained["images_UHWC"])
    shown_BF = trained["frame_index_BF"] >= 0
    assert torch.equal(served["frame_index_BF"] >= 0, shown_BF)
    ours, theirs = served["frame_index_BF"][shown_BF], trained["frame_index_BF"][shown_BF]
    torch.testing.assert_close(served["tower_states_UPW"][ours], states_UPW[theirs], rtol=0, atol=1e-6)


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
    scorer = Scorer.from_directory(directory, image_root="/")
    post, read = raw_post({"images": [str(path)]}, PostLimits()), {}
    served = scorer._reader.batch([post], [scorer._reader.album(post, read)], read)["tower_states_UPW"]
    torch.testing.assert_close(served, scorer._loaded.model.tower_states(torch.from_numpy(trained)), rtol=0, atol=0)


def test_the_table_has_one_row_a_post_and_its_columns_in_order(posts: pd.DataFrame, table: pd.DataFrame) -> None:
    assert table.index.tolist() == posts.index.tolist()
    assert table.columns.tolist() == [
        "logit",
        "score",
        "decision_p60",
        "decision_p80",
        *(f"{column}_{question}" for question in ("bright", "kind", "calm") for column in ("answer", "probability")),
        "error",
    ]
    assert table["score"].to_numpy() == pytest.approx(CALIBRATION.apply(table["logit"]))
    assert table["error"].isna().all()
    assert table["decision_p60"].tolist() == (table["score"] >= 0.5).tolist()
    assert not table["decision_p80"].any(), "a threshold of inf flags nothing"
    assert table["probability_kind"].between(1 / 3, 1).all()
    assert table["probability_calm"].between(1 / 2, 1).all()


def test_a_score_equal_to_the_threshold_is_flagged(directory: Path, posts: pd.DataFrame, table: pd.DataFrame) -> None:
    highest = float(table["score"].max())
    again = Scorer(load(directory), points(threshold=highest), image_root="/").score(posts)
    assert again["decision_p60"].tolist() == (table["score"] == highest).tolist()
    assert again["decision_p60"].sum() == 1


@pytest.mark.parametrize("micro_batch", [1, 2, 7])
def test_scores_do_not_depend_on_the_micro_batch(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame, micro_batch: int
) -> None:
    scorer = Scorer(load(directory), points(threshold=0.5), image_root="/", micro_batch=micro_batch)
    assert scorer.score(posts)["score"].tolist() == table["score"].tolist(), "to the last bit"


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_missing_title_or_text_is_an_empty_one(directory: Path, posts: pd.DataFrame, missing: object) -> None:
    scorer = Scorer.from_directory(directory, image_root="/")
    some = posts.iloc[:2]
    empty = scorer.score(some.assign(title="", text=""))
    given = some.assign(title=pd.Series([missing] * 2, some.index, object), text=["", missing])
    assert scorer.score(given)["score"].tolist() == empty["score"].tolist()


def test_no_posts_give_an_empty_table_with_the_same_columns(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame
) -> None:
    assert (
        Scorer.from_directory(directory, image_root="/").score(posts.iloc[:0]).columns.tolist()
        == table.columns.tolist()
    )


def unreadable(folder: Path) -> list[tuple[object, str]]:
    """Cells of `images` that no post can have, and what is said of each."""
    (folder / "text.jpg").write_text("no image")
    list_expected = "a list of one or more images is expected"
    return [
        (None, f"images: None; {list_expected}"),
        (float("nan"), f"images: nan; {list_expected}"),
        ([], rf"images: \[\]; {list_expected}"),
        (str(folder / "text.jpg"), list_expected),
        (b"bytes", list_expected),
        ([b"no image"], "image 1: not a JPEG, PNG or WebP image"),
        (["/no/such/file.jpg"], "image 1 '/no/such/file.jpg': no such file"),
        ([str(folder / "text.jpg")], r"image 1 '.*text\.jpg': not a JPEG, PNG or WebP image"),
        (["relative.jpg"], "image 1 'relative.jpg': no such file"),
        ([None], "image 1: NoneType given"),
        (["data:image/png;base64,!"], "image 1 'data:.*damaged"),
    ]


def test_a_post_that_cannot_be_used_has_its_own_error_and_costs_no_other_post_its_score(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame, tmp_path: Path
) -> None:
    cases = unreadable(tmp_path)
    bad = pd.DataFrame({"title": "t", "text": "", "images": [images for images, _ in cases]})
    wrong = pd.DataFrame({"title": [["a"], "t"], "text": ["", True], "images": [posts["images"].iloc[0]] * 2})
    both = pd.concat([posts.iloc[:2], bad, wrong, posts.iloc[2:]], ignore_index=True)
    both["post_id"] = [f"p{row}" for row in both.index]
    found = Scorer(load(directory), points(threshold=0.5), image_root="/", micro_batch=3).score(both)
    good = found["error"].isna()
    assert good.sum() == len(posts)
    assert found.loc[good, "score"].to_numpy() == pytest.approx(table["score"], abs=1e-6)
    failed = found[~good]
    for row, (_, message) in enumerate(cases, start=2):
        said = found.loc[row, "error"]
        assert re.search(rf"^row {row + 1} \(post 'p{row}'\): .*{message}", said), said
    assert "title: ['a']; text or null is expected" in failed["error"].iloc[-2]
    assert "text: True; text or null is expected" in failed["error"].iloc[-1]
    assert failed["score"].isna().all()
    assert failed.drop(columns="error").isna().all(axis=None), "neither flagged nor passed, and without an answer"
    assert found["decision_p60"].dtype == "boolean"


def test_when_no_post_can_be_used_each_has_its_error(directory: Path) -> None:
    found = Scorer.from_directory(directory, image_root="/").score(
        pd.DataFrame({"images": [None, ["/no/such/file.jpg"]]})
    )
    assert found["error"].notna().all()
    assert found["score"].isna().all()


def test_whatever_a_picture_comes_in_the_post_scores_the_same(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame
) -> None:
    post, expected = posts.iloc[[2]], table["score"].iloc[2]
    data = [Path(path).read_bytes() for path in post["images"].iloc[0]]
    text = [base64.b64encode(image).decode() for image in data]
    clothes: list[object] = [
        tuple(post["images"].iloc[0]),
        np.array(post["images"].iloc[0], dtype=object),
        np.array(post["images"].iloc[0]),
        [Path(path) for path in post["images"].iloc[0]],
        data,
        [bytearray(image) for image in data],
        [memoryview(image) for image in data],
        text,
        [f"data:image/png;base64,{image}" for image in text],
        [data[0], text[1], post["images"].iloc[0][2]],
    ]
    many = pd.concat([post] * len(clothes), ignore_index=True)
    many["images"] = pd.Series(clothes, dtype=object)
    found = Scorer.from_directory(directory, image_root="/").score(many)
    assert found["error"].isna().all(), found["error"].dropna().tolist()
    assert found["score"].to_numpy() == pytest.approx(expected, abs=1e-6)


def test_titles_of_digits_only_are_text_and_absent_columns_are_empty(directory: Path, posts: pd.DataFrame) -> None:
    scorer, some = Scorer.from_directory(directory, image_root="/"), posts.iloc[:3]
    texts = scorer.score(some.assign(title=["2024", "7", ""], text=""))["score"].tolist()
    numbers = some.assign(title=[2024, 7, None], text=np.nan)  # as pandas reads them
    assert numbers["title"].dtype == "float64"
    assert scorer.score(numbers)["score"].tolist() == texts
    empty = scorer.score(some.assign(title="", text=""))["score"]
    assert scorer.score(some[["images"]])["score"].tolist() == empty.tolist()
    whole = some.iloc[:2].assign(title=[2024, 7])
    assert whole["title"].dtype == "int64"
    assert scorer.score(whole.assign(text=""))["score"].to_numpy() == pytest.approx(texts[:2], abs=1e-6)


def test_images_are_as_large_as_the_version_says_and_a_larger_one_costs_its_post_alone(
    tiny_backbone: BackboneSettings, posts: pd.DataFrame, directory: Path, tmp_path: Path
) -> None:
    strict = tmp_path / "strict"
    shutil.copytree(directory, strict)
    limits = ImageLimits(max_bytes=10**6, max_pixels=40 * 60)  # the size of the first image, the smallest of all
    write_info(strict, read_info(strict).model_copy(update={"limits": limits}))
    assert read_info(strict).limits == limits
    errors = Scorer.from_directory(strict, image_root="/").score(posts)["error"]
    assert pd.isna(errors.iloc[0])
    assert "megapixels" in errors.iloc[-1]


def test_a_checkpoint_from_before_the_limits_were_written_down_has_those_of_that_time(
    directory: Path, tmp_path: Path
) -> None:
    old = json.loads((directory / "checkpoint.json").read_text())
    del old["limits"]
    (tmp_path / "checkpoint.json").write_text(json.dumps(old))
    assert read_info(tmp_path).limits == ImageLimits(max_bytes=20_000_000, max_pixels=50_000_000)


def test_posts_as_ingest_makes_them_are_read_under_their_root_and_held_to_their_hashes(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame
) -> None:
    paths = [[Path(path) for path in album] for album in posts["images"]]
    ingested = posts.assign(
        root=str(paths[0][0].parent),
        images=[[path.name for path in album] for album in paths],
        image_sha256=[[hashlib.sha256(path.read_bytes()).hexdigest() for path in album] for album in paths],
    )
    scorer = Scorer.from_directory(directory, image_root="/")
    assert scorer.score(ingested)["score"].to_numpy() == pytest.approx(table["score"], abs=1e-6)
    joined = scorer.score(pd.concat([posts.iloc[:2], ingested.iloc[2:]]))  # root and hashes of the first two are NaN
    assert joined["score"].to_numpy() == pytest.approx(table["score"], abs=1e-6)
    ingested["image_sha256"] = [["0" * 64], [], "0" * 64, *ingested["image_sha256"].iloc[3:]]
    errors = scorer.score(ingested)["error"]
    assert "was changed since it was ingested" in errors.iloc[0]
    assert "image_sha256: []; null, or one hash for each of the 2 images is expected" in errors.iloc[1]
    assert "image_sha256: '000" in errors.iloc[2]
    assert errors.iloc[3:].isna().all()


@pytest.mark.parametrize("variant", ["vanilla", "multitask"])
def test_a_variant_answers_the_questions_that_it_has_heads_for(
    tiny_backbone: BackboneSettings, posts: pd.DataFrame, tmp_path: Path, variant: Variant
) -> None:
    path = write_checkpoint(tmp_path / "checkpoint", tiny_backbone, train_settings(variant=variant))
    columns = Scorer(load(path), points(0.5), image_root="/").score(posts.iloc[:2]).columns
    answers = [column for column in columns if column.startswith("answer_")]
    assert len(answers) == (0 if variant == "vanilla" else 3)


def tower_calls(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images go through the tower, call by call from now on."""
    network, encoded = scorer._loaded.model, list[int]()
    compute = network.tower_states
    monkeypatch.setattr(network, "tower_states", lambda pixels: encoded.append(len(pixels)) or compute(pixels))
    return encoded


def test_an_image_seen_before_is_neither_decoded_nor_encoded_again_and_scores_the_same(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer.from_directory(directory, image_root="/")
    encoded = tower_calls(scorer, monkeypatch)
    scorer.score(posts.iloc[:3])  # of images 0, 0-1 and 0-2
    monkeypatch.setattr("model.reader.decode", lambda *_, **__: pytest.fail("decoded again"))
    again = scorer.score(posts.iloc[:3])
    monkeypatch.undo()
    assert encoded == [3]
    assert again["score"].to_numpy() == pytest.approx(table["score"].iloc[:3], abs=1e-6)


@pytest.mark.parametrize("room", [0, 2])
def test_with_little_memory_the_images_read_last_are_kept_and_scores_are_the_same(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame, room: int
) -> None:
    states = 16 * 64 * 4  # patches of 8 x 8 pixels, width, bytes of a float32
    scorer = Scorer(load(directory), points(threshold=0.5), image_root="/", micro_batch=1, seen_bytes=room * states)
    assert scorer.score(posts)["score"].to_numpy() == pytest.approx(table["score"], abs=1e-6)
    kept = scorer._reader._seen._states
    assert len(kept) == room
    last_album = [hashlib.sha256(Path(path).read_bytes()).digest() for path in posts["images"].iloc[-1]]
    assert set(kept) <= set(last_album)


@pytest.mark.parametrize("hashes", [["00"], "00", 5, ["00", "00", "00"]])
def test_a_post_with_other_hashes_than_one_per_image_costs_no_other_post_its_score(
    hashes: object, directory: Path, posts: pd.DataFrame, table: pd.DataFrame
) -> None:
    two = posts.iloc[[1, 1, 1]].assign(image_sha256=[None, float("nan"), hashes])
    found = Scorer.from_directory(directory, image_root="/").score(two)
    assert found["score"].to_numpy() == pytest.approx([table["score"].iloc[1]] * 2 + [math.nan], nan_ok=True)
    assert "row 3: image_sha256: " in found["error"].iloc[2]


def test_only_images_that_a_frame_shows_go_through_the_tower_and_a_bad_one_beside_them_still_costs_its_post(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer.from_directory(directory, image_root="/")
    encoded = tower_calls(scorer, monkeypatch)
    assert scorer.score(posts.iloc[[6]])["score"].iloc[0] == pytest.approx(table["score"].iloc[6], abs=1e-6)
    assert encoded == [SEQUENCE.frames] == [4]
    album = list(posts["images"].iloc[6])
    hidden = next(k for k in range(7) if k not in frame_indices(7, 4))
    bad = [*album[:hidden], Path(album[hidden]).read_bytes()[:-40], *album[hidden + 1 :]]
    found = Scorer.from_directory(directory, image_root="/").score(pd.DataFrame({"images": [bad, album]}))
    assert found["error"].iloc[0].startswith(f"row 1: image {hidden + 1}: cut or corrupt")
    assert pd.isna(found["error"].iloc[1])


def test_a_post_beyond_the_limits_that_the_version_carries_is_refused_before_the_work(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    shutil.copytree(directory, small)
    write_info(small, read_info(small).model_copy(update={"post_limits": PostLimits(3, 200)}))
    assert read_info(small).post_limits == PostLimits(max_images=3, max_text_characters=200)
    bad = posts.iloc[:3].assign(
        title=["x" * 10_000_000, "x" * 100, "fits"], text=["", "y" * 101, "y" * 196], images=posts["images"].iloc[:3]
    )
    bad.loc["many"] = {"title": "", "text": "", "images": ["/no.png"] * 10_000}
    monkeypatch.setattr("model.reader.encode_post_text", lambda _, title, *rest: [len(title)] * 3)
    found = Scorer.from_directory(small, image_root="/").score(bad)["error"]
    limit = "characters; at most 200 are read (ingest.max_text_characters)"
    assert found.iloc[0] == f"row 1: title and text: 10,000,000 {limit}"
    assert found.iloc[1] == f"row 2: title and text: 201 {limit}"
    assert pd.isna(found.iloc[2])
    assert found.iloc[3] == "row 4: images: 10,000 images; at most 3 are read (ingest.max_images)"


def test_whoever_scores_names_the_folder_of_paths(directory: Path, posts: pd.DataFrame, tmp_path: Path) -> None:
    errors = Scorer.from_directory(directory).score(posts)["error"]
    assert errors.str.contains("no path is read here").all()
    folder = Path(posts["images"].iloc[0][0]).parent
    assert Scorer.from_directory(directory, image_root=str(folder)).score(posts)["error"].isna().all()
    assert Scorer.from_directory(directory, image_root=str(tmp_path)).score(posts)["error"].notna().all()
    for wrong in ("images", str(tmp_path / "none"), "s3://bucket/posts"):
        with pytest.raises(ConfigError, match="the absolute path of a folder is expected"):
            Scorer.from_directory(directory, image_root=wrong)


def nested(depth: int) -> list[object]:
    cell: list[object] = []
    for _ in range(depth):
        cell = [cell]
    return cell


def test_cells_of_every_kind_cost_their_own_post_in_one_short_line(
    directory: Path, posts: pd.DataFrame, table: pd.DataFrame
) -> None:
    picture = Path(posts["images"].iloc[0][0]).read_bytes()
    large = base64.b64encode(b"\xff\xd8\xff" + bytes(30_000_000)).decode()
    odd = [
        nested(50_000),
        {"a": nested(5_000)},
        10**5_000,
        math.inf,
        True,
        b"\xff",
        {1, 2},
        "\ud800",
        pd.Timestamp(0),
        1j,
    ]
    rows: list[dict[str, object]] = [
        {"images": cell} for cell in (*odd, "x" * 10**7, None, math.nan, {}, [[]], [nested(50_000)])
    ]
    rows += [
        {"images": [cell]}
        for cell in (*odd[1:8], "\ud800/a.png", None, math.nan, "", "\0", large, f"data:image/png;base64,{large}")
    ]
    rows += [{"images": [picture], "title": cell} for cell in odd if not isinstance(cell, dict | int)]
    rows += [{"images": [picture], "text": 10**5_000}, {"images": [picture], "title": np.array([1, 2])}]
    rows += [{"images": [[1]], "post_id": cell} for cell in (*odd, "\x1b[31m\nroot: all is well", "x" * 10**6)]
    rows.insert(7, {"images": [picture], "title": "a walk", "text": "along the sea", "post_id": nested(50_000)})
    found = Scorer.from_directory(directory, image_root="/").score(pd.DataFrame(rows))
    assert found["score"].iloc[7] == pytest.approx(table["score"].iloc[0], abs=1e-6)
    errors = found["error"].drop(index=7)
    assert errors.notna().all(), errors[errors.isna()]
    assert errors.str.len().max() < 400
    assert all(error.isprintable() for error in errors), [error for error in errors if not error.isprintable()]


def test_two_columns_of_one_name_are_refused(directory: Path, posts: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="more than one column has the name 'title'"):
        Scorer.from_directory(directory, image_root="/").score(pd.concat([posts, posts[["title"]]], axis=1))


def test_an_error_names_a_post_by_its_id_as_it_was_given(directory: Path) -> None:
    posts = pd.DataFrame({"post_id": [1000, 1001], "images": [["/no.png"], ["/no.png"]]})
    assert (
        Scorer.from_directory(directory, image_root="/")
        .score(posts)["error"]
        .iloc[1]
        .startswith("row 2 (post 1001): image 1")
    )
