"""From a message to a post and its pictures."""

from __future__ import annotations

import json
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from model.errors import ConfigError, ImageError
from model.images import ImageLimits
from scoring.fetch import Fetch
from scoring.settings import SqlSettings
from scoring.stream.retriever import FromSql, MissingError, UnusableError, picture_folder, reader
from scoring.stream.source import Message
from scoring.stream.waiting import AwayError
from tests.support.stream import PICTURE

LIMITS = ImageLimits(max_bytes=1000, max_pixels=1000)


def message(**cells: Any) -> Message:
    return Message("1", json.dumps(cells).encode())


@pytest.fixture
def database(tmp_path: Path) -> str:
    with sqlite3.connect(tmp_path / "posts.db") as connection:
        connection.execute("CREATE TABLE posts (id TEXT, title TEXT, body TEXT, pictures TEXT)")
        connection.executemany(
            "INSERT INTO posts VALUES (?, ?, ?, ?)",
            [("1", "t", "x", json.dumps([PICTURE])), ("2", None, None, "no JSON")],
        )
    connection.close()
    return f"sqlite:///{tmp_path / 'posts.db'}"


QUERY = "SELECT title, body AS text, pictures AS images FROM posts WHERE id = :post_id"


def test_a_query_gives_the_post_that_a_message_names(database: str) -> None:
    retrieve = FromSql(database, QUERY)
    assert retrieve(message(post_id=1)) == {"post_id": "1", "title": "t", "text": "x", "images": [PICTURE]}
    for post_id, reason in (("2", "a JSON list is expected of the query"), ("3' OR '1'='1", "gives no row")):
        with pytest.raises(UnusableError, match=reason):
            retrieve(message(post_id=post_id))


def test_a_database_that_does_not_answer_is_away(database: str, tmp_path: Path) -> None:
    retrieve = FromSql(database, QUERY)
    (tmp_path / "posts.db").rename(tmp_path / "away.db")
    with pytest.raises(AwayError, match=r"stream\.sql .*no such table"):
        retrieve(message(post_id="1"))
    (tmp_path / "away.db").rename(tmp_path / "posts.db")
    assert FromSql(database, QUERY)(message(post_id="1"))["title"] == "t"


def test_an_id_that_the_column_cannot_hold_is_no_fault_of_the_database(postgresql_url: str) -> None:
    retrieve = FromSql(
        postgresql_url.replace("postgresql://", "postgresql+psycopg://"),
        "SELECT 't' AS title, '' AS text, ARRAY['a.png'] AS images WHERE CAST(:post_id AS integer) = 1",
    )
    assert retrieve(message(post_id="1"))["images"] == ["a.png"]
    with pytest.raises(UnusableError, match="invalid input syntax"):
        retrieve(message(post_id="one"))
    retrieve.close()


def test_a_url_that_is_none_and_a_query_without_the_post_are_told() -> None:
    with pytest.raises(ConfigError, match=r"stream\.sql\.url: .*an URL of SQLAlchemy is expected"):
        FromSql("nonsense", QUERY)
    with pytest.raises(ValidationError, match="`:post_id` is expected in it"):
        SqlSettings(url="sqlite://", query="SELECT 1")


def test_only_what_may_be_there_later_is_missing(tmp_path: Path) -> None:
    """Another try costs the whole batch a wait."""
    read = reader(LIMITS, str(tmp_path))
    with pytest.raises(MissingError, match="no such file"):
        read("gone.png")
    (tmp_path / "large.png").write_bytes(b"x" * 1001)
    (tmp_path / "secret").symlink_to("/etc/passwd")
    for source, reason in {
        "large.png": "1,001 bytes",
        "../gone.png": "lies outside",
        "/etc/passwd": "lies outside",
        "secret": "lies outside",
        "data:image/png;base64,?": "damaged",
        "https://example.com/a.png": "an address on the web: none is on the list",
        "http://169.254.169.254/": "an address on the web",
        7: "int given",
    }.items():
        with pytest.raises(ImageError, match=reason) as told:
            read(source)
        assert not isinstance(told.value, MissingError), source
    with pytest.raises(ImageError, match="no path is read here"):
        reader(LIMITS, None)("gone.png")
    assert reader(LIMITS, None, fetch=lambda url, _: url.encode())("https://a/b") == b"https://a/b"


def test_a_picture_that_its_host_does_not_have_yet_is_missing() -> None:
    answers = [404, 200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.pop(0))
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    read = reader(LIMITS, None, Fetch([url]))
    with pytest.raises(MissingError, match="its host answered with status 404"):
        read(f"{url}/a.png")
    assert read(f"{url}/a.png") == b"x"
    with pytest.raises(ImageError, match="they are not listed") as told:
        read("https://example.com/a.png")
    assert not isinstance(told.value, MissingError)
    server.shutdown()
    server.server_close()
    with pytest.raises(MissingError, match="cannot be fetched from its host"):
        read(f"{url}/a.png")


def test_the_folder_of_pictures_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stream\.images .*none: is no folder: make it"):
        picture_folder(str(tmp_path / "none"), None)
    assert picture_folder(None, None) is None
    assert picture_folder(None, tmp_path) == str(tmp_path.resolve())


@pytest.fixture
def bucket() -> str:
    """An object store in this process, as fsspec has one."""
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe({"/bucket/pictures/a.png": b"png", "/bucket/secret": b"s", "/bucket/pictures/large": b"x" * 1001})
    return "memory://bucket/pictures"


def test_pictures_below_the_url_of_an_object_store_are_read_and_nothing_else_of_it(bucket: str) -> None:
    read = reader(LIMITS, picture_folder(bucket, None))
    assert read("a.png") == read(f"{bucket}/a.png") == b"png"
    assert len(read(PICTURE)) > 0
    for outside in ("../secret", "memory://bucket/secret", "/bucket/secret", "b/../../secret", "s3://other/a.png"):
        with pytest.raises(ImageError):
            read(outside)
    with pytest.raises(ImageError, match=r"1,001 bytes|1001"):
        read("large")


def test_a_picture_that_is_not_in_the_object_store_yet_may_come_later(bucket: str) -> None:
    with pytest.raises(MissingError, match="no such file"):
        reader(LIMITS, bucket)("b.png")


@pytest.mark.parametrize("url", ["https://cdn.example/x", "file:///etc", "local:///etc", "nowhere://x"])
def test_pictures_url_is_that_of_an_object_store(url: str) -> None:
    with pytest.raises(ConfigError, match=r"stream\.images"):
        picture_folder(url, None)
