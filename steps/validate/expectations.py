"""The rules that posts and labels must keep: a Great Expectations suite made from schema and task.

What Great Expectations cannot say over plain columns (an image that two splits share, a count of
images) becomes a derived column first; every verdict is Great Expectations' own.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.expectations.row_conditions import Column

from model import schema
from model.errors import DataError
from model.task import Task
from steps.settings import ValidateSettings

Severity = Literal["critical", "warning"]

POSTS, LABELS = "posts", "labels"
#: Rows of one rule that are named by their post.
SHOWN = 5

# Derived columns.
_ROW = "row"  # 1-based place in the table
_N_IMAGES = "n_images"
_CHARACTERS = "characters"
_IMAGE_SHARED = "image_shared_with"  # a post of another split that holds the same image; null: none
_TEXT_SHARED = "text_shared_with"  # the same for title and text
_NEWEST_TRAIN = "newest_train_post"
_UNKNOWN = "unknown_post"


@dataclass(frozen=True)
class Finding:
    """One broken rule. `message` names up to `SHOWN` posts with what was found and expected."""

    rule: str
    severity: Severity
    column: str | None
    message: str


@dataclass(frozen=True)
class ValidationOutcome:
    """The verdict on a set of posts and labels.

    passed: no critical rule is broken.
    results: JSON-able: `splits`, one entry a split with its counts; `rules`, one entry a rule with
        table, rule, severity, passed, column, expected, observed and the first broken rows.
    """

    passed: bool
    critical: list[Finding]
    warnings: list[Finding]
    results: dict[str, Any]
    n_posts: int


def build_suite(task: Task, settings: ValidateSettings, *, max_images: int) -> dict[str, gx.ExpectationSuite]:
    """The suites of the tables `posts` and `labels`, as `validate_posts` prepares them.

    Each expectation's `meta` holds `rule`, its name, and `expected`, in words.
    """
    in_split = {split: {"row_condition": Column(schema.SPLIT) == split} for split in schema.SPLITS}
    low, high = settings.positive_share
    share = settings.max_leaked_share

    posts: list[Expectation] = [
        *_keys(),
        _rule(
            "image count",
            f"1 to {max_images} images",
            "critical",
            gxe.ExpectColumnValuesToBeBetween,
            column=_N_IMAGES,
            min_value=1,
            max_value=max_images,
        ),
        _rule(
            "text length",
            f"at most {settings.max_text_characters} characters of title and text",
            "warning",
            gxe.ExpectColumnValuesToBeBetween,
            column=_CHARACTERS,
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
    ]
    posts += [_classes(question.id, question.classes, "people's label") for question in task.questions]
    for split, condition in in_split.items():
        posts += [
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
        ]
        for column, what in ((_IMAGE_SHARED, "an image"), (_TEXT_SHARED, "title and text")):
            posts.append(
                _rule(
                    f"leakage of {what} in {split}",
                    f"at most {share:g} of the posts share {what} with another split",
                    "critical",
                    gxe.ExpectColumnValuesToBeNull,
                    column=column,
                    mostly=1 - share,
                    **condition,
                )
            )
    for column, what in ((_IMAGE_SHARED, "an image"), (_TEXT_SHARED, "title and text")):
        posts.append(
            _rule(
                f"leakage of {what}",
                f"no post shares {what} with another split",
                "warning",
                gxe.ExpectColumnValuesToBeNull,
                column=column,
            )
        )
    if settings.time_ordered:
        ordered = Column(schema.SPLIT).is_in([schema.TRAIN, schema.TEST])
        posts += [
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
                column_B=_NEWEST_TRAIN,
                ignore_row_if="either_value_is_missing",
                **in_split[schema.TEST],
            ),
        ]

    labels: list[Expectation] = [
        *_keys(),
        _rule("post is known", "the id of a post", "critical", gxe.ExpectColumnValuesToBeNull, column=_UNKNOWN),
    ]
    for question in task.questions:
        labels += [
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
                **in_split[schema.TRAIN],
            ),
        ]
    return {
        POSTS: gx.ExpectationSuite(name=POSTS, expectations=posts),
        LABELS: gx.ExpectationSuite(name=LABELS, expectations=labels),
    }


def validate_posts(
    posts: pd.DataFrame, labels: pd.DataFrame, task: Task, settings: ValidateSettings, *, max_images: int
) -> ValidationOutcome:
    """Check the posts and their annotations.

    Args:
        posts: as `steps.ingest` writes them.
        labels: as `steps.annotate` writes them: post_id and one column a question.
        max_images: `ingest.max_images`.

    Raises:
        DataError: a rule could not be evaluated, for a column of the wrong type.
    """
    prepared = {POSTS: _prepare_posts(posts, task), LABELS: _prepare_labels(labels, posts, task)}
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
                "unexpected_index_column_names": [_ROW, schema.POST_ID, schema.TITLE],
            },
        )
        read = {rule["rule"]: rule for rule in (_read_result(table, item.to_json_dict()) for item in result.results)}
        rules += [read[(expectation.meta or {})["rule"]] for expectation in suite.expectations]  # in the suite's order
    broken = [_finding(rule) for rule in rules if not rule["passed"]]
    critical = [finding for finding in broken if finding.severity == "critical"]
    return ValidationOutcome(
        passed=not critical,
        critical=critical,
        warnings=[finding for finding in broken if finding.severity == "warning"],
        results={"splits": _split_counts(prepared[POSTS], prepared[LABELS]), "rules": rules},
        n_posts=len(posts),
    )


# --- expectations -----------------------------------------------------------------------------


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


# --- tables -----------------------------------------------------------------------------------


def _prepare_posts(posts: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The columns that the suite reads, the derived ones with them, row for row."""
    kept = [schema.POST_ID, schema.TITLE, schema.SPLIT, schema.LABEL, schema.CREATED_AT, *task.question_ids]
    posts = posts.reset_index(drop=True)
    table = posts[kept].copy()
    table[_ROW] = range(1, len(table) + 1)
    table[_N_IMAGES] = posts[schema.IMAGES].map(_length)
    table[_CHARACTERS] = posts[schema.TITLE].map(_length) + posts[schema.TEXT].map(_length)
    images = posts[schema.IMAGE_SHA256].explode().dropna()
    table[_IMAGE_SHARED] = _shared_across_splits(images, posts)
    both = (posts[schema.TITLE].map(_length) > 0) & (posts[schema.TEXT].map(_length) > 0)
    words = posts[both].groupby([schema.TITLE, schema.TEXT], sort=False).ngroup()
    table[_TEXT_SHARED] = _shared_across_splits(words, posts)
    table[_NEWEST_TRAIN] = posts.loc[posts[schema.SPLIT] == schema.TRAIN, schema.CREATED_AT].max()
    return table


def _prepare_labels(labels: pd.DataFrame, posts: pd.DataFrame, task: Task) -> pd.DataFrame:
    table = labels[[schema.POST_ID, *task.question_ids]].reset_index(drop=True)
    table[_ROW] = range(1, len(table) + 1)
    known = posts.dropna(subset=[schema.POST_ID]).drop_duplicates(schema.POST_ID).set_index(schema.POST_ID)
    for column in (schema.TITLE, schema.SPLIT):
        table[column] = table[schema.POST_ID].map(known[column])
    table[_UNKNOWN] = table[schema.POST_ID].where(~table[schema.POST_ID].isin(known.index))
    return table


def _length(value: Any) -> int:
    """The length of a string, list or array; 0 for null."""
    return len(value) if hasattr(value, "__len__") else 0


def _shared_across_splits(contents: pd.Series, posts: pd.DataFrame) -> pd.Series:
    """For each post that shares a content with a post of another split, that post in words; else null.

    Args:
        contents: what is compared, indexed by the post's place in `posts`; a post may occur often.
    """
    uses = pd.DataFrame({"content": contents, "split": posts[schema.SPLIT].reindex(contents.index)})
    uses = uses.rename_axis("place").reset_index()
    first = uses.drop_duplicates(["content", "split"])
    shared = first[first.duplicated("content", keep=False)]
    pairs = uses.merge(shared, on="content", suffixes=("", "_other"))
    pairs = pairs[pairs["split"] != pairs["split_other"]].drop_duplicates("place").set_index("place")
    other_id = posts[schema.POST_ID].reindex(pairs["place_other"]).to_numpy()
    words = [f"{split} post {post_id}" for split, post_id in zip(pairs["split_other"], other_id, strict=True)]
    return pd.Series(words, index=pairs.index, dtype="str").reindex(posts.index)


def _split_counts(posts: pd.DataFrame, labels: pd.DataFrame) -> list[dict[str, Any]]:
    counts = []
    for split in schema.SPLITS:
        own = posts[posts[schema.SPLIT] == split]
        times = own[schema.CREATED_AT].dropna()
        counts.append(
            {
                "split": split,
                "posts": len(own),
                "images": int(own[_N_IMAGES].sum()),
                "labelled": int(own[schema.LABEL].notna().sum()),
                "positives": int((own[schema.LABEL] == 1).sum()),
                "annotated": int((labels[schema.SPLIT] == split).sum()),
                "oldest": times.min().isoformat() if len(times) else None,
                "newest": times.max().isoformat() if len(times) else None,
            }
        )
    return counts


# --- results ----------------------------------------------------------------------------------


def _read_result(table: str, item: dict[str, Any]) -> dict[str, Any]:
    """One rule's entry in `ValidationOutcome.results`, from Great Expectations' JSON."""
    config, result = item["expectation_config"], item["result"]
    meta, arguments = config["meta"], config["kwargs"]
    error = _exception(item["exception_info"])
    if error is not None:
        raise DataError(f"{table}: the rule {meta['rule']!r} could not be evaluated: {error}")
    if "unexpected_count" in result:  # a rule on each row
        observed: Any = f"{result['unexpected_count']} of {result['element_count']} rows break it"
    else:
        observed = result["observed_value"]
    columns = [arguments[key] for key in ("column", "column_A", "column_B") if key in arguments]
    return {
        "table": table,
        "rule": meta["rule"],
        "severity": config["severity"],
        "passed": item["success"],
        "column": columns[0] if columns else None,
        "expected": meta["expected"],
        "observed": observed,
        "rows": [
            {
                "row": row[_ROW],
                "post_id": row[schema.POST_ID],
                "title": row[schema.TITLE],
                "found": ", ".join(f"{column} {words(row[column])}" for column in columns),
            }
            for row in result.get("partial_unexpected_index_list") or ()
        ],
    }


def _exception(info: dict[Hashable, Any]) -> str | None:
    """Great Expectations gives either one exception, or one for each metric that a rule reads."""
    found = [info] if "raised_exception" in info else list(info.values())
    return next((one["exception_message"] for one in found if one["raised_exception"]), None)


def _finding(rule: dict[str, Any]) -> Finding:
    message = f"{rule['table']}, {rule['rule']}: expected {rule['expected']}; found {words(rule['observed'])}"
    rows = "; ".join(f"row {row['row']} ({row['post_id'] or 'no id'}): {row['found']}" for row in rule["rows"])
    return Finding(rule["rule"], rule["severity"], rule["column"], f"{message}: {rows}" if rows else message)


def words(value: Any) -> str:
    """A found value as findings and page show it."""
    if value is None or value == "NaT":
        return "nothing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
