"""The Markdown pages hold together: links, anchors, the site's navigation. `make docs` builds the site itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.post import markdown_table

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
#: The site's pages as links to the repository's; their places are the same, so a link is right in both or in none.
SITE = REPOSITORY / CONFIG["docs_dir"]
#: Relative to the repository; all Markdown that people write or a benchmark writes for them.
PAGES = sorted(
    page.relative_to(REPOSITORY)
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md")
    for page in REPOSITORY.glob(pattern)
)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the headings, where GitHub and Python-Markdown name them alike."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\]\(.*?\)", "]", heading)).strip().lower()
        if plain.replace(" ", "-") == re.sub(r"[\s-]+", "-", plain):
            found.add(plain.replace(" ", "-"))
    return found


def links(page: Path) -> Iterator[tuple[str, str]]:
    """(path, anchor) of each link to a place of this repository; the path is empty for the page itself."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            yield path, anchor


def in_nav(entry: Any) -> Iterator[str]:
    """The pages of mkdocs' `nav`: a page, {title: page}, {title: [entries]}."""
    if isinstance(entry, str):
        yield entry
    else:
        for below in entry if isinstance(entry, list) else entry.values():
            yield from in_nav(below)


def test_there_are_pages_and_they_have_links() -> None:
    assert len(PAGES) >= 25
    assert sum(1 for page in PAGES for _ in links(page)) >= 100


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_and_anchor_resolves_in_the_repository_and_in_the_site(page: Path) -> None:
    wrong = []
    for path, anchor in links(page):
        target = Path(os.path.normpath(page.parent / path)) if path else page
        if not (REPOSITORY / target).is_file():
            wrong.append(f"{path}: no such file")
        elif not (SITE / target).is_file():
            wrong.append(f"{path}: not in {CONFIG['docs_dir']}/, so not in the site")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{path}#{anchor}: no such heading")
    assert wrong == []


def test_the_navigation_names_every_page_once() -> None:
    assert sorted(in_nav(CONFIG["nav"])) == sorted(map(str, PAGES))


def test_the_table_of_a_manifest_is_that_of_its_rows() -> None:
    page = (REPOSITORY / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    assert f"<!-- manifest -->\n{markdown_table()}\n<!-- /manifest -->" in page
