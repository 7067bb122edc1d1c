"""A step's cached result holds as long as the code that makes it does the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from steps.caching import NO_RESULT, closure, code_digest
from steps.paths import REPOSITORY

CODE = '''"""A module."""

LIMIT = 3


def double(x: int) -> int:
    """Twice x."""
    return 2 * x  # exact
'''


def digest(tmp_path: Path, code: str) -> str:
    path = tmp_path / "module.py"
    path.write_text(code, encoding="utf-8")
    return code_digest([path])


def test_a_remark_does_not_change_the_digest(tmp_path: Path) -> None:
    for old, new in (
        ("# exact", "# no rounding"),
        ("Twice x.", "Two of x."),
        ("A module.", "This."),
        ("\n\n\n", "\n\n"),
    ):
        assert digest(tmp_path, CODE.replace(old, new)) == digest(tmp_path, CODE)


def test_what_the_code_does_changes_the_digest(tmp_path: Path) -> None:
    for old, new in (("LIMIT = 3", "LIMIT = 4"), ("2 * x", "x * 2"), ("x: int", "x: float")):
        assert digest(tmp_path, CODE.replace(old, new)) != digest(tmp_path, CODE)


def test_which_files_are_digested_matters(tmp_path: Path) -> None:
    paths = [tmp_path / "a.py", tmp_path / "b.py"]
    for path, value in zip(paths, "12", strict=True):
        path.write_text(f"x = {value}\n", encoding="utf-8")
    assert len({code_digest(paths[:1]), code_digest(paths), code_digest(paths[::-1])}) == 3


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("import tools.saw", ["tools/__init__.py", "tools/saw.py"]),
        ("from tools import saw", ["tools/__init__.py", "tools/saw.py"]),
        ("from tools.saw import cut", ["tools/__init__.py", "tools/saw.py"]),
        ("def f():\n    from tools.saw import cut\n", ["tools/__init__.py", "tools/saw.py"]),
        ("from . import near", ["shed/near.py"]),
        ("from .near import x", ["shed/near.py"]),
        ("from .. import tools", ["tools/__init__.py"]),
        ("from ..tools.saw import cut", ["tools/__init__.py", "tools/saw.py"]),
        ('run([python, "-m", "tools.saw"])', ["tools/__init__.py", "tools/saw.py"]),
        ("import tools.outer", ["tools/__init__.py", "tools/inner.py", "tools/outer.py"]),
        ('page("leaf.html.j2")', ["steps/templates/base.html.j2", "steps/templates/leaf.html.j2"]),
        ("import os, yaml, tools_of_others", []),
        ('print("tools")', []),
    ],
)
def test_what_a_module_imports_in_any_form_counts(tmp_path: Path, line: str, imported: list[str]) -> None:
    files = {
        "shed/__init__.py": "",
        "shed/near.py": "x = 1",
        "tools/__init__.py": "",
        "tools/saw.py": "def cut(): ...",
        "tools/outer.py": "from .inner import x",
        "tools/inner.py": "x = 1",
        "steps/templates/base.html.j2": "",
        "steps/templates/leaf.html.j2": '{% extends "base.html.j2" %}',
        "shed/work.py": line,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    expected = {tmp_path / name for name in ("shed/__init__.py", "shed/work.py", *imported)}
    assert set(closure("shed.work", root=tmp_path)) == expected


def test_what_python_itself_imports_is_found_by_reading() -> None:
    plain = [f"steps.preprocess.{path.stem}" for path in (REPOSITORY / "steps" / "preprocess").glob("[!_]*.py")]
    code = (
        "import importlib, sys\n"
        f"for name in {plain}: importlib.import_module(name)\n"
        "print('', *(name for name in sys.modules if name.split('.')[0] in ('model', 'steps', 'materializers')))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    (line,) = [line for line in run.stdout.splitlines() if line.startswith(" ")]
    found = {path.relative_to(REPOSITORY).with_suffix("") for path in closure("steps.preprocess.step", without=())}
    assert set(line.split()) <= {".".join(path.parts).removesuffix(".__init__") for path in found}


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("preprocess", "model/backbone.py"),
        ("preprocess", "model/checkpoint.py"),
        ("preprocess", "model/schema.py"),
        ("preprocess", "model/backbones/qwen3_vl.py"),
        ("preprocess", "model/task.py"),
        ("preprocess", "steps/ingest/sample.py"),
        ("annotate", "steps/ingest/sample.py"),
        ("fine_tune", "materializers/directory.py"),
        ("register", "steps/evaluate/report.py"),
        ("retrain", "steps/fine_tune/backbone.py"),
    ],
)
def test_what_the_lists_by_hand_had_missed_is_found(stage: str, file: str) -> None:
    assert REPOSITORY / file in closure(f"steps.{stage}.step")


def test_the_pages_of_a_step_count_and_what_no_result_depends_on_does_not() -> None:
    found = {path.relative_to(REPOSITORY).as_posix() for path in closure("steps.evaluate.step")}
    assert {"steps/templates/evaluation.html.j2", "steps/templates/base.html.j2", "steps/templates/style.css"} <= found
    assert found.isdisjoint(name.replace(".", "/") + ".py" for name in NO_RESULT)


def test_every_name_that_is_left_out_is_a_module() -> None:
    for name in NO_RESULT:
        assert (REPOSITORY / name.replace(".", "/")).with_suffix(".py").is_file()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    for package in ("model", "steps", "materializers"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / package, root / package, ignore=ignored)
    return root


def key(root: Path) -> str:
    return code_digest(closure("steps.preprocess.step", root=root))


def test_a_change_of_a_module_that_is_imported_on_the_way_changes_the_key_and_a_comment_does_not(copy: Path) -> None:
    before = key(copy)
    assert before == key(REPOSITORY)
    file = copy / "model" / "text.py"  # preprocess/shards -> model/data -> model/text
    text = file.read_text(encoding="utf-8")
    file.write_text(text + "\n# a remark\n", encoding="utf-8")
    assert key(copy) == before
    file.write_text(text + "\nMORE = 1\n", encoding="utf-8")
    assert key(copy) != before


def test_zenml_asks_for_the_key_of_a_step_by_its_name() -> None:
    from zenml.utils import source_utils

    from steps.ingest.step import ingest

    policy = ingest.configuration.cache_policy
    assert policy is not None
    assert policy.include_step_parameters
    assert policy.cache_func is not None
    assert source_utils.load(policy.cache_func)() == code_digest(closure("steps.ingest.step"))
