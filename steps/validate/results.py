"""What a validation found, read from Great Expectations' results."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

from model import schema
from model.errors import DataError, plain
from steps.validate.tables import ROW

Severity = Literal["critical", "warning"]
#: Rows of one rule that are named by their post.
SHOWN = 5


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
    results: JSON-able: `splits`, one entry per split with its counts; `rules`, one entry per rule with
        table, rule, severity, passed, column, expected, remedy, observed and the first broken rows.
    """

    passed: bool
    critical: list[Finding]
    warnings: list[Finding]
    results: dict[str, Any]
    n_posts: int


def read_result(table: str, item: dict[str, Any]) -> dict[str, Any]:
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
        "remedy": meta["remedy"],
        "observed": observed,
        "rows": [
            {
                "row": row[ROW],
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


def finding_of(rule: dict[str, Any]) -> Finding:
    message = f"{rule['table']}, {rule['rule']}: expected {rule['expected']}; found {words(rule['observed'])}"
    rows = "; ".join(f"row {row['row']} ({row['post_id'] or 'no id'}): {row['found']}" for row in rule["rows"])
    message = f"{message}: {rows}" if rows else message
    message = f"{message}. {rule['remedy']}" if rule["remedy"] else message
    return Finding(rule["rule"], rule["severity"], rule["column"], plain(message))


def words(value: Any) -> str:
    """A found value as findings and page show it."""
    if value is None or value == "NaT":
        return "nothing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
