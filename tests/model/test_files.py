"""Whole or not at all, and one message where the disk is full."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from model.errors import DiskError
from model.files import disk_told, full_disk, replacing, write_whole
from tests.support.disk import files_end_at, small_disk


def test_a_file_takes_the_place_of_the_old_one_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a.txt", "old")
    write_whole(tmp_path / "new" / "a.txt", "né")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "né".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_where_the_writer_fails_the_old_content_stays(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"old")

    def write() -> None:
        with replacing(tmp_path / "a") as part:
            part.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with replacing(tmp_path / "folder") as part:
            part.mkdir()
            (part / content).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["folder", "folder/new"]


def test_a_link_is_followed_and_a_device_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "new"
    write_whole(Path("/dev/null"), "new")
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_is_one_message_and_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    expected = rf"^{path}: cannot be written: File too large; [\d,]+ bytes are free there: make room, .*run the same"
    with files_end_at(100), pytest.raises(DiskError, match=expected):
        write_whole(path, "new" * 100)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_disk_that_is_really_full_says_how_much_is_free(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        write_whole(disk / "a", "old")
        with pytest.raises(DiskError, match=r"disk/a: cannot be written: No space left on device; \d[\d,]* bytes are"):
            write_whole(disk / "a", "x" * 100_000)
        assert [(found.name, found.read_text()) for found in disk.iterdir()] == [("a", "old")]


def save_tokenizer(path: Path) -> None:
    Tokenizer(models.WordLevel({f"w{k}": k for k in range(10_000)}, "w0")).save(str(path))


def save_rows(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (cell)")
        connection.execute("INSERT INTO t VALUES (?)", ["x" * 200_000])


TABLE = pd.DataFrame({"a": np.random.default_rng(0).random(20_000)})
WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda path: save_file({"a": torch.rand(50_000)}, path),
    "torch": lambda path: torch.save({"a": torch.rand(50_000)}, path),
    "tokenizers": save_tokenizer,
    "parquet": TABLE.to_parquet,
    "csv": TABLE.to_csv,
    "copy": lambda path: shutil.copytree(Path(__file__).parents[1], path),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("really", [False, True])
def test_every_library_that_writes_for_us_is_understood(writer: str, really: bool, tmp_path: Path) -> None:
    """Some raise an OSError, some only words."""
    if really:
        with small_disk(tmp_path / "disk", "16k") as disk, pytest.raises(DiskError, match="disk/file: cannot be"):
            write_with(writer, disk / "file")
        return
    with files_end_at(10_000), pytest.raises(DiskError, match="file: cannot be written: "):
        write_with(writer, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def write_with(writer: str, path: Path) -> None:
    with replacing(path) as part:
        WRITERS[writer](part)


def test_a_database_on_a_full_disk_is_understood(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk, pytest.raises(DiskError), disk_told(disk / "a.db"):
        save_rows(disk / "a.db")


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(json.JSONDecodeError), disk_told(tmp_path):
        json.loads("{")
    with pytest.raises(FileNotFoundError), disk_told(tmp_path / "a"):  # of another file, which is only read
        (tmp_path / "other" / "b").read_text()
    assert full_disk(ValueError("no room for doubt"), tmp_path) is None


def test_a_place_that_is_not_ours_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"file/a/b: cannot be written: Not a directory; name a place that this user"):
        write_whole(tmp_path / "file" / "a" / "b", "new")
