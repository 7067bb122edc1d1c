from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.annotator import Server, completion, reply


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An annotator that always answers."""
    with Server(lambda number, body: reply(completion())) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        yield running
