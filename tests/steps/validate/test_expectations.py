"""steps/validate/expectations.py: each expectation rejects one broken row, and says which."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from model.errors import DataError
from model.task import Task
from steps.settings import ValidateSettings
from steps.validate.expectations import build_suite, validate_posts
from steps.validate.results import ValidationOutcome
from tests.support.tasks import DEMO as TASK

N_TRAIN, N_VAL, N_TEST = 20, 10, 10


def settings(**changes: Any) -> ValidateSettings:
    values = {
        "min_posts": {"train": 20, "val": 10, "test": 10},
        "positive_share": (0.2, 0.8),
        "min_labelled_share": 0.9,
        "max_leaked_share": 0.1,
        "max_text_characters": 100,
        "time_ordered": True,
    }
    return ValidateSettings(**(values | changes))


def clean() -> tuple[pd.DataFrame, pd.DataFrame]:
    """40 posts that keep every rule (p0 to p19 train, p20 to p29 val, p30 to p39 test; odd ones positive)."""
    n = N_TRAIN + N_VAL + N_TEST
    posts = pd.DataFrame(
        {
            "post_id": pd.Series([f"p{i}" for i in range(n)], dtype="str"),
            "created_at": pd.Series(pd.date_range("2025-01-01", periods=n, tz="UTC")).astype("datetime64[us, UTC]"),
            "title": pd.Series([f"title {i}" for i in range(n)], dtype="str"),
            "text": pd.Series([f"text {i}" for i in range(n)], dtype="str"),
            "images": [[f"/data/{i}a.jpg", f"/data/{i}b.jpg"] for i in range(n)],
            "image_sha256": [[f"{i}a", f"{i}b"] for i in range(n)],
            "label": pd.Series([i % 2 for i in range(n)], dtype="Int8"),
            "blurred": pd.Series([pd.NA] * n, dtype="Int8"),
            "kind": pd.Series([i % 3 for i in range(n)], dtype="Int8"),
            "split": pd.Series(["train"] * N_TRAIN + ["val"] * N_VAL + ["test"] * N_TEST, dtype="str"),
        }
    )
    labels = pd.DataFrame(
        {
            "post_id": pd.Series([f"p{i}" for i in range(N_TRAIN)], dtype="str"),
            "blurred": pd.Series([i % 2 for i in range(N_TRAIN)], dtype="Int8"),
            "kind": pd.Series([i % 3 for i in range(N_TRAIN)], dtype="Int8"),
            "label_source": "human",
            "missing_reason": None,
        }
    )
    return posts, labels


def check(posts: pd.DataFrame, labels: pd.DataFrame, **changes: Any) -> ValidationOutcome:
    return validate_posts(posts, labels, TASK, settings(**changes), max_images=4)


def test_a_clean_frame_passes_without_one_warning() -> None:
    posts, labels = clean()
    outcome = check(posts, labels)
    assert outcome.passed
    assert outcome.critical == []
    assert outcome.warnings == []
    assert outcome.n_posts == 40
    json.dumps(outcome.results, allow_nan=False)


def test_list_columns_may_be_arrays_as_parquet_returns_them() -> None:
    posts, labels = clean()
    for column in ("images", "image_sha256"):
        posts[column] = posts[column].map(lambda value: np.array(value, dtype=object))
    assert check(posts, labels) == check(*clean())


def test_every_rule_of_the_suite_is_evaluated_once() -> None:
    suites = build_suite(TASK, settings(), max_images=4)
    expected = [(table, e.meta["rule"]) for table, suite in suites.items() for e in suite.expectations]
    assert [(rule["table"], rule["rule"]) for rule in check(*clean()).results["rules"]] == expected
    assert len(set(expected)) == len(expected)


def test_the_split_counts_are_counted() -> None:
    train, val, _ = check(*clean()).results["splits"]
    assert train == {
        "split": "train",
        "posts": 20,
        "images": 40,
        "labelled": 20,
        "positives": 10,
        "annotated": 20,
        "oldest": "2025-01-01T00:00:00+00:00",
        "newest": "2025-01-20T00:00:00+00:00",
    }
    assert (val["posts"], val["annotated"]) == (10, 0)


def put(row: int, column: str, value: Any) -> Callable[[pd.DataFrame, pd.DataFrame], None]:
    return lambda posts, labels: posts.isetitem(
        posts.columns.get_loc(column), [value if i == row else v for i, v in enumerate(posts[column])]
    )


def put_typed(row: int, column: str, value: Any) -> Callable[[pd.DataFrame, pd.DataFrame], None]:
    return lambda posts, labels: posts.__setitem__(column, posts[column].mask(posts.index == row, value))


def put_label(row: int, column: str, value: Any) -> Callable[[pd.DataFrame, pd.DataFrame], None]:
    return lambda posts, labels: labels.__setitem__(column, labels[column].mask(labels.index == row, value))


def all_of(split: str, value: Any) -> Callable[[pd.DataFrame, pd.DataFrame], None]:
    return lambda posts, labels: posts.__setitem__("label", posts["label"].mask(posts["split"] == split, value))


def both(*changes: Callable[[pd.DataFrame, pd.DataFrame], None]) -> Callable[[pd.DataFrame, pd.DataFrame], None]:
    return lambda posts, labels: [change(posts, labels) for change in changes] and None


NO_TIME = pd.NaT
EARLY = pd.Timestamp("2025-01-20", tz="UTC")  # the newest train post's own time

CRITICAL = {
    "null id": (put_typed(25, "post_id", None), "post_id is set", "row 26 (no id): post_id nothing"),
    "same id": (put_typed(25, "post_id", "p24"), "post_id is unique", "row 25 (p24): post_id p24; row 26 (p24)"),
    "no image": (
        put(3, "images", []),
        "image count",
        "expected 1 to 4 images; found 1 of 40 rows break it: row 4 (p3)",
    ),
    "many images": (put(3, "images", ["/data/3a.jpg"] * 5), "image count", "row 4 (p3): n_images 5"),
    "label": (
        put_typed(3, "label", 2),
        "label",
        "expected 0, 1 or none; found 1 of 40 rows break it: row 4 (p3): label 2",
    ),
    "gold class": (put_typed(3, "kind", 3), "people's label of kind", "a class 0 to 2 or none; found 1 of"),
    "gold class below": (put_typed(3, "blurred", -1), "people's label of blurred", "row 4 (p3): blurred -1"),
    "annotated class": (put_label(3, "blurred", 2), "annotation of blurred", "row 4 (p3): blurred 2"),
    "annotated class below": (put_label(3, "kind", -1), "annotation of kind", "row 4 (p3): kind -1"),
    "annotated null id": (put_label(3, "post_id", None), "post_id is set", "labels, post_id is set"),
    "annotated twice": (put_label(3, "post_id", "p2"), "post_id is unique", "labels, post_id is unique"),
    "unknown post": (put_label(3, "post_id", "p99"), "post is known", "row 4 (p99): unknown_post p99"),
    "no positives": (all_of("val", 0), "positives in val", "a split with no positives measures nothing; found 0"),
    "no negatives": (all_of("test", 1), "negatives in test", "a split with no negatives measures nothing; found 1"),
    "no labels": (all_of("test", pd.NA), "positives in test", "found nothing"),
    "time order": (put_typed(35, "created_at", EARLY), "time order", "row 36 (p35): created_at 2025-01-20T00:00:00"),
    "no time": (put_typed(35, "created_at", NO_TIME), "time is known", "row 36 (p35): created_at nothing"),
    "leaked images": (
        both(put(20, "image_sha256", ["20a", "0a"]), put(21, "image_sha256", ["1b", "21b"])),
        "leakage of an image in val",
        "found 2 of 10 rows break it: row 21 (p20): image_shared_with train post p0; "
        "row 22 (p21): image_shared_with train post p1",
    ),
    "leaked texts": (
        both(
            *(put_typed(30 + i, "title", f"title {i}") for i in range(2)),
            *(put_typed(30 + i, "text", f"text {i}") for i in range(2)),
        ),
        "leakage of title and text in test",
        "row 31 (p30): text_shared_with train post p0; row 32 (p31): text_shared_with train post p1",
    ),
}

WARNING = {
    "long text": (
        put_typed(3, "text", "x" * 94),
        "text length",
        "at most 100 characters",
        "row 4 (p3): characters 101",
    ),
    "positives rare": (
        lambda p, _: p.__setitem__("label", p["label"].mask((p["split"] == "val") & (p.index != 25), 0)),
        "positive share in val",
        "expected 0.2 to 0.8 of the labelled posts; found 0.1",
        "",
    ),
    "annotations missing": (
        both(*(put_label(i, "blurred", pd.NA) for i in range(3))),
        "labelled share of blurred",
        "a label for at least 0.9 of the posts; found 3 of 20 rows break it",
        "row 1 (p0): blurred nothing; row 2 (p1): blurred nothing; row 3 (p2): blurred nothing",
    ),
    "one class": (
        both(*(put_label(i, "blurred", 1) for i in range(N_TRAIN))),
        "classes of blurred in train",
        "expected at least 2 classes: a head learns nothing from one; found 1",
        "",
    ),
    "one leaked image": (
        put(20, "image_sha256", ["20a", "0a"]),
        "leakage of an image",
        "found 2 of 40 rows break it",
        "row 1 (p0): image_shared_with val post p20; row 21 (p20): image_shared_with train post p0",
    ),
    "one leaked text": (
        both(put_typed(20, "title", "title 0"), put_typed(20, "text", "text 0")),
        "leakage of title and text",
        "found 2 of 40 rows break it",
        "row 1 (p0): text_shared_with val post p20",
    ),
}


def broken(change: Callable[[pd.DataFrame, pd.DataFrame], Any]) -> ValidationOutcome:
    posts, labels = clean()
    change(posts, labels)
    return check(posts, labels)


@pytest.mark.parametrize("case", CRITICAL)
def test_a_broken_row_breaks_its_critical_rule_and_is_named(case: str) -> None:
    change, rule, message = CRITICAL[case]
    outcome = broken(change)
    assert not outcome.passed
    findings = [finding for finding in outcome.critical if finding.rule == rule]
    assert len(findings) == 1
    assert findings[0].severity == "critical"
    assert message in findings[0].message


@pytest.mark.parametrize(
    ("rows", "rule", "message"),
    [
        (range(30, 40), "posts in test", "at least 10 posts; found 0"),
        (range(25, 26), "posts in val", "expected at least 10 posts; found 9"),
    ],
)
def test_a_split_with_too_few_posts_is_critical(rows: range, rule: str, message: str) -> None:
    posts, labels = clean()
    outcome = check(posts.drop(index=list(rows)), labels)
    assert not outcome.passed
    assert [message in finding.message for finding in outcome.critical if finding.rule == rule] == [True]


@pytest.mark.parametrize("case", WARNING)
def test_a_suspicious_row_is_one_warning_and_does_not_stop_the_run(case: str) -> None:
    change, rule, expected, rows = WARNING[case]
    outcome = broken(change)
    assert outcome.passed
    assert [finding.rule for finding in outcome.warnings] == [rule]
    assert expected in outcome.warnings[0].message
    assert rows in outcome.warnings[0].message


@pytest.mark.parametrize(("value", "rule"), [("dev", "split"), (None, "split is set")])
def test_a_split_that_is_none_is_critical(value: str | None, rule: str) -> None:
    posts, labels = clean()
    posts["split"] = posts["split"].mask(posts.index == 3, value)
    outcome = check(posts, labels, min_posts={"train": 19, "val": 10, "test": 10})
    assert [finding.rule for finding in outcome.critical] == [rule]
    assert "row 4 (p3)" in outcome.critical[0].message


def test_the_same_image_or_text_inside_one_split_is_no_leak() -> None:
    posts, labels = clean()
    for column in ("image_sha256", "title", "text"):
        posts[column] = [posts.at[0, column] if i == 1 else value for i, value in enumerate(posts[column])]
    assert check(posts, labels).warnings == []


@pytest.mark.parametrize("column", ["title", "text"])
def test_posts_without_title_or_without_text_do_not_count_as_the_same_text(column: str) -> None:
    posts, labels = clean()
    posts["title"] = posts["text"] = "the same"
    posts[column] = ""
    assert check(posts, labels).warnings == []


def test_time_order_is_asked_only_where_it_is_set() -> None:
    posts, labels = clean()
    posts["created_at"] = posts["created_at"].array[::-1]
    posts.loc[0, "created_at"] = pd.NaT
    assert not check(posts, labels).passed
    assert check(posts, labels, time_ordered=False).passed


def test_a_finding_names_five_rows_at_most() -> None:
    posts, labels = clean()
    posts["label"] = posts["label"].mask(posts.index < 12, 5)
    finding = next(finding for finding in check(posts, labels).critical if finding.rule == "label")
    assert "found 12 of 40 rows break it" in finding.message
    assert finding.message.count("label 5") == 5


def test_a_task_without_questions_has_no_rule_on_labels() -> None:
    posts, labels = clean()
    task = Task(name="plain", version=1, final=TASK.final)
    outcome = validate_posts(posts, labels[["post_id"]].iloc[:0], task, settings(), max_images=4)
    assert outcome.passed
    assert outcome.warnings == []


def test_a_rule_that_cannot_be_evaluated_is_an_error_and_not_a_pass() -> None:
    posts, labels = clean()
    posts["label"] = "bad"
    with pytest.raises(DataError, match=r"posts: the rule '.*' could not be evaluated"):
        check(posts, labels)
