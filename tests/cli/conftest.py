from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.annotator import Server, completion, make_posts, reply


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Twelve posts of train with gold for every third of them."""
    rows = []
    for number, post in enumerate(make_posts(tmp_path, 12).to_dict("records")):
        row = {key: post[key] for key in ("post_id", "title", "text", "split", "images")}
        if number % 3 == 0:
            row |= {"watermark": number % 2, "ugc": 1}
        rows.append(row)
    path = tmp_path / "posts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """An annotator that always answers."""
    with Server(lambda number, body: reply(completion())) as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        yield running
