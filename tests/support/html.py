"""A page as its elements."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Every start tag with its attributes, and the text; a page whose tags do not close in order fails."""

    _VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.tags = [tag for tag, _ in self.found]
        self.links = [
            value for _, attributes in self.found for name, value in attributes.items()
            if name in ("src", "href", "srcset", "action", "data")
        ]  # fmt: skip

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def needs_nothing_from_outside(html: str) -> bool:
    """No script, no file beside it but data, no address that a style sheet fetches."""
    page = Page(html)
    return (
        not {"script", "link", "iframe", "object"} & set(page.tags)
        and all(link is not None and link.startswith("data:image/") for link in page.links)
        and not re.search(r"https?:|@import|url\(", html)
    )
