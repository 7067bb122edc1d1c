"""The kinds of backbone that can be trained: one module each, named after the `model_type` of its config.json.

`model.family` has what such a module fills; docs/backbones.md shows how to add one. No other file names a family.
"""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..family import Family


_NAME = re.compile(r"[a-z][a-z0-9_]*")


def names() -> list[str]:
    """The model types that are known, for a message: none in a registered version's code, which lies in no folder."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def is_known(model_type: object) -> bool:
    """Whether there is a module for it, which is not imported."""
    named = isinstance(model_type, str) and _NAME.fullmatch(model_type)
    return bool(named) and find_spec(f".{model_type}", __package__) is not None


def family_class(model_type: str) -> type[Family]:
    """
    Raises:
        ConfigError: no family has this name.
    """
    if not is_known(model_type):
        raise ConfigError(f"a backbone of type {model_type!r}: one of {', '.join(names())} is expected")
    found: type[Family] = import_module(f".{model_type}", __package__).FAMILY
    return found


def family_of(config: PreTrainedConfig) -> Family:
    """What a backbone with this config is, and how it is computed."""
    return family_class(config.model_type)(config)
