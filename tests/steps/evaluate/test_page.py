import base64
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from model.settings import Variant
from steps.evaluate import charts
from steps.evaluate.page import _question_rows, render
from steps.evaluate.report import score_arrays
from steps.settings import EvaluateSettings
from steps.survey import weights_of
from tests.support import predictions as support
from tests.support.html import Page, needs_nothing_from_outside
from tests.support.posts import ingested
from tests.support.tasks import MENU as TASK

SETTINGS = EvaluateSettings(confidence=0.5, precisions=(60, 70, 80), bootstrap=20, examples=2)
N = 120


@pytest.fixture
def posts(tmp_path: Path) -> pd.DataFrame:
    """Posts of the test split, with a photo, a file that is none, and a path to nothing."""
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(photo)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff not a picture")
    images = [str(photo), str(broken), str(tmp_path / "gone.jpg")]
    table = pd.DataFrame(
        {
            "post_id": [f"test{i}" for i in range(N)],
            "title": "<script>alert(1)</script> \"quoted\" & 'more'",
            "text": ["" if i % 2 else "<img src=x onerror=alert(2)>" for i in range(N)],
            "images": [np.array(images, dtype=object) if i % 2 else images for i in range(N)],
        }
    )
    return ingested(table, tmp_path)


def predictions(seed: int, split: str, variant: Variant) -> pd.DataFrame:
    people = {"spicy": pd.array([1] * N, dtype="Int8"), "course": pd.array([pd.NA] * N, dtype="Int8")}
    answers = {"answer_spicy": "no", "probability_spicy": 0.88, "answer_course": "dessert", "probability_course": 0.44}
    asked = variant != "vanilla"
    return support.predictions(N, seed, split, asked).assign(**people, **(answers if asked else {}))


def page_of(
    posts: pd.DataFrame,
    variant: Variant = "agentps",
    settings: EvaluateSettings = SETTINGS,
    val: pd.DataFrame | None = None,
) -> str:
    val = predictions(0, "val", variant) if val is None else val
    test = predictions(1, "test", variant)
    report = support.report_of(val, test, variant, settings)
    return render(report, val, test, posts, TASK, settings)


@pytest.mark.parametrize("variant", ["agentps", "vanilla"])
def test_page_is_well_formed_and_fetches_nothing(posts: pd.DataFrame, variant: Variant) -> None:
    page = page_of(posts, variant)
    assert needs_nothing_from_outside(page)
    assert Page(page).links
    assert len(page) < 2_000_000


def test_charts_are_svg_without_references_to_other_files(posts: pd.DataFrame) -> None:
    charts = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page_of(posts))
    assert len(charts) == 4
    for chart in charts:
        svg = base64.b64decode(chart).decode()
        assert "<svg" in svg
        assert all(target.startswith("#") for target in re.findall(r'xlink:href="([^"]+)"', svg))
    assert "hot, $5 or $9?" in base64.b64decode(charts[3]).decode()  # two dollar signs are no formula


def test_what_users_wrote_is_escaped(posts: pd.DataFrame) -> None:
    page = page_of(posts)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img src=x" not in page
    assert "Spicy &amp; hot" in page


def test_images_that_cannot_be_read_are_placeholders(posts: pd.DataFrame) -> None:
    page = page_of(posts)
    assert "no image: no such file" in page
    assert "no image: cut or corrupt" in page


def test_thumbnails_are_small_jpegs(posts: pd.DataFrame) -> None:
    thumbnails = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page_of(posts))
    assert len(thumbnails) == 8  # one readable image in each of 4 groups x 2 posts
    for thumbnail in thumbnails:
        with Image.open(BytesIO(base64.b64decode(thumbnail))) as image:
            assert (image.format, image.size) == ("JPEG", (96, 72))


def test_page_stays_small_with_many_long_posts(posts: pd.DataFrame) -> None:
    photo = posts["images"][0][0]
    hashes = [[posts["image_sha256"][0][0]] * 16] * N
    long = posts.assign(images=[[photo] * 16] * N, image_sha256=hashes, text="many words " * 1000)
    page = page_of(long, settings=SETTINGS.model_copy(update={"examples": 30}))
    assert len(page) < 2_000_000
    shown = page.count("<article")
    assert shown > 40
    assert page.count("data:image/jpeg") == shown * (160 // shown)  # 160 thumbnails in all, shared fairly


def test_examples_show_class_probability_and_disagreement(posts: pd.DataFrame) -> None:
    page = page_of(posts)
    rows = re.findall(r"<tr class=\"differs\">.*?</tr>", page, flags=re.DOTALL)
    assert len(rows) == 8  # `spicy` in every example: the model says no, people say yes
    assert all("Spicy" in row and "≠ yes" in row for row in rows)
    assert all(re.search(r"<td>no <span[^>]*>88\s%", row) for row in rows)
    assert len(re.findall(r"<td>dessert <span[^>]*>44\s%", page)) == 8
    assert page.count("no label</span>") == 8


def test_groups_hold_the_posts_by_the_middle_target(posts: pd.DataFrame) -> None:
    page = page_of(posts)
    counts = [int(n) for n in re.findall(r"<h3>[A-Z][a-z ]+ <span class=\"soft\">· (\d+) posts", page)]
    assert len(counts) == 4
    assert sum(counts) == N
    assert "the threshold fitted on val for 70 % precision" in page


def test_the_f1_threshold_stands_in_where_no_threshold_is_precise_enough(posts: pd.DataFrame) -> None:
    val = predictions(0, "val", "agentps").assign(score=0.5, label=pd.array([0, 1] * (N // 2), dtype="Int8"))
    page = page_of(posts, val=val)
    assert "best F1 on val (none promises 70 % precision)" in page
    assert "none is promised" in page


def test_no_examples_when_none_are_asked_for(posts: pd.DataFrame) -> None:
    page = page_of(posts, settings=SETTINGS.model_copy(update={"examples": 0}))
    assert "<article" not in page
    assert "<code>evaluate.examples</code> is 0" in page


def test_the_same_report_gives_the_same_page(posts: pd.DataFrame) -> None:
    assert page_of(posts) == page_of(posts)


def test_vanilla_has_no_questions(posts: pd.DataFrame) -> None:
    page = page_of(posts, "vanilla")
    assert "Intermediate questions" not in page
    assert page.count("data:image/svg+xml") == 3


def test_posts_that_were_drawn_for_people_are_charted_as_those_that_they_stand_for(posts: pd.DataFrame) -> None:
    """A post with probability 1 / k is as k posts: the charts, the majority's share and what guessing gives."""
    val, test = predictions(0, "val", "agentps"), predictions(1, "test", "agentps")
    test["spicy"] = pd.array([i % 2 for i in range(N)], dtype="Int8")
    times = np.where(test["score"] > 0.5, 1, 4)
    drawn, copies = test.assign(inclusion_probability=1 / times), test.loc[np.repeat(test.index, times)]
    reports = [support.report_of(val, table, "agentps", SETTINGS) for table in (drawn, copies)]
    text = " ".join(Page(render(reports[0], val, drawn, posts, TASK, SETTINGS)).text.split())
    share = 100 * np.average(test["label"], weights=times)
    assert (
        f"({share:.1f} % of all posts: the test posts were drawn for people, they stand for about {times.sum()}" in text
    )
    assert reports[0].table().splitlines()[1].endswith(f"stand for about {times.sum()}")
    charts_of = []
    for report, table in zip(reports, (drawn, copies), strict=True):
        axes = Figure().subplots(3)
        scores, labels, weights = *score_arrays(table), weights_of(table)
        charts.draw_curve(axes[0], report, scores, labels, weights)
        charts.draw_reliability(axes[1], scores, labels, weights)
        charts.draw_histogram(axes[2], report, scores, labels, TASK, weights)
        lines = [line.get_xydata() for ax in axes[:2] for line in ax.lines]
        charts_of.append([*lines, [bar.get_height() for bar in axes[2].patches]])
    for drawn_line, line in zip(*charts_of, strict=True):
        assert np.asarray(drawn_line) == pytest.approx(np.asarray(line), nan_ok=True)
    rows = [_question_rows(*made, TASK)[0].majority for made in zip(reports, (drawn, copies), strict=True)]
    assert rows[0] == pytest.approx(rows[1])
    assert rows[0] != pytest.approx(test["spicy"].value_counts(normalize=True).max())
