"""steps/validate/page.py: one page that reads well, needs nothing from outside, and trusts no text."""

from __future__ import annotations

from typing import Any

from steps.validate.page import render
from steps.validate.results import Finding, ValidationOutcome
from tests.support.html import Page, needs_nothing_from_outside


def rule(name: str, *, passed: bool = True, severity: str = "critical", **changes: Any) -> dict[str, Any]:
    return {
        "table": "posts",
        "rule": name,
        "severity": severity,
        "passed": passed,
        "column": "label",
        "expected": f"what {name} expects",
        "observed": "0 of 40 rows break it",
        "rows": [],
    } | changes


def row(number: int, post_id: str | None, title: str | None, found: str) -> dict[str, Any]:
    return {"row": number, "post_id": post_id, "title": title, "found": found}


def outcome(*rules: dict[str, Any]) -> ValidationOutcome:
    broken = [Finding(r["rule"], r["severity"], r["column"], "message") for r in rules if not r["passed"]]
    critical = [finding for finding in broken if finding.severity == "critical"]
    times = {"oldest": "2025-01-01T00:00:00+00:00", "newest": None}
    counts = {"posts": 1200, "images": 2400, "labelled": 400, "positives": 50, "annotated": 7}
    splits = [{"split": split} | counts | times for split in ("train", "val")]
    splits.append({"split": "test"} | dict.fromkeys(counts, 0) | times)
    return ValidationOutcome(
        passed=not critical,
        critical=critical,
        warnings=[finding for finding in broken if finding.severity == "warning"],
        results={"splits": splits, "rules": list(rules)},
        n_posts=2400,
    )


def test_the_page_needs_nothing_from_outside() -> None:
    html = render(outcome(rule("a"), rule("b", passed=False)), "task demo")
    assert needs_nothing_from_outside(html)
    assert "img" not in Page(html).tags


def test_the_page_says_the_verdict_first_and_lists_every_rule() -> None:
    page = Page(render(outcome(rule("a"), rule("b"), rule("c", observed=0.51239)), "task demo, posts.jsonl"))
    top = " ".join(page.text.split("Splits")[0].split())
    assert "The data pass" in top
    assert "task demo, posts.jsonl: 2,400 posts, 3 rules, 0 critical and 0 other findings." in top
    assert page.tags.count("tr") == (1 + 3) + (1 + 3)  # each table's head, three splits, three rules
    assert "Broken rules" not in page.text
    assert "0.5124" in page.text


def test_a_split_shows_its_counts_and_says_where_there_is_nothing() -> None:
    text = Page(render(outcome(rule("a")), "demo")).text
    assert "12.5%" in text  # 50 positives of 400 labelled
    assert "none labelled" in text
    assert "no time" in text


def test_broken_rules_come_first_with_critical_ones_on_top_and_their_rows() -> None:
    rules = (
        rule("holding"),
        rule("odd", passed=False, severity="warning", rows=[row(4, "p3", "A title", "characters 207")]),
        rule("wrong", passed=False, rows=[row(5, None, None, "label 7")]),
    )
    text = " ".join(Page(render(outcome(*rules), "demo")).text.split())
    assert "The data do not pass" in text
    assert "1 critical and 1 other findings. A broken critical rule stops the run." in text
    order = [
        "Broken rules",
        "what wrong expects",
        "label 7",
        "what odd expects",
        "207",
        "Rules that hold",
        "what holding",
    ]
    assert sorted(order, key=text.index) == order
    assert "row 4, post p3: characters 207 (“A title”)" in text
    assert "row 5, post nothing: label 7" in text


def test_hostile_text_is_shown_as_text() -> None:
    hostile = "<script>alert('x')</script><img src=x onerror=alert(1)>&amp;"
    broken = rule(hostile, passed=False, rows=[row(1, hostile, hostile, hostile)])
    page = Page(render(outcome(broken), hostile))
    assert not {"script", "img"} & set(page.tags)
    # the head's title, the verdict, the rule, what it expects; the row's post_id, title, found
    assert page.text.count(hostile) == 7


def test_a_long_title_is_cut() -> None:
    broken = rule("a", passed=False, rows=[row(1, "p", "x" * 50_000, "label 7")])
    assert "x" * 81 not in render(outcome(broken), "demo")
