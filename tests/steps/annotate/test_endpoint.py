"""A base URL is all that tells one kind of endpoint from another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from model.errors import AnnotationError
from model.task import load_task
from steps.annotate import batch, online
from steps.annotate.client import AnnotationResult, annotate_posts
from steps.annotate.ledger import Ledger
from tests.support.annotator import Loopback, Server, Silent, completion, error, make_posts, reply, settings_of


@pytest.fixture
def server() -> Server:
    return Server(lambda number, body: reply(completion()))


def run(folder: Path, base_url: str | None = None, **changes: Any) -> AnnotationResult:
    with Ledger(f"sqlite:///{folder / 'ledger.db'}") as ledger:
        return annotate_posts(
            make_posts(folder, 1), load_task("ucc"), settings_of(**changes), ledger, base_url=base_url, api_key=None,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, and a proxy that leads nowhere."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)


def test_an_endpoint_of_this_machine_is_reached_beside_a_proxy_by_the_environments_url_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        assert run(tmp_path).missing == 0
    ((path, headers),) = server.heads
    assert (path, headers["authorization"]) == ("/v1/chat/completions", "Bearer secret")


def test_a_url_with_an_api_version_is_asked_as_azure_wants_it(server: Server, tmp_path: Path) -> None:
    with server:
        url = server.base_url.replace("/v1", "/openai/deployments/mine?api-version=2024-10-21")
        assert run(tmp_path, url).missing == 0
    ((path, headers),) = server.heads
    assert path == "/openai/deployments/mine/chat/completions?api-version=2024-10-21"
    assert headers["api-key"] == "secret"
    assert server.requests[0]["messages"][0]["content"][0]["type"] == "text"


@pytest.mark.parametrize("url", ["http://host:port/v1", "http://[::1/v1"])
def test_a_base_url_that_is_none_is_named(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(AnnotationError, match=r"is no URL .*OPENAI_BASE_URL"):
        run(tmp_path)


@pytest.mark.parametrize("mode", ["online", "batch"])
def test_user_and_password_in_the_base_url_and_a_key_in_a_reply_are_in_no_message(mode: str, tmp_path: Path) -> None:
    answer = reply(error("Incorrect API key provided: sk-abcdefgh12345678"), 401)
    with Server(lambda number, body: answer) as server, pytest.raises(AnnotationError) as caught:
        run(tmp_path, server.base_url.replace("://", "://me:hunter2@"), mode=mode)
    assert "127.0.0.1" in str(caught.value)
    for secret in ("hunter2", "sk-abcdefgh12345678"):
        assert secret not in str(caught.value)
    with pytest.raises(AnnotationError, match="is no URL") as caught:
        run(tmp_path, "http://me:hunter2@host:port/v1")
    assert "hunter2" not in str(caught.value)


def test_a_url_with_an_api_version_needs_a_key_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AnnotationError, match="no API key; set OPENAI_API_KEY"):
        run(tmp_path, "http://127.0.0.1:9/openai/deployments/mine?api-version=2024-10-21")


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize(
    ("name", "proxy", "message"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "the proxy that ALL_PROXY names cannot be used: .*`pip install socksio`"),
        (
            "all_proxy",
            "socks5h://127.0.0.1:9",
            "the proxy that all_proxy names cannot be used: .*`pip install socksio`",
        ),
        ("HTTPS_PROXY", "ftp://user:secret@host:1", "HTTPS_PROXY names cannot be used: .*correct or unset it"),
        ("HTTPS_PROXY", "socks4://host:1", "HTTPS_PROXY names cannot be used: .*correct or unset it"),
        ("HTTP_PROXY", "http://user:secret@host:port", "HTTP_PROXY names cannot be used: .*correct or unset it"),
        ("HTTPS_PROXY", "http://user:secret@127.0.0.1:9", "check that the endpoint runs.*proxy that HTTPS_PROXY names"),
        ("ALL_PROXY", "127.0.0.1:9", "check that the endpoint runs.*proxy that ALL_PROXY names"),
        ("HTTPS_PROXY", "https://127.0.0.1:9", "check that the endpoint runs.*proxy that HTTPS_PROXY names"),
    ],
)
@pytest.mark.parametrize("mode", ["online", "batch"])
def test_a_proxy_that_cannot_be_used_or_is_dead_is_one_line_that_names_its_variable(
    name: str, proxy: str, message: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "_DOWN_AT_START_SECONDS", 0.1)
    monkeypatch.setattr(batch, "_HTTP_RETRIES", 0)
    monkeypatch.setitem(sys.modules, "socksio", None)  # as where the extra is not installed
    monkeypatch.setenv(name, proxy)
    with pytest.raises(AnnotationError, match=message) as caught:
        run(tmp_path, "https://annotator.invalid/v1", mode=mode)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_stops_the_run_and_is_named(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "_DOWN_AT_START_SECONDS", 0.1)
    with Proxy() as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.base_url.removesuffix("/v1"))
        with pytest.raises(AnnotationError, match=r"407.*check the (proxy|user and password).*PROXY") as caught:
            run(tmp_path, f"{scheme}://annotator.invalid/v1")
    assert "\n" not in str(caught.value)


class Proxy(Loopback):
    """One that lets nobody through."""

    def __init__(self) -> None:
        class Handler(Silent):
            def _refuse(self) -> None:
                self.send_response(407, "Proxy Authentication Required")
                self.send_header("content-length", "0")
                self.end_headers()
                self.close_connection = True

            do_POST = do_CONNECT = _refuse

        super().__init__(Handler)
