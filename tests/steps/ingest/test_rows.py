"""steps/ingest/rows.py: the label tables of annotators; the other formats are tested with the tables they hold."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import ManifestError
from steps.ingest import rows
from steps.ingest.rows import csv_text, read_rows, read_table


def test_a_table_keeps_its_types_and_ids_by_number_are_text(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    table = pd.DataFrame(
        {"post_id": [1000, 1001], "ugc": pd.array([1, None], dtype="Int8"), "missing_reason": [None, "r"]}
    )
    table.to_parquet(path)
    found = read_table(path, "labels")
    pd.testing.assert_frame_equal(found, table.assign(post_id=pd.Series(["1000", "1001"], dtype="str")))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "ugc": [1]}, r"no column 'post_id' \(found id, ugc\)"),
        ({"post_id": ["a", None]}, r"labels\.parquet:2: post_id: .* is no id"),
        ({"post_id": [1.5]}, r"labels\.parquet:1: post_id: .*1\.5.* is no id"),
        ({"post_id": [True]}, r"labels\.parquet:1: post_id: .*True.* is no id"),
    ],
)
def test_a_table_without_ids_is_named_with_what_was_found(
    columns: dict[str, list[object]], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ManifestError, match=message):
        read_table(path, "labels")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array([0]), pa.array([1])], ["post_id", "ugc", "ugc"]), path
    )
    with pytest.raises(ManifestError, match=r"the column 'ugc' stands there 2 times \(columns 2, 3\)"):
        read_table(path, "labels")


def test_another_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    with pytest.raises(ManifestError, match=f"labels {path}: no such file"):
        read_table(path, "labels")
    path.write_text("post_id,ugc\n")
    with pytest.raises(ManifestError, match=f"labels {path}: cannot be read as Parquet"):
        read_table(path, "labels")


@pytest.mark.parametrize(
    ("images", "text", "packed", "said"),
    [
        ([["a.png"] * 300_000], "", True, "claims 300,000 values of 'images.list.element' in "),
        ([["a.png"]] * 2_000, "x" * 10_000, True, "bytes stand for 20,0"),
        ([["x" * 10_000] * 20] * 100, "", True, "bytes stand for 20,0"),
        ([["a.png"]] * 20, "x" * 1_000_000, False, "bytes stand for 20,0"),
    ],
    ids=["a list", "a text of many rows", "a name in many lists", "texts that pack well"],
)
def test_a_small_parquet_file_that_would_fill_the_memory_is_refused(
    images: list[list[str]], text: str, packed: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, n_rows = tmp_path / "posts.parquet", len(images)
    table = {"post_id": [str(k) for k in range(n_rows)], "images": images, "text": [text] * n_rows}
    pq.write_table(pa.table(table), path, compression="zstd", use_dictionary=packed)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(rows, "_MOST_TEXT", 10_000_000)
    with pytest.raises(ManifestError, match=said):
        read_rows(path, table, ("post_id", "images"))


def test_texts_that_repeat_are_read_as_they_are_whatever_types_they_were_written_as(tmp_path: Path) -> None:
    path = tmp_path / "posts.parquet"
    columns = {
        "post_id": pa.array(["a", "b", "c"], pa.large_string()),
        "images": pa.array([["x", "y"], [], None]),
        "text": pa.array(["t", None, "t"]).dictionary_encode(),
        "title": pa.array(["ü", "", "ü"], pa.string_view()),
        "label": pa.array([1, 0, None]),
        "language": pa.array([{"of": "t"}, None, {"of": "t"}]),
    }
    pq.write_table(pa.table(columns), path)
    read, found = read_rows(path, tuple(columns), ())
    assert found == list(columns)
    assert [cells for _, cells in read] == pa.table(columns).to_pylist()


def test_a_line_longer_than_any_post_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_LONGEST_LINE", 1_000)
    path = tmp_path / "posts.jsonl"
    path.write_bytes(b'{"post_id": "a"}\n{"post_id": "' + b"b" * 985 + b'"}')
    assert len(read_rows(path, ("post_id",), ("post_id",))[0]) == 2  # of 1,000 bytes
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ManifestError, match=r"posts\.jsonl:2: the line has more than 1,000 bytes"):
        read_rows(path, ("post_id",), ("post_id",))


def test_a_small_file_that_claims_very_many_rows_is_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "posts.parquet"
    nulls = pa.table({"post_id": pa.nulls(5_000_000, pa.string()), "images": pa.nulls(5_000_000, pa.string())})
    pq.write_table(nulls, path, compression="zstd")
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("read"))
    said = r"posts\.parquet: claims 5,000,000 rows in [\d,]+ bytes, less than a bit for each"
    with pytest.raises(ManifestError, match=f"manifest .*{said}"):
        read_rows(path, ["post_id", "images"], ["post_id"])
    with pytest.raises(ManifestError, match=f"labels .*{said}"):
        read_table(path, "labels")
    monkeypatch.undo()
    # Numbers in a row are the densest ids that there are.
    pq.write_table(pa.table({"post_id": range(200_000)}), path, compression="zstd")
    assert len(read_rows(path, ["post_id"], ["post_id"])[0]) == 200_000


#: Cells that a spreadsheet would run, that break lines, or that were made harmless before.
CELLS = [
    "=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "＋1", "－1", "＠a", "'=1", "''=1",
    "'", "''", "'a", "-dQw4w9WgXcQ", "a\rb", "a\r\nb", "a\nb", "\r", 'a"b', '"', "a,b", "a;b", " a ", "a\u2028b",
    "a\x85b", "a\0b", "\x1b[2J", "今天", "🙂", "x" * 200_000, "=" * 10, "'-'", "0001", "1e5", "TRUE", "NA", "null",
]  # fmt: skip


def test_what_is_written_as_csv_is_read_as_it_was_and_no_cell_is_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    table = pd.DataFrame({"post_id": [f"p{n}" for n in range(len(CELLS))], "text": CELLS, "n": -1.5, "none": None})
    path.write_text(csv_text(table), encoding="utf-8", newline="")
    rows, columns = read_rows(path, list(table), ["post_id"], text=True)
    assert columns == list(table)
    kept = {cells["post_id"]: cells.get("text") for _, cells in rows}
    assert kept == {f"p{n}": cell if cell.strip() else None for n, cell in enumerate(CELLS)}, "a blank cell is absent"
    assert {cells["n"] for _, cells in rows} == {"-1.5"}, "a number stays one"
    assert not any("none" in cells for _, cells in rows)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            for cell in row:
                assert cell[:1] not in set("=+-@\t\r\n＝＋－＠") or cell == "-1.5", cell[:40]


def test_a_damaged_page_and_a_time_that_python_has_not_are_named(tmp_path: Path) -> None:
    path = tmp_path / "posts.parquet"
    times = pa.array([3_093_527_980_800]).cast(pa.timestamp("s", "UTC"))  # in the year 100000
    pq.write_table(pa.table({"post_id": ["a"], "created_at": times}), path)
    with pytest.raises(ManifestError, match=f"manifest {path}: cannot be read as Parquet: .*out of range"):
        read_rows(path, ["post_id", "created_at"], ["post_id"])
    pq.write_table(pa.table({"post_id": [f"post {n}" for n in range(1000)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[60:400] = bytes(340)
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=f"{path}: cannot be read"):
        read_table(path, "labels")
    with pytest.raises(ManifestError, match=f"{path}: cannot be read"):
        read_rows(path, ["post_id"], ["post_id"])
