"""What is installed is what the code imports, our packages are our own, and `make` works in any folder."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from steps.paths import REPOSITORY

PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
PACKAGES = [pattern.removesuffix("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
INSTALLED = [*PACKAGES, *PROJECT["tool"]["setuptools"]["py-modules"]]
OURS = [*INSTALLED, "tests", "benchmarks"]
#: Declared, though nothing of ours imports them.
NOT_IMPORTED = {
    "accelerate": "transformers.Trainer runs on it",
    "kubernetes": "ZenML's Kubernetes orchestrator",
    "mkdocs-material": "make docs",
    "mypy": "make check",
    "pandas-stubs": "mypy",
    "pytest-xdist": "make test",
    "ruff": "make check",
    "types-pyyaml": "mypy",
}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _declared(*lists: list[str]) -> set[str]:
    found = {_normal(re.match(r"[\w.-]+", requirement)[0]) for requirements in lists for requirement in requirements}  # type: ignore[index]
    return found - {"agentps"}  # an extra of our own


def _files(*names: str) -> Iterator[Path]:
    for name in names:
        path = REPOSITORY / name
        yield from [path] if path.suffix else path.rglob("*.py")


def _imported(files: Iterator[Path]) -> dict[str, str]:
    """Module of another project -> a file of ours that imports it."""
    found = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            found |= {name.partition(".")[0]: str(path) for name in names}
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, *OURS}}


def _undeclared(imported: dict[str, str], declared: set[str]) -> dict[str, str]:
    distributions = importlib.metadata.packages_distributions()
    return {
        module: path
        for module, path in imported.items()
        if not declared & {_normal(name) for name in distributions.get(module, [])}
    }


PRODUCT = _imported(_files(*PACKAGES, "agentps_training.py"))
#: Without benchmarks/peers/, which runs in environments of its own.
DEVELOPMENT = _imported(
    path for path in _files("tests", "benchmarks", "examples") if "peers" not in path.relative_to(REPOSITORY).parts
)


def test_what_our_code_imports_is_declared() -> None:
    assert len(PRODUCT) > 20
    assert _undeclared(PRODUCT, _declared(PROJECT["project"]["dependencies"])) == {}


def test_what_tests_and_benchmarks_import_is_declared() -> None:
    assert {"pytest", "torchmetrics"} <= set(DEVELOPMENT)
    every = _declared(PROJECT["project"]["dependencies"], *EXTRAS.values())
    assert _undeclared(DEVELOPMENT, every) == {}


def test_what_is_declared_is_imported_or_has_a_reason() -> None:
    distributions = importlib.metadata.packages_distributions()
    imported = {_normal(name) for module in {**PRODUCT, **DEVELOPMENT} for name in distributions.get(module, [])}
    assert _declared(PROJECT["project"]["dependencies"], *EXTRAS.values()) - imported == set(NOT_IMPORTED)


def test_what_is_declared_is_in_the_lock() -> None:
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = {_normal(line.partition("==")[0]) for line in lines if "==" in line}
    every = _declared(PROJECT["project"]["dependencies"], *(EXTRAS[name] for name in EXTRAS.keys() - {"docs"}))
    assert every - locked == set()


def test_each_package_of_ours_is_the_one_that_is_imported_from_any_folder(tmp_path: Path) -> None:
    """Installed editable, they come after `site-packages`: another project's `model` or `steps` would win there."""
    code = f"import importlib.util\nfor name in {INSTALLED}: print(importlib.util.find_spec(name).origin)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = [
        REPOSITORY / (f"{name}/__init__.py" if (REPOSITORY / name).is_dir() else f"{name}.py") for name in INSTALLED
    ]
    assert found.stdout.splitlines() == [str(path) for path in expected]


def test_every_top_level_package_is_named_in_the_project() -> None:
    assert {path.parent.name for path in REPOSITORY.glob("*/__init__.py")} == {*PACKAGES, "tests", "benchmarks"}


# Stands for the Python that `make` finds, and for the one of the environment that it makes.
_PYTHON = """#!/bin/sh
echo "$*" >> calls
case "$*" in
    *ensurepip*) ;;
    "-m venv --clear .venv")
        mkdir -p .venv/bin .venv/lib
        echo "command = python -m venv --clear $(pwd -P)/.venv" > .venv/pyvenv.cfg
        cp "$0" .venv/bin/python ;;
    *sysconfig*) echo "$(pwd -P)/.venv/lib" ;;
esac
"""


class Clone:
    """What `make setup` needs of a clone, with a Python that installs nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "infra").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "requirements.lock", "infra/telemetry_off.pth"):
            shutil.copy(REPOSITORY / name, folder / name)

    def make(self, *arguments: str) -> list[str]:
        """The calls of the environment's Python."""
        calls, python = self.folder / "calls", self.folder.parent / "python"
        calls.unlink(missing_ok=True)
        python.write_text(_PYTHON)
        python.chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        # make's list of candidates is divided by spaces: this one is found through PATH
        environment["PATH"] = f"{python.parent}:{environment['PATH']}"
        command = ["make", "PYTHON=python", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("name", ["plain", "my projects", "Ann's", 'a b\'c $d "e"'])
def test_setup_installs_once_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    clone = Clone(tmp_path / name / "agentps")
    assert [call.split(" install ")[1] for call in clone.make("setup") if " install " in call] == [
        "--quiet -r requirements.lock",
        "--quiet --no-deps --no-build-isolation -e .",
    ]
    assert (clone.folder / ".venv" / "lib" / "telemetry_off.pth").exists()
    assert clone.make("setup") == ["-m infra.local_stack"], "nothing changed"
    (clone.folder / "requirements.lock").write_text("click==8.5.0\n")
    assert len(clone.make("setup")) > 1, "something changed"


def test_a_moved_environment_is_made_anew(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "my projects" / "agentps")
    clone.make("setup")
    clone.folder = clone.folder.rename(tmp_path / "projects")
    assert any(" install " in call for call in clone.make("setup"))
    assert str(clone.folder) in (clone.folder / ".venv" / "pyvenv.cfg").read_text()


def test_a_config_of_any_name_reaches_the_pipeline(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "agentps")
    clone.make("setup")
    zenml = clone.folder / ".venv" / "bin" / "zenml"
    zenml.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > ran\n')
    zenml.chmod(0o755)
    clone.make("train", "CONFIG=my posts/Ann's.yaml")
    expected = ["pipeline", "run", "agentps_training", "-c", "my posts/Ann's.yaml"]
    assert (clone.folder / "ran").read_text().splitlines() == expected
