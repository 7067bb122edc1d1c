from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.annotate.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}") as opened:
        yield opened
