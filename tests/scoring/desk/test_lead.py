"""What-if, policy versions and the audit trail."""

from __future__ import annotations

import csv
import io
import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sqlalchemy import select

from cli.main import main
from model.errors import ConfigError
from model.files import write_whole
from scoring.desk import export, policies, queue, reviews
from scoring.desk.people import RefusedError, User
from scoring.desk.policies import Application, changed, confirm, proposals, propose
from scoring.desk.queue import Filters
from scoring.desk.whatif import compare
from scoring.desk.work import Desk
from scoring.policy import Policy
from steps.annotate.gold import read_answers
from steps.retrain import reviewed
from steps.retrain.fresh import read_labels
from tests.support.desk import TASK, Browser, desk_in, join, policy_of, put, record, served

RULES = [
    {"name": "sure", "when": "score >= 0.75 and kind != text", "action": "flag"},
    {"name": "mark", "when": "watermark and 0.2 < score <= 0.6 or kind == text", "action": "review"},
]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with desk_in(tmp_path, policy={"allow": {"post_ids": ["p7"]}}) as made:
        rng = np.random.default_rng(0)
        put(
            made,
            *(
                record(
                    f"p{n}",
                    float(rng.choice([rng.random(), 0.2, 0.6, 0.75])),
                    watermark=str(rng.choice(["no", "yes"])),
                    kind=str(rng.choice(["photo", "drawing", "text"])),
                )
                for n in range(400)
            ),
        )
        yield made


def test_a_replay_says_what_the_policy_itself_says_of_each_record(desk: Desk) -> None:
    then = changed(desk.policy, 60, RULES)
    found = compare(desk, desk.records.read(), then)
    expected: dict[tuple[str, str], set[str]] = {}
    for record_, _ in desk.store.current([f"p{n}" for n in range(400)], "m").values():
        pair = desk.policy.decide(record_).action, then.decide(record_).action
        expected.setdefault(pair, set()).add(record_.post_id)
    assert {(move.before, move.after): move.posts for move in found.moves} == {
        pair: len(posts) for pair, posts in expected.items() if pair[0] != pair[1]
    }
    assert len(found.moves) >= 3
    for move in found.moves:
        assert {post for post, _ in move.listed} <= expected[move.before, move.after]
    for volume, side in ((found.now, 0), (found.then, 1)):
        counts: dict[str, int] = {}
        for pair, posts in expected.items():
            counts[pair[side]] = counts.get(pair[side], 0) + len(posts)
        assert volume.posts == counts
    assert found.then.figures is None, "nobody has labelled a post"


def test_a_replay_sees_what_came_since(desk: Desk) -> None:
    assert compare(desk, desk.records.read(), desk.policy).posts == 400
    put(desk, record("new", 0.9))
    assert compare(desk, desk.records.read(), desk.policy).posts == 401


def test_a_replay_has_figures_from_the_labels_of_drawn_posts(desk: Desk) -> None:
    """All posts are drawn and all are labelled: positive are exactly those at 0.6 and above."""
    ann = join(desk, "ann")
    while (claim := queue.claim_next(desk, ann, Filters(queue="audit"))) is not None:
        shown, score = desk.rows(
            select(queue.CURRENT.c.history_id, queue.CURRENT.c.score).where(queue.CURRENT.c.post_id == claim.post_id)
        )[0]
        reviews.decide(desk, ann, claim.nonce, shown, int(score >= 0.6), {})
    found = compare(desk, desk.records.read(), changed(desk.policy, 60, []))
    scores = np.array([said[0].score for said in desk.store.current([f"p{n}" for n in range(400) if n != 7]).values()])
    assert found.then.figures is not None
    assert found.then.figures.precision.value == pytest.approx((scores >= 0.6).sum() / (scores >= 0.3).sum())
    assert found.now.figures is not None
    assert found.now.figures.precision.value == pytest.approx((scores >= 0.6).sum() / (scores >= 0.5).sum())


def test_a_change_is_kept_with_its_reason_and_takes_effect_when_an_owner_confirms(desk: Desk, tmp_path: Path) -> None:
    lead, owner = join(desk, "lea", "lead"), join(desk, "olga", "owner")
    before, one, two = desk.policy, changed(desk.policy, 60, RULES), changed(desk.policy, 90, [])
    with pytest.raises(RefusedError, match="Say why"):
        propose(desk, lead, "1", one, " ")
    with pytest.raises(RefusedError, match="nothing would change"):
        propose(desk, lead, "1", changed(desk.policy, 80, []), "no reason")
    propose(desk, lead, "1", one, "more of it")
    with pytest.raises(RefusedError, match="sent before"):
        propose(desk, lead, "1", one, "more of it")
    propose(desk, lead, "2", two, "less of it")
    assert desk.policy is before
    assert not (tmp_path / "policy.yaml").exists()
    later, first = proposals(desk)
    assert (first["proposed_by"], first["why"], first["confirmed_by"]) == ("lea", "more of it", None)
    confirm(desk, owner, first["id"])
    assert desk.policy.version == one.version == first["version"]
    assert Policy.load(tmp_path / "policy.yaml").version == one.version
    assert proposals(desk)[1]["confirmed_by"] == "olga"
    for id_, message in ((first["id"], "before"), (later["id"], "Another policy"), (99, "no such")):
        with pytest.raises(RefusedError, match=message):
            confirm(desk, owner, id_)


def _confirm_and_die(folder: Path, at: int) -> None:
    """Killed at the beginning of this write of a file: 0: the note, 1: the file."""
    written = itertools.count()

    def writes(path: Path, content: str) -> None:
        if next(written) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        write_whole(path, content)

    policies.write_whole = writes  # type: ignore[attr-defined]
    with desk_in(folder, policy={"allow": {"post_ids": ["p7"]}}) as desk:
        confirm(desk, User("olga", "owner", hidden=False), 1)


@pytest.mark.parametrize(("at", "stored"), [(0, False), (1, True)])
def test_a_desk_that_is_killed_while_it_confirms_has_confirmed_or_not(
    desk: Desk, tmp_path: Path, at: int, stored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file, then = tmp_path / "policy.yaml", changed(desk.policy, 60, RULES)
    file.write_text(policies.text_of(desk.policy))
    propose(desk, join(desk, "lea", "lead"), "1", then, "more of it")
    killed = multiprocessing.get_context("fork").Process(target=_confirm_and_die, args=(tmp_path, at))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert Policy.load(file).version == desk.policy.version
    assert (proposals(desk)[0]["confirmed_at"] is not None) == stored
    policies.finish(desk.store, file)
    assert Policy.load(file).version == (then if stored else desk.policy).version
    assert ("had confirmed policy" in caplog.text) == stored
    policies.finish(desk.store, file)
    assert sorted(path.name for path in tmp_path.iterdir() if "policy" in path.name) == ["policy.yaml"]
    if stored:
        thread = Application(desk).go_on()
        assert thread is not None
        thread.join()
        assert desk.policy.version == then.version
        assert {said.policy_version for said, _ in desk.store.current([f"p{n}" for n in range(400)]).values()} == {
            then.version
        }
        assert Application(desk).go_on() is None, "nothing is left"
    else:
        assert Application(desk).go_on() is None
        confirm(desk, join(desk, "olga", "owner"), 1)
        assert Policy.load(file).version == then.version


def test_a_desk_that_is_killed_before_the_store_has_it_tells_so(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policies.text_of(desk.policy))
    (tmp_path / "policy.yaml.confirming").write_text(policies.text_of(changed(desk.policy, 60, RULES)))
    policies.finish(desk.store, file)
    assert "it is not in effect; confirm it again" in caplog.text
    assert Policy.load(file).version == desk.policy.version
    assert [path.name for path in tmp_path.iterdir() if "policy" in path.name] == ["policy.yaml"]


def test_another_desk_of_the_store_takes_over_what_was_confirmed(desk: Desk, tmp_path: Path) -> None:
    with desk_in(tmp_path, policy={"allow": {"post_ids": ["p7"]}}) as other:
        propose(desk, join(desk, "lea", "lead"), "1", changed(desk.policy, 60, []), "more")
        confirm(desk, join(desk, "olga", "owner"), 1)
        policies.refresh(other)
        assert other.policy.version == desk.policy.version


def test_stored_records_are_decided_anew_by_what_was_confirmed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "_PART", 150)
    desk.policy = changed(desk.policy, 60, RULES)
    application = Application(desk)
    application.start().join()
    assert (application.done, application.failed, application.running) == (400, None, False)
    for found, outcome in desk.store.current([f"p{n}" for n in range(400)], "m").values():
        assert outcome == desk.policy.decide(found)
    assert len(desk.store.history("p1")) == 2, "what was said before stays"


def test_a_rule_that_is_none_changes_nothing_and_says_why(desk: Desk) -> None:
    with served(desk) as address:
        lead = Browser(address).enter(join(desk, "lea", "lead"))
        answer = lead.go("/what-if?asked=1&precision=80&when+0=__import__('os')&action+0=flag")
        assert answer.status_code == 400
        assert "is not understood" in answer.text
        answer = lead.go("/what-if?asked=1&precision=70&when+0=watermark&action+0=review&name+0=mark")
        assert "90" not in answer.text.partition("<output")[2][:40]
        lead.fill("/what-if", why="because")
        assert "because" in lead.page
        assert "waits for an owner" in lead.page
    assert "mark" in proposals(desk)[0]["text"]
    with pytest.raises(ConfigError):
        changed(desk.policy, 60, [{"name": "x", "when": "unknown", "action": "flag"}])


# --- the audit trail ------------------------------------------------------------------------------------------

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "＝1", '=HYPERLINK("http://x")', "|x"]


def test_the_trail_exports_every_review_with_its_reason_and_no_formula(tmp_path: Path) -> None:
    with desk_in(tmp_path) as desk:
        put(desk, *(record(text, 0.9 - n / 100, watermark="yes") for n, text in enumerate(FORMULAS)), record("z", 0.1))
        ann = join(desk, "ann")
        for number, text in enumerate(FORMULAS):
            claim = queue.claim_post(desk, ann, text)
            reviews.decide(desk, ann, claim.nonce, number + 1, number % 2, {"watermark": 0, "kind": 2}, text)
        reviews.undo(desk, ann)
        rows = list(csv.DictReader(io.StringIO("".join(export.as_csv(desk)), newline="")))
        assert len(rows) == len(FORMULAS) + 1
        assert [row["kind"] for row in rows] == ["first"] * len(FORMULAS) + ["undo"]
        assert rows[-1]["undoes"] == str(len(FORMULAS))
        for text, row in zip(FORMULAS, rows, strict=False):
            assert row["post_id"] == f"'{text}"
            assert row["note"] == f"'{text.strip()}"
        found = {name: rows[0][name] for name in ("reviewer", "label", "action", "reasons", "review_kind")}
        assert found == {"reviewer": "ann", "label": "0", "action": "flag", "reasons": "p80", "review_kind": "text"}
        assert (rows[0]["model_watermark"], rows[0]["review_watermark"]) == ("yes", "no")
        assert rows[0]["policy_version"] == desk.policy.version
        table = pq.read_table(io.BytesIO(b"".join(export.as_parquet(desk))))
        assert table.num_rows == len(rows)
        assert table.column("post_id").to_pylist()[:-1] == FORMULAS


def test_an_export_is_handed_on_while_people_review(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part has the reviews that were there when it was read; nothing but a part is in memory."""
    monkeypatch.setattr(export, "_PART", 10)
    ann = join(desk, "ann")

    def review(count: int) -> None:
        for _ in range(count):
            claim = queue.claim_next(desk, ann, Filters(queue="audit"))
            assert claim is not None
            reviews.decide(desk, ann, claim.nonce, desk.value(queue.current(desk, claim.post_id)), 1, {}, "a note")

    review(20)
    parts = []
    for part in export.as_parquet(desk):
        parts.append(part)
        if len(parts) < 4:
            review(4)
    assert len(parts) >= 4
    assert pq.read_table(io.BytesIO(b"".join(parts))).column("id").to_pylist() == list(range(1, 29))
    assert sum(1 for _ in csv.reader(io.StringIO("".join(export.as_csv(desk)), newline=""))) == 33


@pytest.mark.parametrize(
    ("path", "action", "field", "most"),
    [
        ("/what-if?asked=1&precision=90", "/what-if", "why", 1_000),
        ("/post?id=p1", "/gold", "why", 1_000),
        ("/queue", "/decide", "note", 2_000),
    ],
)
def test_what_a_person_wrote_is_kept_whole_or_refused(
    desk: Desk, path: str, action: str, field: str, most: int
) -> None:
    """A browser lets a person type `most` characters, a new line being one, and sends two for it."""
    with served(desk) as address:
        lead = Browser(address).enter(join(desk, "lea", "lead"))
        lead.go(path)
        if action == "/decide":
            lead.fill("/next")
        before, given = lead.page, {"label": "1", "what": "positive"}
        answer = lead.fill(action, {field: "x" * 10_000} | given)
        assert answer.status_code == 400
        assert f"At most {most:,} characters are kept, and this has 10,000" in answer.text
        lead.page = before
        assert lead.fill(action, {field: "a\r\n" * (most // 2)} | given).status_code == 200
    kept = {"/what-if": reviewed.POLICIES.c.why, "/gold": reviewed.GOLD.c.why, "/decide": reviewed.REVIEWS.c.note}
    assert desk.value(select(kept[action])) == ("a\n" * (most // 2)).strip()


def test_a_replay_keeps_the_target_where_no_version_has_thresholds(tmp_path: Path) -> None:
    with desk_in(tmp_path) as desk, served(desk) as address:
        lead = Browser(address).enter(join(desk, "lea", "lead"))
        assert lead.go("/what-if?asked=1&precision=90&when+0=score+>+0.1&action+0=flag").status_code == 200
        assert "Of 0 posts" in lead.page


def test_labels_and_answers_come_back_through_the_store(tmp_path: Path) -> None:
    with desk_in(tmp_path) as desk:
        put(desk, record("a", 0.9), record("b", 0.8))
        ann = join(desk, "ann")
        for label, answers in ((1, {"kind": 2}), (0, {})):
            claim = queue.claim_next(desk, ann, Filters())
            assert claim is not None
            shown = desk.value(select(queue.CURRENT.c.history_id).where(queue.CURRENT.c.post_id == claim.post_id))
            reviews.decide(desk, ann, claim.nonce, shown, label, answers)
        url = f"sqlite:///{tmp_path}/scores.db"
        assert read_labels(url) == {"a": 1, "b": 0}
        assert read_answers(url, TASK) == {"a": {"kind": 2}}
        manifest, out = tmp_path / "posts.jsonl", tmp_path / "gold.jsonl"
        manifest.write_text('{"post_id": "a", "kind": null}\n{"post_id": "c", "kind": 1}\n')
        command = ["gold", "--posts", str(manifest), "--task", str(tmp_path / "task.yaml"), "--answers", url]
        done = CliRunner().invoke(main, [*command, "--out", str(out)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert [json.loads(line)["kind"] for line in out.read_text().splitlines()] == [2, 1]


def test_a_lead_sees_no_first_look_of_a_post_that_waits_for_a_second(tmp_path: Path) -> None:
    from scoring.desk.work import Shares

    with desk_in(tmp_path, shares=Shares(second=1.0, gold=0.0)) as desk:
        put(desk, record("a", 0.9))
        ann = join(desk, "ann")
        claim = queue.claim_next(desk, ann, Filters())
        assert claim is not None
        reviews.decide(desk, ann, claim.nonce, 1, 0, {}, "a secret note")
        with served(desk) as address:
            lead = Browser(address).enter(join(desk, "lea", "lead"))
            pages = [lead.go(path).text for path in ("/trail", "/post?id=a", "/queue")]
            pages.append(lead.fill("/next").text)
            assert "Agree: spam" in pages[-1]
            assert not any("secret note" in page or "not spam</td>" in page for page in pages)
            lead.fill("/decide", what="negative")
            assert "secret note" in lead.go("/trail").text
            assert "secret note" in lead.go("/post?id=a").text


def test_policy_of_the_tests_is_a_policy(tmp_path: Path) -> None:
    assert policy_of(tmp_path).point == "p80"
