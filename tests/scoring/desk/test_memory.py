"""What pages count over is read in parts: a page waits for a moment only, and has all of it or says that it has not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from scoring.desk import lead, quality, queue, records, reviews
from scoring.desk.memory import BeingReadError
from scoring.desk.quality import Looks
from scoring.desk.queue import Filters
from scoring.desk.records import Records
from scoring.desk.run import kept_up
from scoring.desk.work import Desk, Shares
from tests.scoring.desk.test_records import plain, remembered
from tests.support.desk import Browser, desk_in, join, put, record, served


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """100 records of ten writes, which are read one write at a time."""
    monkeypatch.setattr(records, "PART", 10)
    monkeypatch.setattr(quality, "PART", 10)
    with desk_in(tmp_path, policy={"audit": {"flag": 1.0, "pass": 0.5}}, shares=Shares(second=1.0, gold=0.0)) as made:
        for part in range(10):
            put(made, *(record(f"{part}-{n}", 0.9 - n / 10) for n in range(10)))
        yield made


def look_at(desk: Desk, name: str, count: int) -> None:
    person = join(desk, name)
    for _ in range(count):
        claim = queue.claim_next(desk, person, Filters(queue="audit"))
        assert claim is not None
        reviews.decide(desk, person, claim.nonce, desk.value(queue.current(desk, claim.post_id)), 1, {})


@pytest.mark.parametrize("path", ["/quality", "/quality?version=1", "/what-if", "/what-if?asked=1&precision=60"])
def test_a_page_that_would_wait_tells_how_far_it_is_and_comes_whole(
    desk: Desk, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lead, "SOON", 0.0)
    with served(desk) as address:
        person = Browser(address).enter(join(desk, "lea", "lead"))
        for share in range(10, 100, 10):
            answer = person.get(address + path)
            assert (answer.status_code, answer.headers["Refresh"], answer.headers["Retry-After"]) == (503, "1", "1")
            assert f"The records are being read: {share}%." in answer.text
            assert "<table" not in answer.text, "no count of a part"
        last = [person.get(address + path) for _ in range(2)]
        assert last[-1].status_code == 200, "the tenth part is whole, and so is the one that nothing is left for"
        assert "Refresh" not in last[-1].headers
        assert ("Of 100 posts" in last[-1].text) == path.startswith("/what-if")


def test_a_page_does_not_wait_for_somebody_who_reads(desk: Desk) -> None:
    with served(desk) as address:
        person = Browser(address).enter(join(desk, "lea", "lead"))
        with desk.records._one:
            assert "The records are being read: 0%." in person.get(address + "/what-if").text
        assert "Of 100 posts" in person.go("/what-if").text


def test_what_is_read_in_parts_while_the_store_changes_is_what_the_store_holds(desk: Desk) -> None:
    """After each part a post that was read already, one that was not, and a new one are scored; people look at some."""
    rng, memory, parts = np.random.default_rng(0), Records(desk), 0
    for name in ("ann", "bob"):
        look_at(desk, name, 12)
    while True:
        try:
            memory.read(0.0)
            break
        except BeingReadError:
            parts += 1
        if parts < 30:
            chosen = (f"0-{rng.integers(10)}", f"9-{rng.integers(10)}", f"new-{parts}")
            put(desk, *(record(post, float(rng.random()), version="2", input_sha256=f"{parts:064}") for post in chosen))
            look_at(desk, f"reviewer-{parts}", 2)
    assert parts > 10
    assert remembered(memory) == plain(desk)
    pairs, _ = Looks(desk).read()
    at_once = [row.second_by for row in desk.rows(select(reviews.LABELS)) if row.second_by is not None]
    assert len(pairs) == len(at_once) > 10


def test_reviews_are_read_in_parts_too(desk: Desk) -> None:
    look_at(desk, "ann", 30)
    looks, told = Looks(desk), []
    while True:
        try:
            looks.read(0.0)
            break
        except BeingReadError as error:
            told.append(str(error))
    assert told[0] == "The reviews are being read: 33%."


def test_what_pages_count_over_is_read_without_a_page(desk: Desk) -> None:
    from scoring.desk.app import Web

    web = Web(desk)
    with kept_up(web):
        until = time.monotonic() + 60
        while len(desk.records.ids) < 100 and time.monotonic() < until:
            time.sleep(0.02)
    assert len(desk.records.ids) == 100
