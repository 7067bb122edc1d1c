"""The one reader of YAML that people write: run files, tasks, prices, stacks."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import yaml

_LARGEST = 1_000_000
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping: of the two, YAML's readers silently take the last."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(
                    "in the mapping that begins",
                    node.start_mark,
                    f"the key {key.value!r} stands there twice: keep one",
                    key.start_mark,
                )
            seen.add((key.tag, key.value))
        return node


def parse_yaml(text: str) -> Any:
    """Raises: yaml.YAMLError: it is no YAML, or a key stands twice in a mapping."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:  # a date that is none; a thousand brackets
        raise yaml.YAMLError(str(error)) from error


def load_yaml(path: Path) -> Any:
    """Raises: OSError, UnicodeDecodeError; yaml.YAMLError as `parse_yaml`, or where the path names no file."""
    try:
        found = path.stat()
    except ValueError as error:  # a NUL in the path
        raise yaml.YAMLError(f"no path of a file: {error}") from error
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise yaml.YAMLError("a pipe or a device, which can wait for ever and is read once: write it to a file")
    if found.st_size > _LARGEST:
        raise yaml.YAMLError(f"{found.st_size:,} bytes; what people write has {_LARGEST:,} at most")
    return parse_yaml(path.read_text(encoding="utf-8"))
