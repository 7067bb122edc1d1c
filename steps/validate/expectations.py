"""The rules that posts and labels must keep: a Great Expectations suite made from schema and task.

What Great Expectations cannot say over plain columns (an image that two splits share, a count of
images) becomes a derived column first; every verdict is Great Expectations' own.
"""

from __future__ import annotations

from functools import partial
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
# Great Expectations' words for a rule on each row.
Between, InSet = gxe.ExpectColumnValuesToBeBetween, gxe.ExpectColumnValuesToBeInSet
Null, NotNull = gxe.ExpectColumnValuesToBeNull, gxe.ExpectColumnValuesToNotBeNull
_SHARED = ((IMAGE_SHARED, "an image"), (TEXT_SHARED, "title and text"))
_REMEDY = (
    "`ingest.group_by: [image, text]` puts posts that share one into one split; it leaves a post where the column "
    "`split` of the manifest has it, and where an ingest with it had it before"
)


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

    Each expectation's `meta` holds `rule`, its name, and in words `expected` and `remedy` (empty: none but to correct
    the posts).
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
    longest = settings.max_text_characters
    splits = list(schema.SPLITS)
    return [
        _critical(Between, "image count", f"1 to {max_images} images", N_IMAGES, min_value=1, max_value=max_images),
        _warning(
            Between, "text length", f"at most {longest} characters of title and text", CHARACTERS, max_value=longest
        ),
        _critical(InSet, "label", "0, 1 or none", schema.LABEL, value_set=[0, 1]),
        _critical(NotNull, "split is set", "a split", schema.SPLIT),
        _critical(InSet, "split", f"one of {', '.join(splits)}", schema.SPLIT, value_set=splits),
        *(_classes(question.id, question.classes, "people's label") for question in task.questions),
    ]


def _split(split: str, settings: ValidateSettings) -> list[Expectation]:
    (low, high), least, leaked = settings.positive_share, settings.min_posts[split], settings.max_leaked_share
    here = _in_split(split)
    return [
        _critical(
            gxe.ExpectTableRowCountToBeBetween, f"posts in {split}", f"at least {least} posts", min_value=least, **here
        ),
        _critical(
            gxe.ExpectColumnMaxToBeBetween,
            f"positives in {split}",
            "a post with label 1: a split with no positives measures nothing",
            schema.LABEL,
            min_value=1,
            **here,
        ),
        _critical(
            gxe.ExpectColumnMinToBeBetween,
            f"negatives in {split}",
            "a post with label 0: a split with no negatives measures nothing",
            schema.LABEL,
            max_value=0,
            **here,
        ),
        _warning(
            gxe.ExpectColumnMeanToBeBetween,
            f"positive share in {split}",
            f"{low:g} to {high:g} of the labelled posts",
            schema.LABEL,
            min_value=low,
            max_value=high,
            **here,
        ),
        *(
            _critical(
                Null,
                f"leakage of {what} in {split}",
                f"at most {leaked:g} of the posts share {what} with another split",
                column,
                remedy=_REMEDY,
                mostly=1 - leaked,
                **here,
            )
            for column, what in _SHARED
        ),
    ]


def _leakage() -> list[Expectation]:
    return [
        _warning(Null, f"leakage of {what}", f"no post shares {what} with another split", column, remedy=_REMEDY)
        for column, what in _SHARED
    ]


def _time_order() -> list[Expectation]:
    ordered = Column(schema.SPLIT).is_in([schema.TRAIN, schema.TEST])
    return [
        _critical(
            NotNull, "time is known", "a time, since time_ordered is set", schema.CREATED_AT, row_condition=ordered
        ),
        _critical(
            gxe.ExpectColumnPairValuesAToBeGreaterThanB,
            "time order",
            "a test post newer than every train post",
            column_A=schema.CREATED_AT,
            column_B=NEWEST_TRAIN,
            ignore_row_if="either_value_is_missing",
            **_in_split(schema.TEST),
        ),
    ]


def _labels(task: Task, settings: ValidateSettings) -> list[Expectation]:
    rules = [_critical(Null, "post is known", "the id of a post", UNKNOWN)]
    least = settings.min_labelled_share
    for question in task.questions:
        rules += [
            _classes(question.id, question.classes, "annotation"),
            _warning(
                NotNull,
                f"labelled share of {question.id}",
                f"a label for at least {least:g} of the posts",
                question.id,
                mostly=least,
            ),
            _warning(
                gxe.ExpectColumnUniqueValueCountToBeBetween,
                f"classes of {question.id} in train",
                "at least 2 classes: a head learns nothing from one",
                question.id,
                min_value=2,
                **_in_split(schema.TRAIN),
            ),
        ]
    return rules


def _in_split(split: str) -> dict[str, Any]:
    return {"row_condition": Column(schema.SPLIT) == split}


def _keys() -> list[Expectation]:
    return [
        _critical(NotNull, "post_id is set", "an id", schema.POST_ID),
        _critical(gxe.ExpectColumnValuesToBeUnique, "post_id is unique", "an id of its own", schema.POST_ID),
    ]


def _classes(question_id: str, classes: tuple[str, ...], what: str) -> Expectation:
    last = len(classes) - 1
    expected = f"a class 0 to {last} or none"
    return _critical(Between, f"{what} of {question_id}", expected, question_id, min_value=0, max_value=last)


def _rule(
    severity: Severity,
    kind: type[Expectation],
    name: str,
    expected: str,
    column: str | None = None,
    remedy: str = "",
    **arguments: Any,
) -> Expectation:
    """`kind` on `column`; None: of the whole table, or its columns are among the arguments."""
    if column is not None:
        arguments["column"] = column
    meta = {"rule": name, "expected": expected, "remedy": remedy}
    return kind(severity=FailureSeverity(severity), meta=meta, **arguments)


_critical, _warning = partial(_rule, "critical"), partial(_rule, "warning")
