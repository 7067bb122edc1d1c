"""The desk on the store that others write at the same time."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from sqlalchemy import select

from scoring.stream.run import stream
from steps.retrain.reviewed import LABELS
from tests.support.desk import POLICY, Browser, desk_in, join, served
from tests.support.stream import INGEST, PICTURE, StubScore, settings


def test_people_decide_while_a_stream_fills_the_same_store(tmp_path: Path) -> None:
    """Ten files of ten posts come one after the other; two people take what is there meanwhile."""
    inbox = tmp_path / "in"
    inbox.mkdir()
    with desk_in(tmp_path) as desk, served(desk) as address:
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(POLICY))
        chosen = settings(tmp_path, str(inbox), store=desk.store.name, policy=str(tmp_path / "policy.yaml"))

        def fill() -> None:
            for part in range(10):
                rows = [
                    {"post_id": f"{part}-{n}", "title": "t", "text": "x" * n, "images": [PICTURE]} for n in range(10)
                ]
                (inbox / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                stream(chosen, INGEST, StubScore(), lambda _: None, once=True)

        pool = ThreadPoolExecutor(1)
        filling = pool.submit(fill)
        people = [Browser(address).enter(join(desk, name)) for name in ("ann", "bob")]
        done = 0
        while True:
            last = filling.done()
            for person in people:
                person.go("/queue?queue=audit").raise_for_status()
                person.fill("/next").raise_for_status()
                while 'action="/decide"' in person.page:
                    person.fill("/decide", what="negative").raise_for_status()
                    done += 1
            if last:
                break
            time.sleep(0.3)  # the desk takes 600 requests a minute of one user
        filling.result()
        pool.shutdown()
        assert done == len(desk.rows(select(LABELS))) == 100
