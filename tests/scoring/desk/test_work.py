"""Claims, reviews and what they come to; on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from model.errors import StoreError
from scoring.desk import queue, reviews
from scoring.desk.people import Limit, RefusedError, User, hashed, is_password
from scoring.desk.queue import Filters
from scoring.desk.work import Desk, Shares, drawn
from steps.retrain.reviewed import CLAIMS, LABELS, REVIEWS, reviewed_answers, reviewed_labels
from tests.support.desk import desk_in, join, put, record

Make = Callable[..., Desk]


@pytest.fixture(params=["sqlite", "postgresql"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql_url")
    with ExitStack() as opened:
        yield lambda **chosen: opened.enter_context(desk_in(tmp_path, url=url, **chosen))


def decide(desk: Desk, user: User, label: int | None, answers: dict[str, int] | None = None, **filters: Any) -> str:
    """Of the user's next post. Returns: the post."""
    claim = queue.claim_next(desk, user, Filters(**filters))
    assert claim is not None
    shown = desk.value(select(queue.CURRENT.c.history_id).where(queue.CURRENT.c.post_id == claim.post_id))
    reviews.decide(desk, user, claim.nonce, shown, label, answers or {})
    return claim.post_id


def labels(desk: Desk) -> dict[str, tuple[str, int | None]]:
    return {row.post_id: (row.state, row.label) for row in desk.rows(select(LABELS))}


def test_no_two_reviewers_have_a_post_at_once(make: Make) -> None:
    desk = make()
    put(desk, *(record(f"p{n}", 0.9) for n in range(12)))
    users = [join(desk, f"u{n}") for n in range(4)]
    found: list[str] = []

    def work(user: User) -> None:
        for _ in range(3):
            found.append(decide(desk, user, 1))

    threads = [threading.Thread(target=work, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"p{n}" for n in range(12))


def test_a_claim_is_given_up_after_a_while_and_its_form_is_refused_once_another_has_the_post(make: Make) -> None:
    desk = make()
    put(desk, record("a", 0.9))
    ann, ben = join(desk, "ann"), join(desk, "ben")
    claim = queue.claim_next(desk, ann, Filters())
    assert claim is not None
    assert queue.claim_next(desk, ben, Filters()) is None
    with pytest.raises(RefusedError, match="Another person"):
        queue.claim_post(desk, ben, "a")
    desk.store.do(
        lambda c: c.execute(update(CLAIMS).values(until=datetime.now(UTC) - timedelta(seconds=1))), writes=True
    )
    assert queue.claim_next(desk, ben, Filters()) is not None
    with pytest.raises(RefusedError, match="another person"):
        reviews.decide(desk, ann, claim.nonce, 1, 1, {})
    assert labels(desk) == {}


def test_a_post_that_changed_is_looked_at_again(make: Make) -> None:
    desk = make()
    put(desk, record("a", 0.9))
    ann = join(desk, "ann")
    decide(desk, ann, 1)
    put(desk, record("a", 0.8, version="2"))
    assert queue.claim_next(desk, ann, Filters()) is None, "another version says something of the same post"
    put(desk, record("a", 0.8, version="2", input_sha256="1" * 64, at=datetime.now(UTC)))
    assert decide(desk, ann, 0) == "a"
    assert labels(desk) == {"a": ("done", 0)}


def test_the_second_look_is_another_persons_and_a_third_decides(make: Make) -> None:
    desk = make(shares=Shares(second=1.0, gold=0.0))
    put(desk, record("a", 0.9), record("b", 0.8))
    ann, ben, lead, other = join(desk, "ann"), join(desk, "ben"), join(desk, "lea", "lead"), join(desk, "lou", "lead")
    assert [decide(desk, ann, 1, {"kind": 1, "watermark": 0}), decide(desk, ann, 1)] == ["a", "b"]
    assert labels(desk) == {"a": ("second", 1), "b": ("second", 1)}
    assert queue.claim_next(desk, ann, Filters()) is None, "not one's own"
    assert decide(desk, ben, 0, {"kind": 2, "watermark": 0}) == "a"
    assert decide(desk, lead, 1) == "b"
    assert labels(desk) == {"a": ("disputed", None), "b": ("done", 1)}
    for user in (ann, ben):
        with pytest.raises(RefusedError, match="waits for another person"):
            queue.claim_post(desk, user, "a")
    claim = queue.claim_post(desk, other, "a")
    assert claim.kind == "final"
    reviews.decide(desk, other, claim.nonce, 1, 0, {"kind": 2})
    assert labels(desk)["a"] == ("done", 0)
    assert reviewed_labels(_url(desk), "m") == {"a": 0, "b": 1}


def _url(desk: Desk) -> str:
    return desk.store._engine.url.render_as_string(hide_password=False)


def test_undo_takes_the_last_one_back_and_not_under_anothers_hands(make: Make) -> None:
    desk = make(shares=Shares(second=1.0, gold=0.0))
    put(desk, record("a", 0.9), record("b", 0.8))
    ann, ben = join(desk, "ann"), join(desk, "ben")
    with pytest.raises(RefusedError, match="nothing to undo"):
        reviews.undo(desk, ann)
    decide(desk, ann, 1)
    claim = reviews.undo(desk, ann)
    assert (claim.post_id, claim.kind, labels(desk)) == ("a", "first", {})
    reviews.decide(desk, ann, claim.nonce, 1, 0, {})
    assert labels(desk) == {"a": ("second", 0)}
    decide(desk, ben, 1)
    with pytest.raises(RefusedError, match="cannot be taken back"):
        reviews.undo(desk, ann)
    assert reviews.undo(desk, ben).kind == "second"
    assert labels(desk) == {"a": ("second", 0)}
    desk.undo = timedelta(seconds=-1)
    with pytest.raises(RefusedError, match="nothing to undo"):
        reviews.undo(desk, ann)


def test_who_skips_a_post_does_not_get_it_again_and_another_does(make: Make) -> None:
    desk = make()
    put(desk, record("a", 0.9))
    ann, ben = join(desk, "ann"), join(desk, "ben")
    decide(desk, ann, None)
    assert queue.claim_next(desk, ann, Filters()) is None
    assert decide(desk, ben, 1) == "a"


def test_the_database_refuses_to_change_or_delete_a_review(make: Make) -> None:
    desk = make()
    put(desk, record("a", 0.9))
    decide(desk, join(desk, "ann"), 1)
    for statement in (update(REVIEWS).values(label=0), delete(REVIEWS)):
        with pytest.raises(StoreError, match="append-only"):
            desk.store.do(lambda connection, statement=statement: connection.execute(statement), writes=True)
    assert desk.value(select(REVIEWS.c.label)) == 1


def test_filters_narrow_a_queue(make: Make) -> None:
    posts = [{"post_id": f"p{n}", "created_at": f"2026-0{1 + n % 2}-05"} for n in range(6)]
    desk = make(posts=posts, policy={"rules": [{"name": "r", "when": "kind == text", "action": "review"}]})
    old = datetime(2026, 1, 2, 23, 59, 59, tzinfo=UTC)
    put(
        desk,
        record("p0", 0.9, watermark="yes"),
        record("p1", 0.8, version="2", at=old),
        record("p2", 0.7, kind="text"),
        record("p3", 0.55),
        record("p4", 0.45, watermark="yes"),
        record("p5", 0.1),
    )
    ann = join(desk, "ann")

    def shown(**filters: Any) -> list[str]:
        return [row.post_id for row in queue.page(desk, ann, Filters(**filters)).rows]

    assert shown() == ["p0", "p1", "p3"]
    assert shown(queue="review") == ["p2"]
    assert shown(queue="near") == ["p3", "p4"]
    assert shown(queue="audit") == ["p0", "p1", "p3", "p4", "p5"]
    assert shown(answer=("watermark", "yes")) == ["p0"]
    assert shown(queue="audit", answer=("watermark", "yes")) == ["p0", "p4"]
    assert shown(version="2") == shown(day=date(2026, 1, 2)) == ["p1"]
    assert shown(slice="month 2026-02") == ["p1", "p3"]
    assert shown(slice="month 2026-02", version="1") == ["p3"]
    assert queue.versions(desk) == ["1", "2"]


def test_every_post_of_a_queue_is_on_one_page_of_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_PART", 3)
    desk = make()
    put(desk, *(record(f"p{n:02}", 0.9, watermark="yes" if n % 5 == 0 else "no") for n in range(20)))
    ann = join(desk, "ann")
    for filters, expected in ((Filters(), 20), (Filters(answer=("watermark", "yes")), 4)):
        found: list[str] = []
        after = None
        while True:
            page = queue.page(desk, ann, filters, after, limit=4)
            found += [row.post_id for row in page.rows]
            if (after := page.after) is None:
                break
        assert sorted(found) == sorted(set(found))
        assert len(found) == expected


def test_gold_is_mixed_in_once_for_each_reviewer_and_gives_no_label(make: Make) -> None:
    from scoring.desk.lead import add_gold

    desk = make(shares=Shares(second=0.0, gold=1.0))
    put(desk, record("a", 0.9), record("b", 0.8), record("c", 0.7))
    row = {"model_name": "m", "label": 0, "answers": {}, "why": "x", "added_by": "lea", "at": datetime.now(UTC)}
    add_gold(desk, [row | {"post_id": "b"}, row | {"post_id": "c"}])
    ann = join(desk, "ann")
    assert [decide(desk, ann, 1) for _ in range(3)] == ["b", "c", "a"]
    assert labels(desk) == {"a": ("done", 1)}
    from scoring.desk.quality import Looks, on_gold

    assert [(found.hits, found.n) for found in on_gold(Looks(desk).read()[1])] == [(0, 2)]


def test_answers_come_back_as_gold_of_the_questions(make: Make) -> None:
    desk = make()
    put(desk, record("a", 0.9), record("b", 0.8))
    ann = join(desk, "ann")
    decide(desk, ann, 1, {"kind": 2, "watermark": 1})
    decide(desk, ann, 0)
    assert reviewed_answers(_url(desk)) == {"a": {"kind": 2, "watermark": 1}}
    assert reviewed_labels(_url(desk), "m") == {"a": 1, "b": 0}
    assert reviewed_labels(_url(desk), "another") == {}
    with pytest.raises(RefusedError, match="is none"):
        reviews.decide(desk, ann, "", 1, 1, {"kind": 3})


def test_a_share_is_drawn_about_as_often_as_it_says_and_grows_with_itself() -> None:
    keys = [f"post-{n}" for n in range(4_000)]
    tenth, half = ({key for key in keys if drawn("second", key, share)} for share in (0.1, 0.5))
    assert tenth < half
    assert 0.08 < len(tenth) / len(keys) < 0.12, "three standard errors are 0.014"
    assert not {key for key in keys if drawn("second", key, 0.0)}


def test_passwords_are_salted_and_compared() -> None:
    one, two = hashed("correct horse battery"), hashed("correct horse battery")
    assert one != two
    assert "correct" not in one
    assert is_password("correct horse battery", one)
    assert not is_password("correct horse batterz", one)
    assert not is_password("anything", None)


def test_a_limit_fills_up_again_with_time() -> None:
    now = [0.0]
    limit = Limit(2, lambda: now[0])
    limit.take("a")
    limit.take("a")
    with pytest.raises(RefusedError, match="in 30 seconds"):
        limit.take("a")
    limit.take("b")
    now[0] = 30.0
    limit.take("a")
