"""A base URL is all that tells one kind of endpoint from another."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import AnnotationError
from model.task import load_task
from steps.annotate.client import AnnotationResult, annotate_posts
from steps.annotate.ledger import Ledger
from tests.support.annotator import Server, completion, make_posts, reply, settings_of


@pytest.fixture
def server() -> Server:
    return Server(lambda number, body: reply(completion()))


def run(folder: Path, base_url: str | None = None) -> AnnotationResult:
    with Ledger(f"sqlite:///{folder / 'ledger.db'}") as ledger:
        return annotate_posts(
            make_posts(folder, 1), load_task("ucc"), settings_of(), ledger, base_url=base_url, api_key=None,
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


def test_a_url_with_an_api_version_needs_a_key_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AnnotationError, match="no API key; set OPENAI_API_KEY"):
        run(tmp_path, "http://127.0.0.1:9/openai/deployments/mine?api-version=2024-10-21")
