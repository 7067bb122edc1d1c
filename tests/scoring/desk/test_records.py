"""What the desk keeps in memory and in its indexes is what the slow, plain computation of all that is stored says."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from scoring.desk import policies, queue, reviews
from scoring.desk.policies import Application
from scoring.desk.posts import Posts
from scoring.desk.quality import Looks
from scoring.desk.queue import Filters
from scoring.desk.records import ACTIONS, Records
from scoring.desk.work import Desk, Shares
from steps.retrain.reviewed import GOLD, LABELS
from steps.retrain.stored import CURRENT
from tests.support.desk import desk_in, join, put, record


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with desk_in(tmp_path, policy={"audit": {"flag": 1.0, "pass": 0.5}}, shares=Shares(second=0.5, gold=0.3)) as desk:
        yield desk


def plain(desk: Desk) -> dict[str, tuple[object, ...]]:
    """Of each current record with a score what the columns say, from the store's own methods."""
    labels = {row.post_id: (row.input_sha256, row.label) for row in desk.rows(select(LABELS))}
    ids = [row.post_id for row in desk.rows(select(CURRENT.c.post_id))]
    found = {}
    for post_id, (said, outcome) in desk.store.current(ids, desk.model_name).items():
        if said.score is not None and outcome is not None:
            sha, label = labels.get(post_id, (None, None))
            known = label if sha == said.input_sha256 else None
            likely = outcome.audit_probability if outcome.for_people else 0.0
            found[post_id] = (
                said.score,
                said.model_version,
                outcome.action,
                likely,
                known,
                said.answers,
                said.decisions,
            )
    return found


def remembered(records: Records) -> dict[str, tuple[object, ...]]:
    found = records.read()
    return {
        found.ids[found.place[n]]: (
            found.score[n],
            found.versions[found.version[n]],
            ACTIONS[found.action[n]],
            found.probability[n],
            None if np.isnan(found.label[n]) else int(found.label[n]),
            *found.said[found.group[n]],
        )
        for n in range(len(found.score))
    }


def changes(desk: Desk, rng: np.random.Generator) -> Iterator[str]:
    """A life of a store: each step's name, when it is done."""
    ann, bob, olga = join(desk, "ann"), join(desk, "bob"), join(desk, "olga", "owner")
    now = datetime.now(UTC) - timedelta(hours=5)
    yield "empty"
    scores = rng.random(60).tolist()
    put(desk, *(record(f"p{n}", scores[n], at=now) for n in range(60)))
    yield "first records"
    for user in (ann, bob, ann, bob):
        for _ in range(8):
            if (claim := queue.claim_next(desk, user, Filters(queue="audit"))) is not None:
                shown = desk.value(queue.current(desk, claim.post_id))
                reviews.decide(desk, user, claim.nonce, shown, int(rng.integers(2)), {"kind": int(rng.integers(3))})
        yield f"{user.name} has looked"
    reviews.undo(desk, bob)
    yield "taken back"
    changed = [
        record(f"p{n}", float(rng.random()), at=now + timedelta(hours=1), input_sha256="1" * 64) for n in range(30)
    ]
    put(desk, *changed)
    yield "other contents"
    put(desk, *(record(f"p{n}", float(rng.random()), version="2", at=now + timedelta(hours=2)) for n in range(20, 50)))
    put(desk, record("p3", None, at=now + timedelta(hours=3)), record("p59", None, at=now + timedelta(hours=3)))
    yield "another version, and errors"
    put(desk, *(record(f"p{n}", scores[n], at=now + timedelta(hours=4)) for n in range(8)))
    yield "back to what they were"
    policies.propose(desk, olga, "n", policies.changed(desk.policy, 60, []), "more")
    policies.confirm(desk, olga, 1)
    Application(desk).start().join()
    yield "decided anew"


def test_columns_in_memory_are_what_the_store_holds_after_each_kind_of_change(desk: Desk) -> None:
    records, looks = Records(desk), Looks(desk)
    for step in changes(desk, np.random.default_rng(0)):
        assert remembered(records) == plain(desk), step
        fresh_pairs, fresh_hits = Looks(desk).read()
        pairs, hits = looks.read()
        assert (sorted(map(str, pairs)), sorted(hits)) == (sorted(map(str, fresh_pairs)), sorted(fresh_hits)), step
    assert len(pairs) > 3


def test_a_label_that_becomes_known_counts_reviews_of_before(desk: Desk) -> None:
    from scoring.desk.lead import add_gold

    looks, ann = Looks(desk), join(desk, "ann")
    put(desk, record("a", 0.9))
    claim = queue.claim_post(desk, ann, "a")
    reviews.decide(desk, ann, claim.nonce, desk.value(queue.current(desk, "a")), 1, {})
    assert looks.read()[1] == []
    row = {"model_name": "m", "post_id": "a", "label": 0, "answers": {}, "why": "x", "added_by": "lea"}
    add_gold(desk, [row | {"at": datetime.now(UTC)}])
    assert desk.value(select(GOLD.c.label)) == 0
    assert looks.read()[1] == [("ann", False)]


def test_of_very_many_records_the_newest_are_kept_and_the_first_day_is_told(desk: Desk) -> None:
    now = datetime.now(UTC)
    for day in range(30, 0, -1):
        put(desk, *(record(f"{day}-{n}", 0.7, at=now - timedelta(days=day)) for n in range(3)))
    records = Records(desk, most=30)
    found = records.read()
    assert len(found.score) == 30
    assert found.since == (now - timedelta(days=10)).date()
    for day in range(40, 60):
        put(desk, *(record(f"{day}-{n}", 0.7, at=now) for n in range(3)))
        found = records.read()
        assert 30 <= len(found.score) <= 63
    assert {"59-0", "50-2"} <= {found.ids[place] for place in found.place}


@pytest.mark.parametrize(
    "filters",
    [
        Filters(),
        Filters(day=date(2026, 3, 2)),
        Filters(queue="near"),
        Filters(queue="near", day=date(2026, 3, 1)),
        Filters(queue="audit", version="2"),
        Filters(queue="audit", answer=("watermark", "yes")),
    ],
)
def test_pages_of_a_queue_have_each_post_that_waits_once_in_order(
    desk: Desk, filters: Filters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of one digit, so that many posts share one; parts of seven, so that they end among such posts."""
    monkeypatch.setattr(queue, "_FIRST", 7)
    monkeypatch.setattr(queue, "_PART", 7)
    monkeypatch.setattr(queue, "_PATIENCE", 60)
    rng, ann = np.random.default_rng(1), join(desk, "ann")
    put(desk, *(
        record(
            f"p{n}", round(float(rng.random()), 1), version=str(1 + n % 2), at=datetime(2026, 3, 1 + n % 3, tzinfo=UTC),
            watermark="yes" if n % 4 else "no",
        ) for n in range(200)
    ))  # fmt: skip
    for _ in range(40):
        claim = queue.claim_next(desk, ann, Filters(queue="audit"))
        assert claim is not None
        reviews.decide(desk, ann, claim.nonce, desk.value(queue.current(desk, claim.post_id)), 1, {})
    looked_at = {row.post_id for row in desk.rows(select(LABELS))}
    expected = []
    for post_id, (said, outcome) in desk.store.current([f"p{n}" for n in range(200)]).items():
        assert said.score is not None
        assert outcome is not None
        fits = {"flagged": outcome.action == "flag", "audit": outcome.audit, "near": abs(said.score - 0.5) <= 0.1}
        if (
            fits[filters.queue]
            and post_id not in looked_at
            and filters.day in (None, said.scored_at.date())
            and filters.version in (None, said.model_version)
            and filters.answer in (None, ("watermark", said.answers["watermark"].answer))
        ):
            expected.append((said.score, post_id))
    found, after = [], None
    while True:
        page = queue.page(desk, ann, filters, after, limit=5)
        found += [(row.score, row.post_id) for row in page.rows]
        after = page.after
        if after is None:
            break
    assert sorted(found) == sorted(expected)
    assert [score for score, _ in found] == sorted((score for score, _ in found), reverse=True)


def test_a_page_does_not_wait_for_a_large_manifest_that_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with desk_in(tmp_path, [{"post_id": "a", "title": "A", "text": "", "images": []}]) as desk:
        posts = Posts(str(tmp_path / "posts.jsonl"), desk.posts._limits, now=itertools.count(0, 100).__next__)
        reading, load = threading.Event(), Posts._load

        def slowly(self: Posts, source: str) -> None:
            reading.wait(60)
            load(self, source)

        monkeypatch.setattr(Posts, "_load", slowly)
        with (tmp_path / "posts.jsonl").open("a") as file:
            file.write('{"post_id": "b", "title": "B", "text": "", "images": []}\n')
        assert posts.get("b") is None, "it is being read"
        assert posts.get("a") is not None
        reading.set()
        for _ in range(600):
            if posts.get("b") is not None:
                break
            threading.Event().wait(0.1)
        assert posts.slices() == []
        assert posts.get("b") is not None


def test_no_post_is_claimed_that_has_no_record(desk: Desk) -> None:
    from scoring.desk.people import RefusedError

    with pytest.raises(RefusedError, match="No record"):
        queue.claim_post(desk, join(desk, "ann"), "nobody")


def test_the_newest_version_is_the_one_that_scored_last_whatever_came_late(desk: Desk) -> None:
    now = datetime.now(UTC)
    put(desk, record("a", 0.5, version="9", at=now - timedelta(hours=2)))
    put(desk, record("b", 0.5, version="10", at=now - timedelta(hours=1)))
    put(desk, record("c", 0.5, version="9", at=now - timedelta(hours=3)))
    assert queue.newest_version(desk) == "10"
