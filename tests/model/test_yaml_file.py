"""model/yaml_file.py: what a person wrote is what is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from model.yaml_file import load_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a: 1\nb: 2\na: 3\n", "a"),
        ("{a: {max_cost: 5, max_cost: 500}}", "max_cost"),
        ("- x: 1\n  'x': 2\n", "x"),
        ("a: &base {k: 1, k: 2}\nb: {<<: *base}\n", "k"),
    ],
)
def test_a_key_that_stands_twice_in_a_mapping_is_refused(text: str, key: str) -> None:
    with pytest.raises(yaml.YAMLError, match=f"the key '{key}' stands there twice"):
        parse_yaml(text)


def test_a_merged_mapping_may_be_overridden_and_used_again() -> None:
    text = "x: {y: &b {<<: &a {k: 1, m: 1}, k: 2}}\nz: {<<: [*b, *a], m: 3}\n"
    assert parse_yaml(text) == {"x": {"y": {"k": 2, "m": 1}}, "z": {"k": 2, "m": 3}}


@pytest.mark.parametrize("text", ["a: 2025-13-45", "[" * 5000, "a: !!python/name:os.system"])
def test_what_cannot_be_read_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "a pipe"),
        (Path("/dev/zero"), "a pipe or a device"),
        (Path("a\0b"), "null"),
    ):
        with pytest.raises(yaml.YAMLError, match=message):
            load_yaml(path)
