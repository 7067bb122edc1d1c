"""The desk in a real Chromium: by keyboard alone, with a screen reader's rules, on a phone, against hostile posts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import func, select

from scoring.desk import lead, records
from scoring.desk.people import User
from scoring.desk.work import Desk, Shares
from steps.retrain.reviewed import LABELS, REVIEWS
from tests.support.desk import desk_in, join, put, record, served

pytestmark = pytest.mark.browser
#: A folder that gets the pages' pictures, for the docs.
PICTURES = os.environ.get("AGENTPS_DESK_PICTURES")
_LONG = 60_000.0
_ADDRESS: list[str] = []


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    place = shutil.which("chromium") or shutil.which("google-chrome")
    if place is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox"])
        yield browser
        browser.close()


def rows(folder: Path, count: int) -> list[dict[str, object]]:
    for number in range(3):
        Image.new("RGB", (240, 160), ("#c33", "#3c3", "#33c")[number]).save(folder / f"{number}.png")
    return [
        {"post_id": f"post-{n:02}", "title": f"Title {n}", "text": f"Some text of post {n} #tag",
         "images": [f"{n % 3}.png"], "created_at": f"2026-0{1 + n % 3}-01T00:00:00+00:00"}
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with desk_in(tmp_path, rows(tmp_path, 60), shares=Shares(second=1.0, gold=0.0)) as made:
        for n in range(60):
            put(made, record(f"post-{n:02}", 0.95 - n / 150, watermark="yes" if n % 2 else "no"))
        with served(made) as address:
            _ADDRESS[:] = [address]
            yield made


class Person:
    """A page in a context of its own. said: what the console told, and every dialog that opened."""

    def __init__(self, browser: Any, user: User, **chosen: Any) -> None:
        self.context = browser.new_context(**chosen)
        cookie = {"name": "agentps_desk", "value": user.token, "url": _ADDRESS[0]}
        self.context.add_cookies([cookie])
        self.page = self.context.new_page()
        self.page.set_default_timeout(_LONG)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))

    def go(self, path: str) -> Any:
        self.page.goto(_ADDRESS[0] + path)
        return self.page

    def press(self, key: str) -> None:
        """A key that leads to another page, or to this one again."""
        with self.page.expect_navigation():
            self.page.keyboard.press(key)

    def picture(self, name: str) -> None:
        if PICTURES:
            self.page.screenshot(path=f"{PICTURES}/{name}.png")


def test_fifty_posts_by_keyboard_alone_and_blindly_a_second_time(desk: Desk, chromium: Any) -> None:
    ann, ben = Person(chromium, join(desk, "ann")), Person(chromium, join(desk, "ben"))
    ann.go("/queue")
    ann.press("n")
    first = ann.page.inner_text("h1")
    for number in range(50):
        ann.page.keyboard.press("1")
        ann.page.keyboard.press("2")
        ann.press("a" if number % 3 else "d")
    assert desk.value(select(func.count()).select_from(LABELS)) == 50
    found = desk.rows(select(REVIEWS.c.answers, REVIEWS.c.label).order_by(REVIEWS.c.id).limit(2))
    assert [row._tuple() for row in found] == [({"watermark": 0, "kind": 0}, 0), ({"watermark": 1, "kind": 0}, 1)]
    ann.press("u")
    assert desk.value(select(func.count()).select_from(LABELS)) == 49
    ann.press("s")
    ben.go("/queue")
    ben.press("n")
    assert ben.page.inner_text("h1") == first, "the second look is another person's"
    assert "ann" not in ben.page.content()
    assert not ben.page.query_selector("input[name^=answer]:checked:not([value=''])"), "nothing is filled in"
    ben.press("a")
    assert desk.value(select(LABELS.c.state).where(LABELS.c.second_by == "ben")) == "disputed"
    assert (ann.said, ben.said) == ([], [])


def test_pictures_are_blurred_and_grey_until_asked(desk: Desk, chromium: Any) -> None:
    ann = Person(chromium, join(desk, "ann"))
    page = ann.go("/post?id=post-00")
    style = "getComputedStyle(document.querySelector('.pictures img')).filter"
    assert page.evaluate(style) == "blur(16px) grayscale(1)"
    page.keyboard.press("v")
    assert page.evaluate(style) == "none"
    page.keyboard.press("v")
    assert page.evaluate(style) == "blur(16px) grayscale(1)"
    # It loads beside the page.
    page.wait_for_function("document.querySelector('.pictures img').naturalWidth == 240", timeout=_LONG)


def test_a_letter_in_the_note_is_a_letter(desk: Desk, chromium: Any) -> None:
    ann = Person(chromium, join(desk, "ann"))
    ann.go("/queue")
    ann.press("n")
    ann.page.fill("#note", "")
    ann.page.focus("#note")
    ann.page.keyboard.type("adsun")
    assert ann.page.input_value("#note") == "adsun"
    assert desk.value(select(func.count()).select_from(REVIEWS)) == 0


def test_filter_what_if_and_export(desk: Desk, chromium: Any, tmp_path: Path) -> None:
    owner = Person(chromium, join(desk, "olga", "owner"))
    page = owner.go("/queue")
    page.select_option("select[name=answer]", "watermark:yes")
    with page.expect_navigation():
        page.click("text=Filter")
    assert page.locator("tbody tr").count() == 25
    assert "post-00" not in page.inner_text("tbody")
    page = owner.go("/what-if")
    page.focus("#precision")
    with page.expect_navigation():
        page.keyboard.press("End")
    assert "→ pass" in page.inner_text("main")
    page.fill("#why", "fewer mistakes")
    with page.expect_navigation():
        page.click("text=Propose >> nth=-1")
    with page.expect_navigation():
        page.click("text=Confirm: it takes effect")
    assert desk.policy.file.precision == 90
    owner.go("/queue")
    owner.press("n")
    owner.press("a")
    page = owner.go("/trail")
    with page.expect_download() as download:
        page.click("text=CSV")
    assert "post-" in Path(download.value.path()).read_text()
    assert owner.said == []


PAGES = ("/queue", "/post?id=post-03", "/errors", "/disputed", "/quality", "/what-if", "/trail", "/users", "/settings")


def every_page(desk: Desk, person: Person) -> Iterator[tuple[str, Any]]:
    """Each with something on it; last the form of a decision, and the sign-in."""
    person.go("/queue")
    person.press("n")
    person.press("a")
    put(desk, record("broken", None))
    for path in PAGES:
        yield path, person.go(path)
    person.go("/queue")
    person.press("n")
    yield "the form of a decision", person.page
    person.context.clear_cookies()
    yield "/sign-in", person.go("/sign-in")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_passes_axe(desk: Desk, chromium: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    owner = Person(chromium, join(desk, "olga", "owner"), color_scheme=scheme, bypass_csp=True)
    faults = []
    for path, page in every_page(desk, owner):
        result = axe.run(page)
        faults += [
            f"{path}: {fault['id']}: {fault['help']}: {[node['html'] for node in fault['nodes']][:2]}"
            for fault in result.response["violations"]
        ]
        if scheme == "light":
            owner.picture(path.strip("/").partition("?")[0].replace(" ", "-") or "home")
    assert faults == []


@pytest.mark.parametrize("scripted", [True, False])
def test_a_page_whose_counts_are_being_read_comes_by_itself(
    desk: Desk, chromium: Any, scripted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PART", 40)
    monkeypatch.setattr(lead, "SOON", 0.0)
    lea = Person(chromium, join(desk, "lea", "lead"), java_script_enabled=scripted, bypass_csp=True)
    page = lea.go("/what-if")
    assert "The records are being read: 67%. This page comes by itself." in page.inner_text("main")
    if scripted:
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
        with desk.records._one:
            assert axe.Axe().run(page).response["violations"] == []
    page.wait_for_selector("text=Of 60 posts")


@pytest.mark.parametrize(
    ("name", "size"), [("a phone", {"width": 360, "height": 740}), ("200 %", {"width": 640, "height": 400})]
)
def test_no_page_is_wider_than_the_screen(desk: Desk, chromium: Any, name: str, size: dict[str, int]) -> None:
    owner = Person(chromium, join(desk, "olga", "owner"), viewport=size)
    for path, page in every_page(desk, owner):
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{path} on {name} is {wide} pixels too wide"
        if path.startswith("the form"):
            owner.picture(name.replace(" ", "-").replace("%", "percent"))
            assert page.locator("button[data-key=a]").is_visible()


def test_nothing_of_a_hostile_post_runs(tmp_path: Path, chromium: Any) -> None:
    from tests.scoring.desk.test_pages import HOSTILE

    tried = [text for text in HOSTILE.values() if "\x00" not in text]
    texts = [*tried, "javascript:alert(1)", "</script><script>alert(1)</script>", "x" * 5_000, "\u202e" * 50]
    posts: list[dict[str, Any]] = [
        {"post_id": f"{n} {text[:80]}", "title": text, "text": text, "images": ["bad.svg", "javascript:alert(1)"]}
        for n, text in enumerate(texts)
    ]
    (tmp_path / "bad.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>')
    with desk_in(tmp_path, posts) as desk:
        put(desk, *(record(str(post["post_id"]), 0.9) for post in posts))
        with served(desk) as address:
            _ADDRESS[:] = [address]
            lead = Person(chromium, join(desk, "lea", "lead"), viewport={"width": 360, "height": 740})
            page = lead.go("/queue")
            lead.press("n")
            for text in texts:
                page.fill("#note", text[:500].encode("utf-8", "replace").decode())
                assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
                page.mouse.move(200, 200)
                with page.expect_navigation():
                    page.click("button[data-key=a]")
            lead.go("/trail")
            page.wait_for_load_state("networkidle")
            assert "dialog" not in lead.said
            assert not [said for said in lead.said if "404" not in said], "no script was even tried"


def test_it_works_without_javascript(desk: Desk, chromium: Any) -> None:
    ann = Person(chromium, join(desk, "ann"), java_script_enabled=False)
    page = ann.go("/queue")
    page.click("text=Next post")
    page.wait_for_selector("#review")
    page.click("text=Show the pictures")
    for _ in range(2):
        page.click("button[data-key=a]")
        page.wait_for_selector("#review")
    assert desk.value(select(func.count()).select_from(LABELS)) == 2
