"""steps/ingest/posts.py: which posts of a manifest are used, and the reason for every other one."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model.errors import ManifestError
from model.images import ImageLimits, read_source
from steps.ingest.groups import split_of
from steps.ingest.posts import RejectsError, manifest_fingerprint, read_manifest
from steps.settings import IngestSettings
from tests.support.tasks import DEMO as TASK


def settings(**changes: Any) -> IngestSettings:
    values = {
        "max_reject_share": 1.0,
        "max_image_bytes": 100_000,
        "max_image_pixels": 50_000_000,
        "max_images": 4,
        "val_share": 0.1,
        "test_share": 0.2,
    }
    return IngestSettings(**(values | changes))


def encoded(image: Image.Image, fmt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 20,000 x 10,000 pixels: its header, and the start of its rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 10_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
JPEG = encoded(Image.fromarray(PIXELS), "JPEG")
FRAMES = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A manifest's folder with good and broken images, and a file outside of it."""
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "outside.jpg").write_bytes(JPEG)
    files = {
        "a.jpg": JPEG,
        "b.png": encoded(Image.fromarray(PIXELS), "PNG"),
        "c.webp": encoded(Image.fromarray(PIXELS), "WEBP"),
        "cmyk.jpg": encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
        "deep.png": encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000), "PNG"),
        "cut.jpg": JPEG[:-200],
        "empty.jpg": b"",
        "svg.png": SVG,
        "bomb.png": bomb(),
        "anim.gif": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
        "anim.webp": encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    (root / "inside.jpg").symlink_to("a.jpg")
    (root / "escape.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "up").symlink_to(tmp_path)
    (root / "loop.jpg").symlink_to("loop.jpg")
    return root


def post(post_id: Any = "p", **cells: Any) -> dict[str, Any]:
    return {"post_id": post_id, "images": ["a.jpg"]} | cells


def write(folder: Path, rows: list[Any], name: str = "posts.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_full_post_comes_back_as_the_posts_table_promises(folder: Path) -> None:
    row = post(
        "p1",
        created_at="2025-03-01T12:00:00.25+02:00",
        title="Ein Titel",
        text="日本語",
        images=["a.jpg", "b.png", "inside.jpg"],
        label=1,
        blurred=0,
        kind="drawing",
        split="val",
    )
    result = read_manifest(write(folder, [row, post("p2")]), TASK, settings())
    assert list(result.posts.columns) == [
        *("post_id", "created_at", "title", "text", "images", "root", "image_sha256"),
        *("label", "blurred", "kind", "split"),
    ]
    dtypes = result.posts.dtypes.astype(str).to_dict()
    assert dtypes["created_at"] == "datetime64[us, UTC]"
    assert [dtypes[name] for name in ("post_id", "title", "text", "split")] == ["str"] * 4
    assert [dtypes[name] for name in ("label", "blurred", "kind")] == ["Int8"] * 3
    first, second = result.posts.to_dict("records")
    sha, sha_png = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("a.jpg", "b.png"))
    assert first == {
        "post_id": "p1",
        "created_at": pd.Timestamp(datetime(2025, 3, 1, 10, 0, 0, 250_000, tzinfo=UTC)),
        "title": "Ein Titel",
        "text": "日本語",
        "images": ["a.jpg", "b.png", "a.jpg"],
        "root": str(folder),
        "image_sha256": [sha, sha_png, sha],
        "label": 1,
        "blurred": 0,
        "kind": 1,
        "split": "val",
    }
    assert (second["title"], second["text"]) == ("", "")
    assert second["split"] in ("train", "val", "test")
    assert all(pd.isna(second[name]) for name in ("label", "blurred", "kind", "created_at"))
    assert result.counts["rows"] == result.counts["posts"] == 2
    assert (result.counts["images"], result.counts["files"], result.counts["labelled"]) == (4, 2, 1)
    assert result.rejects.empty


@pytest.mark.parametrize("name", ["b.png", "c.webp", "cmyk.jpg", "deep.png", "inside.jpg"])
def test_every_kind_of_readable_image_is_taken(folder: Path, name: str) -> None:
    assert len(read_manifest(write(folder, [post(images=[name])]), TASK, settings()).posts) == 1


REJECTED = {
    "missing id": (post(None), "post_id: missing"),
    "blank id": (post("  "), "post_id: '  '; text of 1 to 512 characters "),
    "id that is a float": (post(7.0), "post_id: 7.0; text of 1 to 512 characters "),
    "id that is true": (post(True), "post_id: True; text of 1 to 512 characters "),
    "id with half a character": (post("\ud83d"), "post_id: '\\ud83d' holds half of a character"),
    "id with NUL": (post("a\0"), "post_id: 'a\\x00'; text of 1 to 512 characters without control characters"),
    "id with a line break": (post("a\nb"), "post_id: 'a\\nb'; text of 1 to 512"),
    "id with a carriage return": (post("a\r"), "post_id: 'a\\r'; text of 1 to 512"),
    "id with an escape sequence": (post("\x1b[31ma"), "post_id: '\\x1b[31ma'; text of 1 to 512"),
    "id with a line separator": (post("a\u2028b"), "post_id: 'a\\u2028b'; text of 1 to 512"),
    "id that turns its line": (post("a\u202eb"), "post_id: 'a\\u202eb'; text of 1 to 512"),
    "id that hides a character": (post("a\u200bb"), "post_id: 'a\\u200bb'; text of 1 to 512"),
    "id between blanks": (post(" a\u00a0"), "post_id: ' a\\xa0'; text of 1 to 512"),
    "very long id": (post("x" * 513), "post_id: 'xxxxx"),
    "language with an escape sequence": (post(language="en\x1b[2J"), "language: 'en\\x1b[2J'; a language's name"),
    "very long title": (post(title="x" * 50_001), "title and text: 50,001 characters; at most 50,000 are read"),
    "long title and text": (post(title="x" * 30_000, text="y" * 30_000), "60,000 characters; at most 50,000 are read"),
    "image of a very long name": (post(images=["a/" * 10**6]), "2,000,000 characters; a path has at most 4,096"),
    "image whose name begins a line": (post(images=["a\n\x1b[1mrow 9"]), "image a\\n\\x1b[1mrow 9: no such file"),
    "duplicate": (post("good"), "post_id: 'good' is already the post of row 1"),
    "no images": (post(images=[]), "images: []; a list of one or more paths"),
    "images null": (post(images=None), "images: missing; a list of one or more paths"),
    "images no list": (post(images="a.jpg"), "images: 'a.jpg'; a list of one or more paths"),
    "image blank": (post(images=["a.jpg", " "]), "images: ' '; a list of one or more paths"),
    "image no string": (post(images=[3]), "images: 3; a list of one or more paths"),
    "image with half a character": (post(images=["\ud83d.jpg"]), "images: '\\ud83d.jpg' holds half of a character"),
    "image with NUL": (post(images=["a\0.jpg"]), "null"),
    "too many images": (post(images=["a.jpg"] * 5), "5 images; at most 4 are read (ingest.max_images)"),
    "missing file": (post(images=["none.jpg"]), "image none.jpg: no such file"),
    "folder": (post(images=["."]), "not a regular file"),
    "link loop": (post(images=["loop.jpg"]), "image loop.jpg: cannot be read"),
    "outside": (post(images=["../../etc/passwd"]), "'../../etc/passwd' lies outside the manifest's folder"),
    "absolute": (post(images=["/etc/passwd"]), "'/etc/passwd' lies outside the manifest's folder"),
    "link outside": (post(images=["escape.jpg"]), "'escape.jpg' lies outside the manifest's folder"),
    "linked folder": (post(images=["up/outside.jpg"]), "'up/outside.jpg' lies outside the manifest's folder"),
    "url": (post(images=["https://example.com/a.jpg"]), "is a URL; only files in the manifest's folder are read"),
    "data url": (post(images=["data:image/png;base64,AAAA"]), "is a URL; only files in the manifest's folder are read"),
    "bomb": (post(images=["bomb.png"]), "image bomb.png: 200 megapixels; at most 50 are read"),
    "cut": (post(images=["a.jpg", "cut.jpg"]), "image cut.jpg: cut or corrupt: "),
    "empty": (post(images=["empty.jpg"]), "image empty.jpg: empty file"),
    "svg": (post(images=["svg.png"]), "image svg.png: not a JPEG, PNG or WebP image"),
    "gif": (post(images=["anim.gif"]), "image anim.gif: not a JPEG, PNG or WebP image"),
    "webp animation": (post(images=["anim.webp"]), "image anim.webp: an animation of 2 frames"),
    "label": (post(label=2), "label: 2; 0, 1 or null is expected"),
    "label text": (post(label="1"), "label: '1'; 0, 1 or null is expected"),
    "label true": (post(label=True), "label: True; 0, 1 or null is expected"),
    "class": (post(blurred=2), "blurred: 2; a class index 0 to 1"),
    "class below": (post(kind=-1), "kind: -1; a class index 0 to 2"),
    "class fraction": (post(kind=0.5), "kind: 0.5; a class index 0 to 2"),
    "class name": (post(kind="film"), "kind: 'film'; a class index 0 to 2, one of ['photo', 'drawing', 'text']"),
    "no zone": (post(created_at="2025-03-01T12:00:00"), "created_at: '2025-03-01T12:00:00'; ISO 8601 with a zone"),
    "no date": (post(created_at="yesterday"), "created_at: 'yesterday'; ISO 8601 with a zone"),
    "epoch": (post(created_at=1740830400), "created_at: 1740830400; ISO 8601 with a zone"),
    "before year 1": (post(created_at="0001-01-01T00:00:00+14:00"), "ISO 8601 with a zone"),
    "split": (post(split="dev"), "split: 'dev'; one of train, val, test or null"),
    "title": (post(title=3), "title: 3; text or null"),
    "surrogate": (post(text="\ud800"), "text: '\\ud800' holds half of a character"),
    "emoji cut in half": (post(title="so happy \ud83d"), "title: 'so happy \\ud83d' holds half of a character"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_a_broken_post_is_rejected_with_its_reason_and_the_others_stay(folder: Path, case: str) -> None:
    row, reason = REJECTED[case]
    result = read_manifest(write(folder, [post("good"), row, post("last")]), TASK, settings())
    assert list(result.posts["post_id"]) == ["good", "last"]
    assert list(result.rejects["row"]) == [2]
    assert reason in result.rejects["reason"][0]
    assert result.rejects["post_id"][0] == (row["post_id"] if row["post_id"] in ("p", "good") else None)
    assert (result.counts["rows"], result.counts["posts"], result.counts["rejected"]) == (3, 2, 1)


def test_a_post_of_the_largest_size_and_the_longest_id_is_taken(folder: Path) -> None:
    rows = [post("x" * 512, title="x" * 20_000, text="y" * 30_000, images=["a.jpg"] * 4), post("-dQw4w9 Wg;XcQ=今天🙂")]
    assert len(read_manifest(write(folder, rows), TASK, settings()).posts) == 2
    small = settings(max_text_characters=10)
    result = read_manifest(
        write(folder, [post("a", title="12345", text="67890"), post("b", title="12345678901")]), TASK, small
    )
    assert result.posts["post_id"].tolist() == ["a"]
    assert result.rejects["reason"][0].endswith("11 characters; at most 10 are read (ingest.max_text_characters)")


def test_one_reject_names_every_fault_of_its_row(folder: Path) -> None:
    rows = [post("good"), post("bad", label=7, split="dev"), post("bad2", images=["cut.jpg", "empty.jpg"])]
    reasons = list(read_manifest(write(folder, rows), TASK, settings()).rejects["reason"])
    assert "label: 7" in reasons[0]
    assert "split: 'dev'" in reasons[0]
    assert "cut.jpg" in reasons[1]
    assert "empty.jpg" in reasons[1]


def test_of_a_list_of_very_many_wrong_values_one_is_named(folder: Path) -> None:
    rows = [{"post_id": "good", "images": ["a.jpg"]}, {"post_id": "p", "images": [1] * 1_000, "label": 3}]
    (reason,) = read_manifest(write(folder, rows), TASK, settings()).rejects["reason"]
    assert reason == "images: 1; a list of one or more paths is expected; label: 3; 0, 1 or null is expected"


def test_row_numbers_are_lines_also_after_blank_ones(folder: Path) -> None:
    path = folder / "posts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"post_id": "a", "images": ["a.jpg"]}\n\n{"post_id": "b", "images": []}\n')
    result = read_manifest(path, TASK, settings())
    assert list(result.posts["post_id"]) == ["a"]
    assert list(result.rejects["row"]) == [3]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it holds no rows"),
        (b"\n\n", "it holds no rows"),
        (b'{"post_id": "a", "images": ["a.jpg"]}\n{"post_id": oops}\n', r"posts.jsonl:2: not JSON: .*oops"),
        (b'{"post_id": "a", "images": ["a.jpg"], "label": NaN}\n', r"posts.jsonl:1: not JSON: NaN"),
        (b'{"post_id": "\xff", "images": []}\n', r"posts.jsonl:1: not JSON: 'utf-8' codec"),
        (b"[" * 100_000 + b"\n", r"posts.jsonl:1: not JSON"),
        (b'["a", "b"]\n', r"posts.jsonl:1: found the list \['a', 'b'\]; each line must hold one JSON object"),
        (b'{"post_id": "a", "image": "a.jpg"}\n', r"no column 'images' \(found post_id, image\)"),
        (b'{"id": "a", "images": ["a.jpg"]}\n', "no column 'post_id'"),
    ],
)
def test_a_broken_file_is_one_error_that_names_file_and_line(folder: Path, content: bytes, reason: str) -> None:
    path = folder / "posts.jsonl"
    path.write_bytes(content)
    for read in (lambda: read_manifest(path, TASK, settings()), lambda: manifest_fingerprint(path)):
        with pytest.raises(ManifestError, match=reason) as caught:
            read()
        assert str(path) in str(caught.value)


def test_missing_files_and_unknown_suffixes_are_named(folder: Path) -> None:
    for name, reason in (("none.jsonl", "no such file"), ("a.jpg", "suffix '.jpg'"), ("none.parquet", "no such file")):
        with pytest.raises(ManifestError, match=reason):
            read_manifest(folder / name, TASK, settings())
    (folder / "dir.jsonl").mkdir()
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        read_manifest(folder / "dir.jsonl", TASK, settings())
    (folder / "text.parquet").write_text("post_id,images\n")
    with pytest.raises(ManifestError, match="cannot be read as Parquet"):
        read_manifest(folder / "text.parquet", TASK, settings())


def test_columns_that_the_task_does_not_name_are_ignored_with_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(folder, [post(f"p{i}", likes=3, watermark=1) for i in range(3)])
    with caplog.at_level(logging.WARNING):
        result = read_manifest(path, TASK, settings())
    assert "likes" not in result.posts
    assert len(caplog.records) == 1
    assert "likes" in caplog.text
    assert "watermark" in caplog.text


def test_a_language_is_kept_where_the_manifest_has_one_and_must_be_a_name(folder: Path) -> None:
    rows = [post("p1", language="en"), post("p2", language=None), post("p3"), post("p4", language=7)]
    result = read_manifest(write(folder, rows), TASK, settings())
    assert result.posts["language"].fillna("-").tolist() == ["en", "-", "-"]
    assert result.rejects["reason"].tolist() == ["language: 7; a language's name, for example en, or null is expected"]


def test_too_many_rejects_stop_the_run_with_the_first_of_them_and_the_whole_table(folder: Path) -> None:
    rows = [post(f"p{i}") for i in range(90)] + [post(f"q{i}", label=9) for i in range(10)]
    path = write(folder, rows)
    assert len(read_manifest(path, TASK, settings(max_reject_share=0.1)).posts) == 90
    with pytest.raises(
        RejectsError, match=r"10 of 100 posts are rejected, 9\.0% at most may be: row 91 \(q0\)"
    ) as caught:
        read_manifest(path, TASK, settings(max_reject_share=0.09))
    assert "and 5 more" in str(caught.value)
    assert "ingest.max_reject_share" in str(caught.value)
    assert list(caught.value.rejects["row"]) == list(range(91, 101))


def test_a_manifest_without_one_usable_post_stops_the_run(folder: Path) -> None:
    with pytest.raises(RejectsError, match="1 of 1 posts are rejected"):
        read_manifest(write(folder, [post(images=["cut.jpg"])]), TASK, settings(max_reject_share=1.0))


def test_splits_stay_as_posts_arrive_and_keep_their_shares(folder: Path) -> None:
    rows = [post(f"p{i}") for i in range(3000)]
    before = read_manifest(write(folder, rows[:1000]), TASK, settings()).posts.set_index("post_id")["split"]
    after = read_manifest(write(folder, rows[::-1]), TASK, settings()).posts.set_index("post_id")["split"]
    assert (after[before.index] == before).all()
    # Three standard deviations of 3000 draws: 3 * sqrt(.2 * .8 / 3000) = .022.
    assert (after == "test").mean() == pytest.approx(0.2, abs=0.022)
    assert (after == "val").mean() == pytest.approx(0.1, abs=0.022)


def test_split_of_is_sha256_of_the_id() -> None:
    # sha256("abc") = ba7816bf..., sha256("") = e3b0c442...: 0.7284 and 0.8894 of the range (FIPS 180-2).
    assert split_of("abc", val_share=0.01, test_share=0.72) == "val"
    assert split_of("abc", val_share=0.01, test_share=0.73) == "test"
    assert split_of("", val_share=0.1, test_share=0.73) == "train"


def test_parquet_equals_jsonl(folder: Path) -> None:
    rows = [
        post("p1", created_at="2025-03-01T12:00:00Z", title="t", text="x", label=1, blurred=1, kind=2, split="test"),
        post("p2", created_at="2025-03-01T12:00:00+01:00", images=["b.png", "a.jpg"], label=0),
        post("p3", label=None, title=None),
        post("p4", label=3),
    ]
    parquet = folder / "posts.parquet"
    names = ["post_id", "created_at", "title", "text", "images", "label", "blurred", "kind", "split"]
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), parquet)
    from_jsonl = read_manifest(write(folder, rows), TASK, settings())
    from_parquet = read_manifest(parquet, TASK, settings())
    pd.testing.assert_frame_equal(from_parquet.posts, from_jsonl.posts)
    pd.testing.assert_frame_equal(
        from_parquet.rejects.drop(columns="manifest"), from_jsonl.rejects.drop(columns="manifest")
    )
    assert from_parquet.counts == from_jsonl.counts


def test_parquet_as_pandas_writes_it(folder: Path) -> None:
    """Integers with nulls as floats, timestamps in nanoseconds, lists as arrays."""
    frame = pd.DataFrame(
        {
            "post_id": ["p1", "p2"],
            "images": [np.array(["a.jpg"], dtype=object), np.array(["b.png", "a.jpg"], dtype=object)],
            "created_at": pd.to_datetime(["2025-03-01T12:00:00.000000001Z", None]).as_unit("ns"),
            "label": [1.0, np.nan],
            "kind": [np.nan, "text"],
            "title": [None, "t"],
            "language": [np.nan, np.nan],
        }
    )
    frame.to_parquet(folder / "posts.parquet")
    posts = read_manifest(folder / "posts.parquet", TASK, settings()).posts
    assert list(posts["label"]) == [1, pd.NA]
    assert list(posts["kind"]) == [pd.NA, 2]
    assert list(posts["title"]) == ["", "t"]
    assert list(posts["created_at"]) == [pd.Timestamp("2025-03-01T12:00:00Z"), pd.NaT]
    assert [len(images) for images in posts["images"]] == [1, 2]


def test_a_parquet_timestamp_without_zone_is_rejected(folder: Path) -> None:
    table = pa.table({"post_id": ["p", "q"], "images": [["a.jpg"]] * 2, "created_at": [datetime(2025, 3, 1), None]})
    pq.write_table(table, folder / "posts.parquet")
    result = read_manifest(folder / "posts.parquet", TASK, settings())
    assert list(result.posts["post_id"]) == ["q"]
    assert "ISO 8601 with a zone" in result.rejects["reason"][0]


def test_each_distinct_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counting(source: str, limits: ImageLimits, **where: str) -> bytes:
        reads.append(source)
        return read_source(source, limits, **where)

    monkeypatch.setattr("steps.ingest.pictures.read_source", counting)
    rows = [post(f"p{i}", images=["a.jpg", "inside.jpg", "b.png"]) for i in range(200)]
    result = read_manifest(write(folder, rows), TASK, settings())
    assert sorted(reads) == ["a.jpg", "b.png"]
    assert result.counts["images"] == 600


def test_the_result_is_the_same_for_any_number_of_workers(folder: Path) -> None:
    for i in range(200):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"n{i}.png")
    rows = [post(f"p{i}", images=[f"n{i}.png", "cut.jpg" if i % 50 == 0 else "a.jpg"]) for i in range(200)]
    path = write(folder, rows)
    one, four = (read_manifest(path, TASK, settings(), workers=n) for n in (1, 4))
    pd.testing.assert_frame_equal(one.posts, four.posts)
    pd.testing.assert_frame_equal(one.rejects, four.rejects)
    assert len(one.rejects) == 4


def test_the_fingerprint_changes_with_the_manifest_and_with_each_image(folder: Path) -> None:
    path = write(folder, [post(images=["a.jpg", "late.jpg"])])
    seen = [manifest_fingerprint(path)]
    assert manifest_fingerprint(path) == seen[0]
    os.utime(folder / "b.png", ns=(1, 1))  # not in the manifest
    assert manifest_fingerprint(path) == seen[0]
    (folder / "late.jpg").write_bytes(JPEG)  # was missing
    seen.append(manifest_fingerprint(path))
    os.utime(folder / "a.jpg", ns=(1, 1))
    seen.append(manifest_fingerprint(path))
    (folder / "a.jpg").write_bytes(JPEG + b"\0")
    os.utime(folder / "a.jpg", ns=(1, 1))
    seen.append(manifest_fingerprint(path))
    path.write_text(path.read_text() + "\n")
    seen.append(manifest_fingerprint(path))
    assert len(set(seen)) == 5


def test_the_fingerprint_opens_no_image(folder: Path) -> None:
    rows = [post(images=["bomb.png", "cut.jpg", "a\0.jpg", 3]), post(images=None)]
    assert len(manifest_fingerprint(write(folder, rows))) == 64


def test_a_whole_number_is_an_id_in_every_format(folder: Path) -> None:
    rows = [post(1000), post(1001), post("1002")]
    pd.DataFrame({"post_id": [1000, 1001, 1002], "images": [["a.jpg"]] * 3}).to_parquet(folder / "posts.parquet")
    for path in (write(folder, rows), folder / "posts.parquet"):
        assert list(read_manifest(path, TASK, settings()).posts["post_id"]) == ["1000", "1001", "1002"]
    twice = read_manifest(write(folder, [post(7), post("7")]), TASK, settings())
    assert twice.rejects["reason"].tolist() == ["post_id: '7' is already the post of row 1"]


def test_a_column_that_stands_in_a_file_twice_is_refused_and_both_are_named(folder: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array(["p"]), pa.array([["a.jpg"]]), pa.array([0]), pa.array([1])], ["post_id", "images", "label", "label"]
    )
    pq.write_table(table, folder / "posts.parquet")
    with pytest.raises(ManifestError, match=r"the column 'label' stands there 2 times \(columns 3, 4\)"):
        read_manifest(folder / "posts.parquet", TASK, settings())
    path = folder / "posts.jsonl"
    path.write_text('{"post_id": "p", "images": ["a.jpg"], "label": 0, "label": 1}\n')
    for read in (lambda: read_manifest(path, TASK, settings()), lambda: manifest_fingerprint(path)):
        with pytest.raises(ManifestError, match=r"posts\.jsonl:1: the key 'label' .* more than once, with 0 and 1"):
            read()


def test_a_manifest_that_retraining_wrote_names_the_file_and_row_that_a_post_came_from(folder: Path) -> None:
    rows = [post("p0", _origin=["/their/1.jsonl", 7]), post("p1", images=["none.jpg"], _origin=["/their/2.jsonl", 9])]
    own = folder.parent / "run.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rejects = read_manifest(own, TASK, settings(), root=folder).rejects
    assert rejects.to_dict("records") == [
        {"manifest": "/their/2.jsonl", "row": 9, "post_id": "p1", "reason": "image none.jpg: no such file"}
    ]
    with pytest.raises(RejectsError, match=r"/their/2\.jsonl:row 9 \(p1\): image none\.jpg: no such file"):
        read_manifest(own, TASK, settings(max_reject_share=0.1), root=folder)


def in_memory(folder: Path) -> str:
    """The same folder on a file system in memory: its URL."""
    url = f"memory://{folder.parent.name}"
    for path in folder.iterdir():
        if path.is_file():
            fsspec.filesystem("memory").pipe_file(f"{url}/{path.name}", path.read_bytes())
    return url


def test_posts_are_the_same_in_another_folder_and_on_another_file_system(folder: Path, tmp_path: Path) -> None:
    rows = [post("p1", images=["a.jpg", "inside.jpg"], label=1), post("p2", images=["./b.png"])]
    write(folder, [*rows, post("p3", images=["cut.jpg"])])
    url = in_memory(folder)
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    local, remote = (read_manifest(f"{root}/posts.jsonl", TASK, settings()) for root in (moved, url))
    assert (set(local.posts["root"]), set(remote.posts["root"])) == ({str(moved)}, {url})
    # a file system without links has a file of that name in its place
    assert local.posts["images"].tolist() == [["a.jpg", "a.jpg"], ["b.png"]]
    assert remote.posts["images"].tolist() == [["a.jpg", "inside.jpg"], ["b.png"]]
    same = [column for column in local.posts if column not in ("root", "images")]
    pd.testing.assert_frame_equal(local.posts[same], remote.posts[same])
    assert local.rejects["reason"].tolist() == remote.rejects["reason"].tolist()
    assert len(local.rejects) == 1


@pytest.mark.parametrize("name", ["../other/a.jpg", "/same/a.jpg", "x/../../a.jpg", "memory://same/a.jpg"])
def test_a_name_on_another_file_system_leads_nowhere_else(folder: Path, name: str) -> None:
    write(folder, [post("p1"), post("p2", images=[name])])
    reasons = read_manifest(f"{in_memory(folder)}/posts.jsonl", TASK, settings()).rejects["reason"]
    assert reasons.str.contains("lies outside|is a URL").tolist() == [True]


def test_the_fingerprint_on_another_file_system_changes_with_each_image(folder: Path) -> None:
    write(folder, [post()])
    url, files = in_memory(folder), fsspec.filesystem("memory")
    before = manifest_fingerprint(f"{url}/posts.jsonl")
    files.pipe_file(f"{url}/b.png", b"not in the manifest")
    assert manifest_fingerprint(f"{url}/posts.jsonl") == before
    files.pipe_file(f"{url}/a.jpg", b"another")
    assert manifest_fingerprint(f"{url}/posts.jsonl") != before


@pytest.mark.parametrize(
    ("url", "reason"),
    [("memory://none/posts.jsonl", "no such file"), ("nonsense://x/posts.jsonl", "Protocol not known: nonsense")],
)
def test_a_url_that_leads_nowhere_is_named(url: str, reason: str) -> None:
    with pytest.raises(ManifestError, match=f"manifest {url}: .*{reason}"):
        read_manifest(url, TASK, settings())


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_with_what_probability_people_were_asked_is_read_of_every_manifest(folder: Path, suffix: str) -> None:
    """A queue that was filled in; a post that nobody has labelled yet needs none, and each other one has it."""
    rows = [post(1, label=1, inclusion_probability=0.2), post(2, label=0, inclusion_probability=1), post(3)]
    path = write(folder, rows)
    if suffix == ".parquet":
        path = folder / "posts.parquet"
        pd.DataFrame(rows).to_parquet(path)
    table = read_manifest(path, TASK, settings()).posts
    assert table["inclusion_probability"].tolist() == [0.2, 1, pytest.approx(np.nan, nan_ok=True)]
    plain = read_manifest(write(folder, [post(1, label=1), post(2, inclusion_probability=0.2)]), TASK, settings()).posts
    assert "inclusion_probability" not in plain, "no label was drawn"


@pytest.mark.parametrize("cell", [0, -0.5, 1.01, 1e-300, "0.5", True, [0.5]])
def test_a_probability_that_is_none_is_a_fault_of_its_row(folder: Path, cell: Any) -> None:
    rows = [post("good", label=1, inclusion_probability=0.5), post("bad", label=0, inclusion_probability=cell)]
    result = read_manifest(write(folder, rows), TASK, settings())
    assert result.posts["post_id"].tolist() == ["good"]
    reason = result.rejects.loc[0, "reason"]
    assert reason.startswith("inclusion_probability: ")
    assert reason.endswith("; a probability above 0 and at most 1, or null is expected")


def test_labels_of_which_some_have_a_probability_are_no_sample_until_each_has_one(folder: Path) -> None:
    rows = [post(n, label=n % 2, inclusion_probability=0.5 if n % 2 else None) for n in range(6)]
    pd.DataFrame(rows).to_parquet(folder / "posts.parquet")  # there the missing ones are NaN
    with pytest.raises(ManifestError, match=r"posts\.parquet: inclusion_probability: 3 of the 6 posts "):
        read_manifest(folder / "posts.parquet", TASK, settings())
    with pytest.raises(ManifestError) as caught:
        read_manifest(write(folder, rows), TASK, settings())
    assert "posts.jsonl: inclusion_probability: 3 of the 6 posts with a label have none, as row 1 (0): write 1" in str(
        caught.value
    )
    for row in rows[::2]:
        row["inclusion_probability"] = 1
    assert read_manifest(write(folder, rows), TASK, settings()).posts["inclusion_probability"].notna().all()
