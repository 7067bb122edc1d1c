"""The rules that posts and labels must keep: a Great Expectations suite made from schema and task.

What Great Expectations cannot say over plain columns (an image that two splits share, a count of
images) becomes a derived column first; every verdict is Great Expectations' own.
"""

from __future__ import annotations

from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.expectations.row_conditions import Column

from model import schema
from model.task import Task
from steps.settings import ValidateSettings
from steps.validate.results import SHOWN, Severity, ValidationOutcome, finding_of, read_result
from steps.validate.tables import (
    CHARACTERS,
    IMAGE_SHARED,
    N_IMAGES,
    NEWEST_TRAIN,
    ROW,
    TEXT_SHARED,
    UNKNOWN,
    prepare_labels,
    prepare_posts,
    split_counts,
)

POSTS, LABELS = "posts", "labels"
_SHARED = ((IMAGE_SHARED, "an image"), (TEXT_SHARED, "title and text"))


def validate_posts(
    posts: pd.DataFrame, labels: pd.DataFrame, task: Task, settings: ValidateSettings, *, max_images: int
) -> ValidationOutcome:
    """Check the posts and their annotations.

    Args:
        posts: as `steps.ingest` writes them.
        labels: as `steps.annotate` writes them: post_id and one column per question.
        max_images: `ingest.max_images`.

    Raises:
        DataError: a rule could not be evaluated, for a column of the wrong type.
    """
    prepared = {POSTS: prepare_posts(posts, task), LABELS: prepare_labels(labels, posts, task)}
    suites = build_suite(task, settings, max_images=max_images)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("tables")
    rules = []
    for table, suite in suites.items():
        batch = (
            source.add_dataframe_asset(table)
            .add_batch_definition_whole_dataframe("all")
            .get_batch({"dataframe": prepared[table]})
        )
        result = batch.validate(
            suite,
            result_format={
                "result_format": "SUMMARY",
                "partial_unexpected_count": SHOWN,
                "unexpected_index_column_names": [ROW, schema.POST_ID, schema.TITLE],
            },
        )
        read = {rule["rule"]: rule for rule in (read_result(table, item.to_json_dict()) for item in result.results)}
        rules += [read[(expectation.meta or {})["rule"]] for expectation in suite.expectations]  # in the suite's order
    broken = [finding_of(rule) for rule in rules if not rule["passed"]]
    critical = [finding for finding in broken if finding.severity == "critical"]
    return ValidationOutcome(
        passed=not critical,
        critical=critical,
        warnings=[finding for finding in broken if finding.severity == "warning"],
        results={"splits": split_counts(prepared[POSTS], prepared[LABELS]), "rules": rules},
        n_posts=len(posts),
    )


def build_suite(task: Task, settings: ValidateSettings, *, max_images: int) -> dict[str, gx.ExpectationSuite]:
    """The suites of the tables `posts` and `labels`, as `validate_posts` prepares them.

    Each expectation's `meta` holds `rule`, its name, and `expected`, in words.
    """
    posts = [
        *_keys(),
        *_posts(task, settings, max_images),
        *(rule for split in schema.SPLITS for rule in _split(split, settings)),
        *_leakage(),
        *(_time_order() if settings.time_ordered else ()),
    ]
    labels = [*_keys(), *_labels(task, settings)]
    return {
        POSTS: gx.ExpectationSuite(name=POSTS, expectations=posts),
        LABELS: gx.ExpectationSuite(name=LABELS, expectations=labels),
    }


def _posts(task: Task, settings: ValidateSettings, max_images: int) -> list[Expectation]:
    return [
        _rule(
            "image count",
            f"1 to {max_images} images",
            "critical",
            gxe.ExpectColumnValuesToBeBetween,
            column=N_IMAGES,
            min_value=1,
            max_value=max_images,
        ),
        _rule(
            "text length",
            f"at most {settings.max_text_characters} characters of title and text",
            "warning",
            gxe.ExpectColumnValuesToBeBetween,
            column=CHARACTERS,
            max_value=settings.max_text_characters,
        ),
        _rule(
            "label", "0, 1 or none", "critical", gxe.ExpectColumnValuesToBeInSet, column=schema.LABEL, value_set=[0, 1]
        ),
        _rule("split is set", "a split", "critical", gxe.ExpectColumnValuesToNotBeNull, column=schema.SPLIT),
        _rule(
            "split",
            f"one of {', '.join(schema.SPLITS)}",
            "critical",
            gxe.ExpectColumnValuesToBeInSet,
            column=schema.SPLIT,
            value_set=list(schema.SPLITS),
        ),
        *(_classes(question.id, question.classes, "people's label") for question in task.questions),
    ]


def _split(split: str, settings: ValidateSettings) -> list[Expectation]:
    low, high = settings.positive_share
    condition = _in_split(split)
    return [
        _rule(
            f"posts in {split}",
            f"at least {settings.min_posts[split]} posts",
            "critical",
            gxe.ExpectTableRowCountToBeBetween,
            min_value=settings.min_posts[split],
            **condition,
        ),
        _rule(
            f"positives in {split}",
            "a post with label 1: a split with no positives measures nothing",
            "critical",
            gxe.ExpectColumnMaxToBeBetween,
            column=schema.LABEL,
            min_value=1,
            **condition,
        ),
        _rule(
            f"negatives in {split}",
            "a post with label 0: a split with no negatives measures nothing",
            "critical",
            gxe.ExpectColumnMinToBeBetween,
            column=schema.LABEL,
            max_value=0,
            **condition,
        ),
        _rule(
            f"positive share in {split}",
            f"{low:g} to {high:g} of the labelled posts",
            "warning",
            gxe.ExpectColumnMeanToBeBetween,
            column=schema.LABEL,
            min_value=low,
            max_value=high,
            **condition,
        ),
        *(
            _rule(
                f"leakage of {what} in {split}",
                f"at most {settings.max_leaked_share:g} of the posts share {what} with another split",
                "critical",
                gxe.ExpectColumnValuesToBeNull,
                column=column,
                mostly=1 - settings.max_leaked_share,
                **condition,
            )
            for column, what in _SHARED
        ),
    ]


def _leakage() -> list[Expectation]:
    return [
        _rule(
            f"leakage of {what}",
            f"no post shares {what} with another split",
            "warning",
            gxe.ExpectColumnValuesToBeNull,
            column=column,
        )
        for column, what in _SHARED
    ]


def _time_order() -> list[Expectation]:
    ordered = Column(schema.SPLIT).is_in([schema.TRAIN, schema.TEST])
    return [
        _rule(
            "time is known",
            "a time, since time_ordered is set",
            "critical",
            gxe.ExpectColumnValuesToNotBeNull,
            column=schema.CREATED_AT,
            row_condition=ordered,
        ),
        _rule(
            "time order",
            "a test post newer than every train post",
            "critical",
            gxe.ExpectColumnPairValuesAToBeGreaterThanB,
            column_A=schema.CREATED_AT,
            column_B=NEWEST_TRAIN,
            ignore_row_if="either_value_is_missing",
            **_in_split(schema.TEST),
        ),
    ]


def _labels(task: Task, settings: ValidateSettings) -> list[Expectation]:
    rules = [
        _rule("post is known", "the id of a post", "critical", gxe.ExpectColumnValuesToBeNull, column=UNKNOWN),
    ]
    for question in task.questions:
        rules += [
            _classes(question.id, question.classes, "annotation"),
            _rule(
                f"labelled share of {question.id}",
                f"a label for at least {settings.min_labelled_share:g} of the posts",
                "warning",
                gxe.ExpectColumnValuesToNotBeNull,
                column=question.id,
                mostly=settings.min_labelled_share,
            ),
            _rule(
                f"classes of {question.id} in train",
                "at least 2 classes: a head learns nothing from one",
                "warning",
                gxe.ExpectColumnUniqueValueCountToBeBetween,
                column=question.id,
                min_value=2,
                **_in_split(schema.TRAIN),
            ),
        ]
    return rules


def _in_split(split: str) -> dict[str, Any]:
    return {"row_condition": Column(schema.SPLIT) == split}


def _rule(name: str, expected: str, severity: Severity, kind: type[Expectation], **arguments: Any) -> Expectation:
    return kind(severity=FailureSeverity(severity), meta={"rule": name, "expected": expected}, **arguments)


def _keys() -> list[Expectation]:
    return [
        _rule("post_id is set", "an id", "critical", gxe.ExpectColumnValuesToNotBeNull, column=schema.POST_ID),
        _rule(
            "post_id is unique", "an id of its own", "critical", gxe.ExpectColumnValuesToBeUnique, column=schema.POST_ID
        ),
    ]


def _classes(question_id: str, classes: tuple[str, ...], what: str) -> Expectation:
    return _rule(
        f"{what} of {question_id}",
        f"a class 0 to {len(classes) - 1} or none",
        "critical",
        gxe.ExpectColumnValuesToBeBetween,
        column=question_id,
        min_value=0,
        max_value=len(classes) - 1,
    )
