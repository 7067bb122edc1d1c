"""What a test opened is closed after it, and no test waits long for a folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scoring.store import Store
from scoring.stream.folder import FolderSource


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder source, whose files are whole."""
    monkeypatch.setattr("scoring.stream.folder._LOOK", 0.02)
    monkeypatch.setattr(FolderSource, "settles", 0.2)


@pytest.fixture(autouse=True)
def _stores_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    opened: list[Store] = []
    open_ = Store.open

    def watched(url: str) -> Store:
        opened.append(open_(url))
        return opened[-1]

    monkeypatch.setattr(Store, "open", watched)
    yield
    for store in opened:
        store.close()
