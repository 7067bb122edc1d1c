"""The desk on the store that others write at the same time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import func, select

from scoring.app import create_app
from scoring.desk.work import Desk
from scoring.record import Record
from scoring.score import Input
from scoring.settings import load_service
from scoring.stream.run import stream
from steps.retrain.reviewed import LABELS
from steps.retrain.stored import CURRENT
from tests.support.desk import POLICY, Browser, desk_in, join, served
from tests.support.service import Stub, data_url, listening, picture
from tests.support.stream import INGEST, PICTURE, StubScore, settings


def test_people_decide_while_a_stream_fills_the_same_store(tmp_path: Path) -> None:
    """Five files of ten posts come one after the other; two people take what is there meanwhile."""
    inbox = tmp_path / "in"
    inbox.mkdir()
    with desk_in(tmp_path) as desk, served(desk) as address:
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(POLICY))
        chosen = settings(tmp_path, str(inbox), store=desk.store.name, policy=str(tmp_path / "policy.yaml"))

        def fill() -> None:
            for part in range(5):
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
        assert done == len(desk.rows(select(LABELS))) == 50


class Deciding(Stub):
    """With a decision of each score, as a model with thresholds has them."""

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        return [
            record if record.score is None else record.model_copy(update={"decisions": {"p80": record.score >= 0.03}})
            for record in super().__call__(inputs, now)
        ]


@contextmanager
def streaming(folder: Path, url: str, service: str) -> Iterator[subprocess.Popen[bytes]]:
    """`agentps stream` in a process of its own: posts of a folder are scored by the service, and kept in the store."""
    (folder / "policy.yaml").write_text(yaml.safe_dump(POLICY))
    (folder / "in").mkdir()
    section: dict[str, Any] = {"source": str(folder / "in"), "store": url, "service": service, "batch": 3}
    section |= {"policy": str(folder / "policy.yaml"), "picture_waits": [0.01]}
    (folder / "run.yaml").write_text(yaml.safe_dump({"stream": section}))
    command = [sys.executable, "-c", "from cli.main import main; main()", "stream", "-c", str(folder / "run.yaml")]
    with (folder / "said.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"AGENTPS_HOME": str(folder)})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def arrive(folder: Path, part: int) -> None:
    posts = [
        {"post_id": f"{part}-{n}", "title": "t" * n, "text": "x", "images": [data_url(picture())]} for n in range(10)
    ]
    (folder / "made").write_text("".join(json.dumps(post) + "\n" for post in posts))
    (folder / "made").rename(folder / "in" / f"{part}.jsonl")


def looked_at(desk: Desk) -> int:
    return int(desk.value(select(func.count()).select_from(LABELS)))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_people_decide_about_posts_that_a_service_scores_meanwhile(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Posts are scored over HTTP, ten more when most are looked at; two people and a lead work until all are."""
    url = f"sqlite:///{tmp_path}/scores.db" if kind == "sqlite" else request.getfixturevalue("postgresql_url")
    stub, parts = Deciding(), 4
    with (
        listening(create_app(stub, load_service())) as service,
        desk_in(tmp_path, url=url) as desk,
        served(desk, kept_up=True) as address,
        streaming(tmp_path, url, service) as process,
    ):
        people = [Browser(address).enter(join(desk, name)) for name in ("ann", "bob")]
        lead = Browser(address).enter(join(desk, "lea", "lead"))
        until, arrived = time.monotonic() + 300, 0
        while looked_at(desk) < 10 * parts:
            assert process.poll() is None, (tmp_path / "said.log").read_text()
            assert time.monotonic() < until, (tmp_path / "said.log").read_text()
            if arrived < parts and looked_at(desk) > 10 * arrived - 5:
                arrive(tmp_path, arrived)
                arrived += 1
            for path in ("/quality", "/what-if", "/trail"):
                lead.go(path).raise_for_status()
            for person in people:
                person.go("/queue?queue=audit").raise_for_status()
                person.fill("/next").raise_for_status()
                while 'action="/decide"' in person.page:
                    person.fill("/decide", what="negative").raise_for_status()
            time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
        said = (tmp_path / "said.log").read_text()
        assert f"{10 * parts} posts scored" in said
        assert "locked" not in said
        lead.go("/quality")
        assert f"{10 * parts} of {10 * parts}" in lead.page
        flagged = desk.rows(select(CURRENT.c.post_id).where(CURRENT.c.action == "flag"))
        assert {row.post_id for row in flagged} == {f"{part}-{n}" for part in range(parts) for n in range(3, 10)}
    assert sorted(post for call in stub.calls for post in call) == sorted(
        f"{part}-{n}" for part in range(parts) for n in range(10)
    )
