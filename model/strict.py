"""The base of what is read from files that people or earlier versions wrote, and what is wrong with such a file."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
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
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if _holds(annotation, lambda kind: isinstance(kind, type) and issubclass(kind, BaseModel)):
            return value  # a section looks at its own
        for part in _parts(value):
            if isinstance(part, bool) and not _holds(annotation, lambda kind: kind in (bool, Any, JsonValue)):
                raise ValueError("true or false is not expected here (YAML also reads yes, no, on and off as one)")
            if isinstance(part, str) and ("\0" in part or any("\ud800" <= c <= "\udfff" for c in part)):
                raise ValueError("a NUL character, or half of a surrogate pair, is no text: remove it")
        return value


def _parts(value: Any) -> Iterator[Any]:
    """The value, or what a list or a mapping holds at any depth."""
    if isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _parts(inner)
    else:
        yield value


def _holds(annotation: Any, wanted: Callable[[Any], bool]) -> bool:
    """Whether a type is `wanted`, or has such a one among its arguments."""
    return wanted(annotation) or any(_holds(part, wanted) for part in get_args(annotation))


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
