"""What a test opened is closed after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scoring.store import Store


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
