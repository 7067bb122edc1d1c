"""The desk over real HTTP: a reviewer's day, forged forms, hostile posts, and who may do what."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

from model.images import ImageLimits
from model.video import FRAMES, frames
from scoring import files
from scoring.desk import export, policies, queue, reviews
from scoring.desk.people import Limit
from scoring.desk.work import Desk
from steps.retrain.reviewed import REVIEWS
from tests.support.clips import clip
from tests.support.desk import PASSWORD, Browser, desk_in, join, put, record, served


def posts(folder: Path, count: int) -> list[dict[str, object]]:
    Image.new("RGB", (64, 48), "red").save(folder / "red.png")
    return [
        {"post_id": f"post-{n}", "title": f"title {n}", "text": "text", "images": ["red.png"],
         "created_at": "2026-03-01T00:00:00+00:00"}
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with desk_in(tmp_path, posts(tmp_path, 6)) as made:
        put(made, *(record(f"post-{n}", 0.9 - n / 10, watermark="yes" if n % 2 else "no") for n in range(6)))
        yield made


@pytest.fixture
def address(desk: Desk) -> Iterator[str]:
    with served(desk) as found:
        yield found


def test_a_reviewer_signs_in_decides_and_undoes(desk: Desk, address: str) -> None:
    join(desk, "ann")
    ann = Browser(address)
    assert ann.go("/").url.endswith("/sign-in")
    assert ann.post(f"{address}/sign-in", {"name": "ann", "password": "wrong"}).status_code == 401
    ann.post(f"{address}/sign-in", {"name": "ann", "password": PASSWORD})
    assert "post-0" in ann.go("/queue").text
    shown = ann.fill("/next").text
    assert "title 0" in shown
    assert "Agree: spam" in shown
    assert "title 1" in ann.fill("/decide", what="positive", **{"answer watermark": "0"}).text
    assert "title 2" in ann.fill("/decide", what="negative").text
    again = ann.fill("/undo").text
    assert "title 1" in again
    ann.fill("/decide", what="skip")
    lead = Browser(address).enter(join(desk, "lea", "lead"))
    trail = lead.go("/trail").text
    assert [trail.count(said) for said in ("first: spam", "first: not spam", "undo of 2", ">skip<")] == [1, 1, 1, 1]


def test_a_form_counts_once_and_only_from_its_own_page(desk: Desk, address: str) -> None:
    ann = Browser(address).enter(join(desk, "ann"))
    ann.go("/queue")
    ann.fill("/next")
    form = ann.form("/decide") | {"what": "positive"}
    other = Browser(address).enter(join(desk, "ben"))
    assert other.post(f"{address}/decide", form).status_code == 403, "the token is of another session"
    assert ann.post(f"{address}/decide", form | {"token": ""}).status_code == 403
    assert ann.post(f"{address}/decide", form, headers={"Origin": "https://evil.example"}).status_code == 403
    assert ann.post(f"{address}/decide", form | {"shown": "999"}).status_code == 400
    assert ann.post(f"{address}/decide", form | {"what": "rubbish"}).status_code == 400
    assert ann.post(f"{address}/decide", form | {"answer kind": "3"}).status_code == 400
    assert ann.post(f"{address}/decide", form).status_code == 200
    assert ann.post(f"{address}/decide", form).status_code == 409, "sent again"
    other.go("/queue")
    other.fill("/next")
    theirs = form | {"nonce": other.form("/decide")["nonce"], "token": ann.form("/decide")["token"]}
    assert ann.post(f"{address}/decide", theirs).status_code == 409, "the claim is another's"
    assert Browser(address).post(f"{address}/decide", form).status_code == 401
    lead = Browser(address).enter(join(desk, "lea", "lead"))
    assert lead.go("/trail").text.count("first: ") == 1


@pytest.mark.parametrize(
    ("role", "pages"),
    [
        ("reviewer", ["/quality", "/what-if", "/trail", "/disputed", "/users", "/trail.csv", "/trail.parquet"]),
        ("lead", ["/users", "/trail.csv", "/trail.parquet"]),
    ],
)
def test_a_page_of_a_higher_role_is_refused(desk: Desk, address: str, role: str, pages: list[str]) -> None:
    someone = Browser(address).enter(join(desk, "someone", role))
    assert {page: someone.go(page).status_code for page in pages} == dict.fromkeys(pages, 403)


def test_an_action_of_a_higher_role_is_refused_with_a_good_token_too(desk: Desk, address: str) -> None:
    ann, lead = join(desk, "ann"), join(desk, "lea", "lead")
    token = {"token": ann.form_token}
    forms = {
        "/what-if": {"asked": "1", "why": "x", "nonce": "n", "precision": "90"},
        "/confirm": {"id": "1"},
        "/users": {"what": "role", "name": "ann", "role": "owner"},
        "/gold": {"id": "post-1", "label": "1", "why": "x"},
        "/errors": {"id": "1"},
    }
    browser = Browser(address).enter(ann)
    for action, form in forms.items():
        assert browser.post(address + action, form | token).status_code == 403, action
    browser = Browser(address).enter(lead)
    for action in ("/confirm", "/users"):
        assert browser.post(address + action, forms[action] | {"token": lead.form_token}).status_code == 403, action


def test_who_has_left_or_has_another_role_is_signed_out(desk: Desk, address: str) -> None:
    owner, ann = Browser(address).enter(join(desk, "olga", "owner")), Browser(address).enter(join(desk, "ann"))
    assert "ann" in owner.go("/users").text
    assert owner.fill("/users", what="role", name="ann", role="lead").status_code == 200
    assert ann.go("/queue").url.endswith("/sign-in")
    assert owner.fill("/users", what="leave", name="olga").status_code == 409, "the last owner stays"
    owner.go("/users")
    assert owner.fill("/users", what="leave", name="ann").status_code == 200
    refused = Browser(address).post(f"{address}/sign-in", {"name": "ann", "password": PASSWORD})
    assert refused.status_code == 401


def test_a_link_works_once_and_looking_at_it_does_not_use_it_up(desk: Desk, address: str) -> None:
    owner = Browser(address).enter(join(desk, "olga", "owner"))
    owner.go("/users")
    made = owner.fill("/users", what="add", name="ben", role="reviewer").text
    path = "/link/" + made.partition("/link/")[2].partition("<")[0]
    ben = Browser(address)
    assert [ben.go(path).status_code for _ in range(2)] == [200, 200]
    assert ben.fill(path, password="short").status_code == 400
    assert ben.fill(path, password=PASSWORD).url == f"{address}/"
    assert Browser(address).go(path).status_code == 401
    assert Browser(address).post(address + path, {"password": PASSWORD}).status_code == 401


def test_passwords_are_not_guessed_at_speed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoring.desk.app.Limit", lambda most: Limit(most, lambda: 0.0))  # no time passes
    join(desk, "ann")
    form = {"name": "ann", "password": "x"}
    with served(desk) as address:
        tries = [Browser(address).post(f"{address}/sign-in", form).status_code for _ in range(11)]
    assert tries == [401] * 10 + [429]


def test_a_host_that_is_not_the_desks_is_refused(address: str) -> None:
    assert Browser(address).get(f"{address}/sign-in", headers={"Host": "evil.example"}).status_code == 400


HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": '" onmouseover="alert(1)" x=\'',
    "template": "{{ 7 * 7 }} {% raw %}",
    "closing": "</textarea></title><img src=x onerror=alert(1)>",
    "right to left": "\u202egnp.exe\u2066",
    "huge word": "a" * 30_000,
    "half": "\ud800 half a character",
    "control": "a\x00b\x1b[31m",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_post_is_only_shown(tmp_path: Path, name: str) -> None:
    text = HOSTILE[name]
    id_ = f"id {text[:60]}"
    with desk_in(tmp_path, [{"post_id": id_, "title": text, "text": text, "images": ["a.svg"]}]) as desk:
        (tmp_path / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
        put(desk, record(id_, 0.9, version=text[:20] or "1"), record(f"{id_} 2", None))
        with served(desk) as address:
            lead = Browser(address).enter(join(desk, "lea", "lead"))
            pages = [lead.go("/queue").text, lead.fill("/next").text, lead.go("/errors").text]
            assert "Decide by" in pages[1] or "Agree" in pages[1]
            lead.go("/queue")
            lead.fill("/next")
            lead.fill("/decide", what="positive", note=text[:50].encode("utf-8", "replace").decode())
            answers = [lead.go(path) for path in ("/queue", "/trail", "/quality", "/what-if")]
            for page in [*pages, *(answer.text for answer in answers)]:
                assert "<script>alert" not in page
                assert "<img src=x" not in page
                assert 'onmouseover="alert' not in page.replace("&#34;", "")
                assert " 49 " not in page
            for answer in answers:
                assert answer.status_code == 200
                assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
                assert "unsafe" not in answer.headers["Content-Security-Policy"]
            assert lead.go(f"/picture?n=0&id={id_}").status_code == 404, "an SVG is no picture"


def test_a_picture_is_drawn_anew(desk: Desk, address: str, tmp_path: Path) -> None:
    ann = Browser(address).enter(join(desk, "ann"))
    answer = ann.go("/picture?id=post-1&n=0")
    assert (answer.headers["Content-Type"], answer.headers["X-Content-Type-Options"]) == ("image/jpeg", "nosniff")
    assert Image.open(io.BytesIO(answer.content)).size == (64, 48)
    assert [ann.go(path).status_code for path in ("/picture?id=post-1&n=1", "/picture?id=../x&n=0")] == [404, 404]
    assert Browser(address).go("/picture?id=post-1&n=0").url.endswith("/sign-in")


def test_a_video_is_shown_by_its_frames_behind_the_images_and_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def counted(data: bytes, limits: ImageLimits) -> list[bytes]:
        decoded.append(len(data))
        return frames(data, limits)

    monkeypatch.setattr(files, "frames", counted)
    colors = [np.full((48, 64, 3), 10 * k, np.uint8) for k in range(FRAMES)]
    (tmp_path / "clip.mp4").write_bytes(clip(FRAMES, (64, 48), content=colors))
    (tmp_path / "cut.mp4").write_bytes(b"no video")
    rows = [row | {"video": "clip.mp4"} for row in posts(tmp_path, 1)]
    rows.append({"post_id": "only", "title": "a clip", "text": "", "video": "clip.mp4"})
    rows.append({"post_id": "cut", "title": "a clip", "text": "", "video": "cut.mp4"})
    with desk_in(tmp_path, rows) as desk, served(desk) as address:
        put(desk, *(record(row["post_id"], 0.9) for row in rows))
        ann = Browser(address).enter(join(desk, "ann"))
        assert ann.go("/post?id=post-0").text.count("<img src=") == 1 + FRAMES
        assert ann.go("/post?id=only").text.count("<img src=") == FRAMES
        shown = [ann.go(f"/picture?id=post-0&n={n}") for n in range(1 + FRAMES)]
        assert all(answer.status_code == 200 for answer in shown)
        grey = [np.asarray(Image.open(io.BytesIO(answer.content))).mean() for answer in shown[1:]]
        assert grey == pytest.approx([10 * k for k in range(FRAMES)], abs=3)
        assert ann.go("/picture?id=only&n=15").content == shown[-1].content
        assert len(decoded) == 1
        assert ann.go(f"/picture?id=only&n={FRAMES}").status_code == 404
        refused = ann.go("/picture?id=cut&n=0")
        assert refused.status_code == 404
        assert "This picture cannot be shown" in refused.text
        assert not desk.posts.slices() or "one image" not in desk.posts.slices(), (
            "an image and a video are more than one"
        )


def test_pictures_are_veiled_until_the_user_asks(desk: Desk, address: str) -> None:
    ann, ben = Browser(address).enter(join(desk, "ann")), Browser(address).enter(join(desk, "ben"))
    assert 'class="pictures veiled"' in ann.go("/post?id=post-0").text
    ann.go("/settings")
    ann.fill("/hide", hidden="no")
    assert "veiled" not in ann.go("/post?id=post-0").text
    assert 'class="pictures veiled"' in ben.go("/post?id=post-0").text


def test_dead_letters_and_posts_without_a_score_are_shown(desk: Desk, address: str) -> None:
    from datetime import UTC, datetime

    from scoring.store import DeadLetter

    put(desk, record("broken", None))
    desk.store.bury([DeadLetter(source="s", message_id="1", body=b"x", reason="no JSON <b>", at=datetime.now(UTC))])
    lead = Browser(address).enter(join(desk, "lea", "lead"))
    text = lead.go("/errors").text
    assert "no JSON &lt;b&gt;" in text
    assert "image 1: no such file" in text
    assert "could not be scored" in lead.go("/post?id=broken").text
    lead.go("/errors")
    lead.fill("/errors")
    assert "no JSON" not in lead.page


def test_what_the_model_said_of_a_drawn_post_is_hidden_until_a_person_has_decided(tmp_path: Path) -> None:
    with desk_in(
        tmp_path, posts(tmp_path, 6), shows_scores=False, policy={"audit": {"flag": 1.0, "pass": 0.0}}
    ) as desk:
        put(desk, record("post-0", 0.9, version="1"), record("post-1", 0.41, at=datetime.now(UTC)))
        put(desk, record("post-0", 0.876, version="2", watermark="yes", at=datetime.now(UTC)))
        said = ("0.876", "0.9", "meter", "flagged by", "the policy: flag", "agree", "version 1", "data-said")
        with served(desk) as address:
            ann, lead = Browser(address).enter(join(desk, "ann")), Browser(address).enter(join(desk, "lea", "lead"))
            for page in (ann.go("/post?id=post-0"), ann.go("/queue?queue=audit"), ann.fill("/next")):
                assert "title 0" in page.text
                assert [word for word in said if word in page.text.lower()] == []
            assert "0.410" in ann.go("/post?id=post-1").text, "it was not drawn"
            assert "0.876" in lead.go("/post?id=post-0").text
            ann.go("/post?id=post-0")
            ann.fill("/decide", what="positive", **{"answer watermark": "1"})
            assert "0.876" in ann.go("/post?id=post-0").text
            assert [row.label for row in desk.rows(select(REVIEWS))] == [1]


def test_no_field_of_a_form_or_an_address_breaks_a_page(desk: Desk, address: str) -> None:
    lead = Browser(address).enter(join(desk, "lea", "lead"))
    lead.go("/queue")
    token = lead.form("/next")["token"]
    for value in ("", "%00", "%FF", "%ED%A0%80", "9" * 5_000, "[" * 900, "-1", "1e999", "nan_1", "inf_1"):
        for path in (
            "/post?id=", "/queue?version=", "/queue?slice=", "/queue?day=", "/queue?answer=", "/queue?queue=",
            "/queue?after=", "/errors?after=", "/errors?rest=", "/trail?before=", "/quality?days=", "/quality?version=",
            "/picture?id=post-0&n=", "/what-if?asked=1&precision=", "/what-if?asked=1&when+0=", "/link/",
        ):  # fmt: skip
            assert lead.get(address + path + value).status_code < 500, (path, value)
        for path, field in (
            ("/claim", "id"), ("/next", "version"), ("/decide", "nonce"), ("/decide", "shown"), ("/gold", "id"),
            ("/errors", "id"), ("/what-if", "nonce"), ("/users", "name"), ("/sign-in", "name"), ("/confirm", "id"),
        ):  # fmt: skip
            form = f"token={token}&label=1&why=x&what=positive&{field}={value}"
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            assert lead.post(address + path, data=form, headers=headers).status_code < 500, (path, field, value)
    assert lead.post(f"{address}/claim", {"token": token}).status_code == 404


def test_a_posts_page_and_the_trail_tell_the_threshold_and_since_when_a_policy_holds(desk: Desk, address: str) -> None:
    ann, olga = join(desk, "ann"), join(desk, "olga", "owner")
    claim = queue.claim_post(desk, ann, "post-5")  # scored 0.4
    reviews.decide(desk, ann, claim.nonce, desk.value(queue.current(desk, "post-5")), 1, {})
    policies.propose(desk, olga, "n", policies.changed(desk.policy, 60, []), "too much is missed")
    policies.confirm(desk, olga, 1)
    policies.Application(desk).start().join()
    scored, confirmed = (
        f"{time:%Y-%m-%d %H:%M}"
        for time in (desk.store.history("post-5")[0][0].scored_at, policies.proposals(desk)[0]["confirmed_at"])
    )
    page = Browser(address).enter(join(desk, "lea", "lead")).go("/post?id=post-5").text
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    told = [(" ".join(row[:2]), row[3], row[4], row[6:]) for row in rows if row[2:3] == ["1"] and len(row) == 8]
    assert told == [(scored, "0.400", "0.500", ["pass:", "p80"]), (confirmed, "0.400", "0.300", ["flag:", "p60"])]
    assert [(row["threshold"], row["action"], row["reasons"]) for row in export.rows(desk)] == [(0.5, "pass", "p80")]
