"""Keys let in those whom the file names, as often as it says, and nobody learns one from it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from fastapi import HTTPException
from fastapi.testclient import TestClient

from cli.main import main
from model.errors import ConfigError
from scoring.app import create_app
from scoring.keys import Client, Entry, Keys, new_key, read_keys
from scoring.settings import load_service
from steps.paths import REPOSITORY
from tests.support.service import Stub, post


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def write(path: Path, content: str) -> None:
    """In place of the file, as editors do; the time is another though the clock may not have gone on."""
    part = path.with_name("part")
    part.write_text(content, encoding="utf-8")
    part.chmod(0o600)
    part.replace(path)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def app(path: Path, **given: Any) -> TestClient:
    return TestClient(create_app(Stub(), load_service({"keys": str(path)} | given)))


def send(service: TestClient, headers: dict[str, str], n: int = 1) -> Any:
    return service.post("/score", json={"posts": [post(str(k)) for k in range(n)]}, headers=headers)


# --- the file


def test_the_file_has_the_hash_and_not_the_key_and_is_its_owner_s(path: Path) -> None:
    key = new_key(path, "newsroom", 60)
    text = path.read_text(encoding="utf-8")
    assert key not in text
    assert yaml.safe_load(text) == {
        "newsroom": {"sha256": [hashlib.sha256(key.encode()).hexdigest()], "posts_per_minute": 60}
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) >= 43


def test_a_second_key_of_a_client_lets_both_in_until_one_is_removed(path: Path) -> None:
    first, other = new_key(path, "a", 5), new_key(path, "b")
    second = new_key(path, "a")
    assert read_keys(path)["a"].posts_per_minute == 5
    keys = Keys(path)
    assert [keys.client_of(key).name for key in (first, second, other)] == ["a", "a", "b"]  # type: ignore[union-attr]
    held = yaml.safe_load(path.read_text(encoding="utf-8"))
    held["a"]["sha256"].remove(hashlib.sha256(first.encode()).hexdigest())
    write(path, yaml.safe_dump(held))
    assert [keys.client_of(key) is None for key in (first, second, other)] == [True, False, False]


def test_keys_that_are_made_at_one_time_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda k: new_key(path, f"client-{k % 4}"), range(16)))
    keys = Keys(path)
    assert all(keys.client_of(key) for key in made)
    assert len(set(made)) == 16


@pytest.mark.parametrize("name", ["", "a b", "../a", "a/b", "a\nb", "ä", "a" * 65, "-a", "a\0"])
def test_a_name_that_could_not_stand_in_a_log_is_refused(path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        new_key(path, name)
    assert not path.exists()


HASH = "a" * 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected|valid dictionary"),
        ("{}", "holds no key"),
        ("a: [", "no YAML in UTF-8 that can be read: line"),
        ("a: {}", "a.sha256: is missing"),
        ("a: {sha256: []}", "a.sha256: "),
        ("a: {sha256: [secret]}", "a.sha256.0: "),
        (f"a: {{sha256: [{HASH}], posts_per_minute: 0}}", "a.posts_per_minute: "),
        (f"a: {{sha256: [{HASH}], posts_per_minute: yes}}", "a.posts_per_minute: "),
        (f"a: {{sha256: [{HASH}], posts: 1}}", "a.posts: unknown key"),
        (f"a: {{sha256: [{HASH}]}}\nb: {{sha256: [{HASH}]}}", "one key stands there for two clients"),
        (f"a: {{sha256: [{HASH}]}}\na: {{sha256: [{HASH}]}}", "no YAML"),
        ("!!python/object/apply:os.system [id]", "no YAML"),
    ],
)
def test_a_file_that_is_none_of_keys_is_one_message(path: Path, content: str, message: str) -> None:
    write(path, content)
    with pytest.raises(ConfigError, match=message) as caught:
        Keys(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_file_that_others_may_read_or_write_is_refused_with_the_remedy(path: Path, mode: int) -> None:
    key = new_key(path, "a")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        Keys(path)
    path.chmod(0o600)
    assert Keys(path).client_of(key) is not None


def test_a_file_that_is_not_there_or_is_a_folder_is_one_message(path: Path) -> None:
    with pytest.raises(ConfigError, match="make a first key"):
        Keys(path)
    path.mkdir()
    with pytest.raises(ConfigError, match="is no file"):
        Keys(path)


def test_a_file_that_was_broken_lets_in_those_of_before_and_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = new_key(path, "a")
    keys, good = Keys(path), path.read_text(encoding="utf-8")
    for breaks in (lambda: write(path, "a: ["), lambda: path.chmod(0o644), path.unlink):
        breaks()
        assert keys.client_of(key) is not None
        assert keys.client_of("agentps_x") is None
        assert "the keys that were read before go on" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 3  # once each, not for each request
    write(path, good.replace("a:", "b:", 1) if "\na:" not in good else good.replace("\na:", "\nb:"))
    assert keys.client_of(key).name == "b"  # type: ignore[union-attr]


def test_a_change_within_the_clock_s_tick_is_seen(path: Path) -> None:
    first = new_key(path, "a")
    keys, before = Keys(path), path.stat()
    path.unlink()
    second = new_key(path, "a")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if path.stat().st_ino != before.st_ino:
        assert keys.client_of(second) is not None
        assert keys.client_of(first) is None


# --- the rate, by hand: 60 posts a minute are one in a second


def test_what_is_left_grows_with_the_seconds_and_no_further_than_a_minute() -> None:
    clock = Clock()
    client = Client("a", Entry(sha256=[HASH], posts_per_minute=60), clock)
    client.take(60)
    with pytest.raises(HTTPException) as caught:
        client.take(1)
    assert (caught.value.status_code, caught.value.headers) == (429, {"Retry-After": "1"})
    clock.at += 1
    client.take(1)
    clock.at += 3600
    client.take(60)
    with pytest.raises(HTTPException):
        client.take(1)


def test_a_large_request_is_taken_whole_and_waited_for_after() -> None:
    clock = Clock()
    client = Client("a", Entry(sha256=[HASH], posts_per_minute=6), clock)
    client.take(1)
    client.take(26, held=1)  # of 6 that are left: 20 too many, of 10 seconds each
    with pytest.raises(HTTPException) as caught:
        client.take(1)
    assert caught.value.headers == {"Retry-After": "210"}
    clock.at += 209
    with pytest.raises(HTTPException):
        client.take(1)
    clock.at += 2
    client.take(1)


def test_threads_take_no_more_than_there_is() -> None:
    client = Client("a", Entry(sha256=[HASH], posts_per_minute=100), Clock())

    def take(_: int) -> bool:
        try:
            client.take(1)
        except HTTPException:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(400))) == 100
    unlimited = Client("a", Entry(sha256=[HASH]), Clock())
    unlimited.take(10**9)


def test_a_file_that_is_read_again_gives_nobody_a_new_minute(path: Path) -> None:
    key = new_key(path, "a", 3)
    keys = Keys(path, Clock())
    client = keys.client_of(key)
    assert client is not None
    client.take(3)
    new_key(path, "b")
    again = keys.client_of(key)
    assert again is not None
    with pytest.raises(HTTPException):
        again.take(1)
    new_key(path, "a", 4)
    more = keys.client_of(key)
    assert more is not None
    more.take(4)


# --- the service


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer agentps_wrong"},
        {"Authorization": f"Bearer {HASH}"},
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Digest x"},
        {"X-API-Key": "KEY"},
        {"Cookie": "key=KEY"},
        {"Authorization": "KEY"},
        {"Authorization": "Bearer KEYx"},
        {"Authorization": "Bearer \xff\xfe"},
        {"Authorization": "Bearer " + "a" * 10_000},
    ],
)
def test_who_shows_no_known_key_is_refused_before_the_body_is_read(
    path: Path, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    key = new_key(path, "a")
    given = {name: value.replace("KEY", key).encode("latin-1") for name, value in headers.items()}
    service = app(path)
    answer = service.post("/score", content=b"no json", headers=given)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Authorization: Bearer KEY" in answer.json()["detail"]
    assert key not in answer.text + caplog.text
    hashed = read_keys(path)["a"].sha256[0]
    assert send(service, bearer(hashed)).status_code == 401  # the file's content is no key
    assert send(service, bearer(key)).status_code == 200
    assert send(service, {"authorization": f"bearer {key}"}).status_code == 200


def test_pages_without_posts_need_no_key_and_the_document_tells_how_one_is_sent(path: Path) -> None:
    new_key(path, "a")
    service = app(path)
    for page in ("/ready", "/healthz", "/metrics"):
        assert service.get(page).status_code == 200
    document = service.get("/openapi.json").json()
    (scheme,) = document["paths"]["/score"]["post"]["security"][0]
    assert document["components"]["securitySchemes"][scheme] == {"type": "http", "scheme": "bearer"}
    for status in ("401", "429"):
        assert status in document["paths"]["/score"]["post"]["responses"]


def test_a_client_beyond_its_rate_is_told_when_and_costs_no_other(path: Path) -> None:
    key, other = new_key(path, "a", 3), new_key(path, "b", 3)
    service = app(path)
    assert send(service, bearer(key), 3).status_code == 200
    late = send(service, bearer(key))
    assert late.status_code == 429
    assert 1 <= int(late.headers["Retry-After"]) <= 20
    assert "a may send 3 posts a minute" in late.json()["detail"]
    assert send(service, bearer(other), 2).status_code == 200


def test_a_request_that_is_refused_counts_too(path: Path) -> None:
    key = new_key(path, "a", 2)
    service = app(path)
    found = [service.post("/score", content=b"{", headers=bearer(key)).status_code for _ in range(3)]
    assert found == [415, 415, 429]


def test_a_key_that_is_made_or_removed_counts_from_the_next_request_on(path: Path) -> None:
    first = new_key(path, "a")
    service = app(path)
    second = new_key(path, "b")
    assert send(service, bearer(second)).status_code == 200
    write(path, yaml.safe_dump({"b": read_keys(path)["b"].model_dump()}))
    assert send(service, bearer(first)).status_code == 401
    assert send(service, bearer(second)).status_code == 200


def test_many_requests_while_the_file_changes_are_all_answered(path: Path) -> None:
    key = new_key(path, "a")
    service, ended = app(path), threading.Event()

    def change() -> None:
        for number in range(30):
            new_key(path, f"c{number}")
        ended.set()

    changing = threading.Thread(target=change)
    changing.start()
    found = set()
    while not ended.is_set():
        found.add(send(service, bearer(key)).status_code)
    changing.join()
    assert found <= {200}


# --- without keys


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "", "127.0.0.1.nip.io", "0", "::ffff:1.2.3.4"]
)
def test_an_address_of_others_is_not_listened_to_without_keys(host: str, path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agentps key NAME|service\.host"):
        load_service({"host": host})
    if host:
        assert load_service({"host": host, "keys": str(path)}).keys == str(path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_loopback_nobody_needs_a_key(host: str) -> None:
    assert load_service({"host": host}).keys is None
    assert send(TestClient(create_app(Stub(), load_service({"host": host}))), {}).status_code == 200


# --- the command


def run(*words: str) -> Any:
    return CliRunner().invoke(main, list(words))


def test_the_command_prints_a_key_that_the_service_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "run.yaml"
    config.write_text("service:\n  host: 0.0.0.0\n  keys: keys.yaml\n", encoding="utf-8")
    done = run("key", "newsroom", "--posts-per-minute", "5", "-c", str(config))
    assert done.exit_code == 0, done.output
    keys = Keys(tmp_path / "keys.yaml")
    client = keys.client_of(done.output.strip())
    assert client is not None
    assert (client.name, client.entry.posts_per_minute) == ("newsroom", 5)


def test_the_command_without_a_file_says_which_option_names_one() -> None:
    done = run("key", "newsroom")
    assert done.exit_code == 1
    assert "service.keys names no file" in done.output


def test_the_page_s_options_are_those_of_the_service_and_its_command_is_ours() -> None:
    page = (REPOSITORY / "docs" / "service-security.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        load_service(yaml.safe_load(block)["service"])
    command = re.search(r"^agentps (key .*?)  #", page, re.MULTILINE)
    assert command is not None
    assert run(*command[1].split(), "--help").exit_code == 0
