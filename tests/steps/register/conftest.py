"""What these tests serve may read any path: what a server refuses is the subject of test_serving.py."""

from __future__ import annotations

import pytest

from steps.register.pyfunc import IMAGE_ROOT


@pytest.fixture(autouse=True)
def _any_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGE_ROOT, "/")
