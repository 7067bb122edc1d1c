"""The base of what is read from files that people or earlier versions wrote, and what is wrong with such a file."""

from __future__ import annotations

import reprlib

from pydantic import BaseModel, ConfigDict, ValidationError

#: A value as far as a message has room for it; a list of lists of lists is not written out first.
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 120
#: Options whose value may hold a secret: it is not shown.
_SECRET = ("ledger", "webhook")


class Strict(BaseModel):
    """Unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def explain_validation(error: ValidationError) -> str:
    """Pydantic's findings as one line each: the key, what is wrong with it, what was found."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(top level)"
        is_secret = where.rpartition(".")[2] in _SECRET
        whole = is_secret or item["type"] in ("missing", "extra_forbidden") or isinstance(item["input"], dict)
        found = "" if whole else f" (found {_SHOWN.repr(item['input'])})"
        what = {"extra_forbidden": "unknown key: remove it or correct its name", "missing": "is missing"}.get(
            item["type"], item["msg"].removeprefix("Value error, ")
        )
        lines.append(f"{where}: {what}{found}")
    return "; ".join(lines)
