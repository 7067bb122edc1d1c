"""steps/ingest/rows.py: the label tables of annotators; the other formats are tested with the tables they hold."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import ManifestError
from steps.ingest.rows import read_rows, read_table


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
