"""Whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.files import replacing, write_whole


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
