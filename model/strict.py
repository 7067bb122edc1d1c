"""The base of what is read from files that people or earlier versions wrote, and what is wrong with such a file."""

from __future__ import annotations

import reprlib
import types
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, ValidationInfo, field_validator

#: A value as far as a message has room for it; a list of lists of lists is not written out first.
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 120
#: Options whose value may hold a secret: it is not shown.
_SECRET = ("ledger", "webhook")


class Strict(BaseModel):
    """Unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Chosen(Strict):
    """What people set: a number is finite, and true or false is none, though Python counts them as 1 and 0."""

    model_config = ConfigDict(allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if any(isinstance(part, bool) for part in _parts(value)) and not _takes_truth(annotation):
            raise ValueError("true or false is not expected here (YAML also reads yes, no, on and off as one)")
        return value


def _parts(value: Any) -> Iterator[Any]:
    """The value, or what a list, or a mapping that is no section of its own, holds."""
    if isinstance(value, dict):
        for inner in value.values():
            if not isinstance(inner, dict):
                yield from _parts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _parts(inner)
    else:
        yield value


def _takes_truth(annotation: Any) -> bool:
    if annotation in (bool, Any, JsonValue) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return True  # a section looks at its own
    if isinstance(annotation, types.GenericAlias) or get_args(annotation):
        return any(_takes_truth(part) for part in get_args(annotation))
    return False


def explain_validation(error: ValidationError) -> str:
    """Pydantic's findings as one line each: the key, what is wrong with it, what was found."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(top level)"
        is_secret = where.rpartition(".")[2] in _SECRET
        whole = is_secret or item["type"] in ("missing", "extra_forbidden") or isinstance(item["input"], dict)
        found = "" if whole else f" (found {_SHOWN.repr(item['input'])})"
        what = {
            "extra_forbidden": "unknown key: remove it or correct its name",
            "missing": "is missing",
            "finite_number": "not finite",
        }.get(item["type"], item["msg"].removeprefix("Value error, "))
        lines.append(f"{where}: {what}{found}")
    return "; ".join(lines)
