"""What the HTML pages of the steps share: their templates, readable without a network, and the words for numbers."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = "style.css"
_PERCENT = "\N{NO-BREAK SPACE}%"


def template(name: str, **filters: Callable[..., Any]) -> Template:
    """A file of `steps/templates/`. It escapes what it is given, and refuses a name that is not there.

    Args:
        filters: of this page, beside `share` and `number`.
    """
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(share=share, number=number, **filters)
    made.globals["style"] = Markup((_TEMPLATES / _STYLE).read_text(encoding="utf-8"))
    return made.get_template(name)


def share(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}{_PERCENT}"


def number(value: float | None, kind: str = "number") -> str:
    """`kind`: number (three digits) or percent; a dash where the value is undefined."""
    if value is None:
        return "–"
    return share(value) if kind == "percent" else f"{value:.3f}"


def interval(low: float | None, high: float | None, kind: str = "number") -> str:
    """As `number`, with the unit once; a dash where an end is undefined."""
    if low is None or high is None:
        return "–"
    return f"{number(low, kind).removesuffix(_PERCENT)} to {number(high, kind)}"


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def data_uri(kind: str, data: bytes) -> str:
    """`data` as the address of itself. `kind`: its media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
