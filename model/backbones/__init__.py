"""The kinds of backbone that can be trained: one module each, named after the `model_type` of its config.json.

`model.family` has what such a module fills; docs/backbones.md shows how to add one. No other file names a family.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..family import Family


def names() -> list[str]:
    """The model types that are known; nothing is imported for it."""
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def family_class(model_type: str) -> type[Family]:
    """
    Raises:
        ConfigError: no family has this name.
    """
    if model_type not in names():
        raise ConfigError(f"a backbone of type {model_type!r}: one of {', '.join(names())} is expected")
    found: type[Family] = import_module(f".{model_type}", __package__).FAMILY
    return found


def family_of(config: PreTrainedConfig) -> Family:
    """What a backbone with this config is, and how it is computed."""
    return family_class(config.model_type)(config)
