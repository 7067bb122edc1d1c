"""What a registered model may be called: a name that MLflow, its URIs and this project's own names leave free."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from model.errors import ConfigError

_HISTORY = ".history"
#: MLflow's databases take 256 characters, and the history's name is longer.
_LONGEST = 200
_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: What stands behind a name in a URI; `models:/champion@champion` would be read wrong by people.
_TAKEN = frozenset(("champion", "challenger", "previous", "latest"))


def log_name(name: str) -> str:
    """The registered model that holds the history of `name`."""
    return f"{name}{_HISTORY}"


def name_fault(name: str) -> str | None:
    """Why `name` cannot be that of a registered model; None where it can."""
    if not _FORM.fullmatch(name):
        return f"{name!r}: a name of A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first, was expected"
    if len(name) > _LONGEST:
        return f"{name[:20]}… has {len(name)} characters: {_LONGEST} at most"
    if name.lower().endswith(_HISTORY):
        return f"{name!r}: a name that ends in {_HISTORY} is that of a model's history: choose another"
    if name.lower() in _TAKEN or re.fullmatch(r"(?i)v?\d+", name):
        return f"{name!r} is the name of an alias or of a version: choose another"
    return None


def _usable(name: str) -> str:
    if fault := name_fault(name):
        raise ValueError(fault)
    return name


#: In settings: a name that a registered model can have.
ModelName = Annotated[str, AfterValidator(_usable)]


def check_names(name: str, target: str | None) -> None:
    """Raises: ConfigError where the model's name, or that of the model which gets its copies, cannot be used."""
    for key, value in (("register.name", name), ("promote.target", target)):
        if value is not None and (fault := name_fault(value)):
            raise ConfigError(f"{key} {fault}")
    if target is not None and target.lower() == name.lower():
        raise ConfigError(
            f"promote.target {target!r} is the model itself: every run would copy its champion into it: name another "
            "model, or leave the target out"
        )
