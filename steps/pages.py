"""What the HTML pages of the steps share: one look, readable without a network, and the words for numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

#: The style sheet; a page puts it into its head as `{{ style }}`, and its own rules after it.
STYLE = """\
:root { --ink: #1f2933; --soft: #52606d; --line: #e1e5ea; --paper: #fff; --ground: #f5f7f9;
  --good: #2f6f5e; --bad: #a5401c; --bad-ground: #fdf1ec; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; }
p { margin: .3rem 0 .7rem; }
.soft, .note { color: var(--soft); }
.note, figcaption, .facts { font-size: .88rem; }
.nowrap { white-space: nowrap; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.1rem;
  margin-top: 1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin-top: 1rem; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.2; font-weight: 650; }
.tile span { font-size: .85rem; color: var(--soft); }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .8rem 0 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td .note { font-size: .88em; }
tr:last-child td { border-bottom: 0; }
th.over { border-bottom: 0; padding-bottom: 0; }
tr + tr th:first-child { text-align: right; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.2rem 2rem; }
figure { margin: 0; }
figure img { width: 100%; max-width: 32rem; height: auto; display: block; }
figcaption { color: var(--soft); }
.bad { color: var(--bad); font-weight: 600; }
@media (max-width: 30rem) {
  main { padding: 1rem .6rem 2rem; }
  section { padding: .8rem .75rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .tile { padding: .5rem .6rem; }
  .tile b { font-size: 1.3rem; }
  table { font-size: .78rem; }
  th, td { padding: .3rem .2rem; }
  .wide { display: none; }
}
@media print {
  body { background: #fff; font-size: 11pt; }
  main { max-width: none; padding: 0; }
  section { border: 0; padding: .5rem 0; }
  .tiles { grid-template-columns: repeat(4, 1fr); }
  .charts { grid-template-columns: 1fr 1fr; }
  figure, .tile, tr { break-inside: avoid; }
  h2, h3, h2 + .note, h3 + .note { break-after: avoid; }
}
"""


def share(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: float | None, kind: str = "number") -> str:
    """`kind`: number (three digits) or percent; a dash where the value is undefined."""
    if value is None:
        return "–"
    return share(value) if kind == "percent" else f"{value:.3f}"


def environment(filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """Templates that escape what they are given and refuse a name that is not there."""
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(filters)
    made.globals["style"] = Markup(STYLE)
    return made
