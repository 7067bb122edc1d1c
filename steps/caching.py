"""What a result depends on beside its inputs: the code that made it, by what it does and not by how it reads.

ZenML hashes a step function's own source only, and ours are a few calls each. So a step's cache key holds the digest of
every file of ours that its module imports, directly or not, found by reading the imports.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from steps.paths import REPOSITORY

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_TEMPLATES = "steps/templates"
_INCLUDED = re.compile(r'{%-? *(?:extends|include|import|from) *"([^"]+)"')
#: A package that says so imports its modules by their names.
_BY_NAME = "iter_modules(__path__)"
#: Modules that no result depends on. A change of them must not cost a training.
NO_RESULT = (
    "steps.settings",  # names and ranges of options: their values are a step's parameters, which ZenML hashes
    "steps.paths",  # where things lie
    "steps.publish",  # where pages are laid
    "steps.caching",
    "model.errors",  # a step that raises has no result
)


def depends_on(module: str, *, without: Collection[str] = ()) -> Any:
    """ZenML's cache policy for the steps of `module`: their cached results hold until code that they run changes.

    Args:
        without: further modules that do not change the result, as `NO_RESULT`.
    """
    function = "code_of_this_step"  # ZenML calls it by its name
    setattr(sys.modules[module], function, functools.partial(_digest_of, module, (*NO_RESULT, *without)))
    return {"cache_func": f"{module}.{function}"}


def _digest_of(module: str, without: Collection[str]) -> str:
    return code_digest(closure(module, without=without))


def closure(module: str, *, without: Collection[str] = NO_RESULT, root: Path = REPOSITORY) -> list[Path]:
    """The files below `root` that `module` runs, sorted: itself, what it imports at any depth, and so on.

    A module that is named by a string (`python -m`) counts, and so does a page's template that is.

    Args:
        without: modules that are left out, with what only they import.
    """
    left_out = {path for name in without if (path := _file(name.split("."), root))}
    found: set[Path] = set()
    waiting = list(_files(module.split("."), root))
    while waiting:
        path = waiting.pop()
        if path not in found and path not in left_out:
            found.add(path)
            waiting += _used(path, root)
    return sorted(found)


def _file(module: Sequence[str], root: Path) -> Path | None:
    path = root.joinpath(*module)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _files(module: Sequence[str], root: Path) -> Iterator[Path]:
    """A module's file with those of the packages that it is in: importing a.b runs a, too."""
    yield from filter(None, (_file(module[: n + 1], root) for n in range(len(module))))


def _used(path: Path, root: Path) -> Iterator[Path]:
    """The files of ours that a file names."""
    text = path.read_text(encoding="utf-8")
    names = _read(text)[1] if path.suffix == ".py" else _INCLUDED.findall(text)
    package = path.relative_to(root).parent.parts
    for name in names:
        if (template := root / _TEMPLATES / name).is_file():
            yield template
        elif path.suffix == ".py":
            level = len(name) - len(name.lstrip("."))
            base = package[: len(package) - level + 1] if level else ()
            yield from _files((*base, *name[level:].split(".")), root)
    if path.name == "__init__.py" and _BY_NAME in text:
        yield from path.parent.glob("*.py")


@functools.cache
def _read(text: str) -> tuple[str, frozenset[str]]:
    """A Python file as a dump that remarks do not change; and the modules and templates that it may name.

    `from a import b` is `a.b`, whether b is a module or not; a relative name keeps its dots.
    """
    tree = ast.parse(text)
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names.update(base + ("" if base.endswith(".") else ".") + alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            names.add(node.value)
    return ast.dump(tree), frozenset(names)


def code_digest(files: Iterable[Path]) -> str:
    """Hex digest of Python files that a comment, a docstring or another line break does not change.

    So a remark in a module does not make hours of training count as outdated. Of another file every byte counts.
    """
    digest = hashlib.sha256()
    for path in files:
        text = path.read_text(encoding="utf-8")
        digest.update((_read(text)[0] if path.suffix == ".py" else text).encode())
    return digest.hexdigest()
