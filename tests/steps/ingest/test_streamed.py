"""Rows that are read from any place on are those that are read whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from model.errors import ManifestError
from steps.ingest import rows, streamed
from steps.ingest.rows import read_rows
from steps.ingest.streamed import Reader, stream

COLUMNS = ("post_id", "title", "images")
POSTS = [{"post_id": f"p{k}", "title": f'a "{k}",\n今天', "images": [f"{k}.png", "b.png"], "x": k} for k in range(11)]


def jsonl(path: Path) -> Path:
    lines = [json.dumps(post, ensure_ascii=False) for post in POSTS]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n \n", encoding="utf-8")
    return path


def parquet(path: Path, group: int = 4) -> Path:
    pq.write_table(pa.Table.from_pylist(POSTS), path, row_group_size=group)
    return path


def csv_file(path: Path, end: str = "\n") -> Path:
    lines = [f'{post["post_id"]},"{str(post["title"]).replace(chr(34), chr(34) * 2)}",{post["x"]}' for post in POSTS]
    path.write_bytes("\ufeff".encode() + end.join(["post_id,title,x", *lines[:5], "", *lines[5:]]).encode())
    return path


@pytest.fixture(params=["m.jsonl", "m.parquet", "groups.parquet", "m.csv", "crlf.csv"])
def manifest(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    if path.suffix == ".csv":
        return csv_file(path, "\r\n" if path.stem == "crlf" else "\n")
    return jsonl(path) if path.suffix == ".jsonl" else parquet(path, 4 if path.stem == "groups" else 100)


def test_all_rows_are_those_that_are_read_whole(manifest: Path) -> None:
    whole, _ = read_rows(manifest, COLUMNS, ("post_id",), text=True)
    assert len(whole) == 11
    assert [(row.number, row.cells) for row in stream(manifest, COLUMNS)] == whole


def test_behind_any_row_come_the_others(manifest: Path) -> None:
    whole = list(stream(manifest, COLUMNS))
    for k, row in enumerate(whole):
        assert list(stream(manifest, COLUMNS, row.place, row.number)) == whole[k + 1 :]


@pytest.mark.parametrize("near", [0, 2, 100_000])
def test_parts_in_any_order_are_the_whole(manifest: Path, near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "_NEAR", near)
    whole, reader = list(stream(manifest, COLUMNS)), Reader(COLUMNS)
    parts = [(0, 0, 0), *((k + 1, row.place, row.number) for k, row in enumerate(whole))]
    for order in ([0, 3, 6, 9], [0, 6, 9], [9, 3, 0, 6, 6], [2, 5]):
        for k in order:
            index, place, number = parts[k]
            assert list(reader.rows(str(manifest), place, number, 3)) == whole[index : index + 3]


class _File(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        data: bytes = self.fs.cat_file(self.path)
        return data[start:end]


class ObjectStore(MemoryFileSystem):  # type: ignore[misc]
    """Its files have the methods of those of s3fs and gcsfs, which are less than a file of Python has."""

    protocol = "objects"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("objects://", "memory://"))
        return stripped

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if path.endswith("no-keys.jsonl"):
            raise RuntimeError("Unable to locate credentials")  # botocore's are no OSErrors
        return _File(self, path, mode, size=self.info(path)["size"])


fsspec.register_implementation("objects", ObjectStore, clobber=True)


def test_what_an_object_store_says_of_its_own_is_told_of_the_manifest() -> None:
    with pytest.raises(ManifestError, match=r"objects://streamed/no-keys\.jsonl: .*Unable to locate credentials"):
        list(stream("objects://streamed/no-keys.jsonl", COLUMNS))


@pytest.mark.parametrize("store", ["memory", "objects"])
def test_a_url_is_read_as_a_file_is(store: str, tmp_path: Path) -> None:
    for path in (jsonl(tmp_path / "m.jsonl"), parquet(tmp_path / "m.parquet"), csv_file(tmp_path / "m.csv")):
        with fsspec.open(f"memory://streamed/{path.name}", "wb") as file:
            file.write(path.read_bytes())
        whole = list(stream(path, COLUMNS))
        assert list(stream(f"{store}://streamed/{path.name}", COLUMNS)) == whole
        after = whole[6]
        rest = stream(f"{store}://streamed/{path.name}", COLUMNS, after.place, after.number)
        assert list(rest) == whole[7:]


def test_a_row_that_is_none_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"post_id": "a"}\n{"post_id": \n[1]\n{"post_id": "b", "post_id": "c"}\n{"post_id": "d"}')
    found = list(stream(path, COLUMNS))
    assert [row.cells for row in found] == [{"post_id": "a"}, None, None, None, {"post_id": "d"}]
    assert [row.fault.split(":")[0] for row in found[1:4]] == [
        "not JSON", "found the list [1]", "the key 'post_id' stands there more than once, with 'b' and 'c'",
    ]  # fmt: skip
    path = tmp_path / "m.csv"
    path.write_text("post_id,title\na,b\nc,d,e\nf,g\n")
    assert [row.cells and row.cells["post_id"] for row in stream(path, COLUMNS)] == ["a", None, "f"]


@pytest.mark.parametrize(
    ("cell", "images"),
    [
        ("a.png", ["a.png"]),
        ('["a.png", "b, c.png"]', ["a.png", "b, c.png"]),
        ("[a.png]", None),
        ("", None),
        ("'=a.png", ["=a.png"]),
    ],
)
def test_a_csv_names_one_picture_or_a_json_list(cell: str, images: Any, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f'post_id,images\na,"{cell.replace(chr(34), chr(34) * 2)}"\n')
    row = next(stream(tmp_path / "m.csv", COLUMNS))
    assert row.cells is not None
    found = row.cells.get("images")
    assert (found if isinstance(found, list) else None) == images


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", b"", "suffix '.txt'; one of .jsonl, .json, .parquet, .csv"),
        ("m.parquet", b"PAR1", "cannot be read as Parquet"),
        ("m.csv", b'post_id\na\n"b"c\n', r"m\.csv:3: cannot be read as CSV"),
        ("m.csv", b"post_id\na\n\xff\n", r"m\.csv:3: cannot be read as CSV: .*0xff"),
        ("m.csv", b"post_id,post_id\n1,2\n", "the column 'post_id' stands there 2 times"),
        ("m.jsonl", b"\n" + b"x" * 2_000, r"m\.jsonl:2: the line has more than 1,000 bytes"),
        ("m.csv", b"post_id\n" + b"x" * 2_000, r"m\.csv:2: the line has more than 1,000 bytes"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_named(
    name: str, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_LONGEST_LINE", 1_000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        list(stream(tmp_path / name, COLUMNS))


def test_of_a_large_file_one_row_group_is_in_memory(tmp_path: Path) -> None:
    """Arrow counts what it holds."""
    texts = pa.array([f"{k:0100}" for k in range(200_000)])
    pq.write_table(pa.table({"post_id": texts, "title": texts}), tmp_path / "m.parquet", row_group_size=5_000)
    highest, before = 0, pa.total_allocated_bytes()
    for k, _ in enumerate(stream(tmp_path / "m.parquet", COLUMNS)):
        if k % 1_000 == 0:
            highest = max(highest, pa.total_allocated_bytes() - before)
    assert highest < texts.nbytes * 2 / 4
