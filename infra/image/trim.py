"""Uninstall what the image does not need: what the locks name for developers and tests alone. `trim.py PYPROJECT`."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: Extras of pyproject.toml that do not go into the image.
DEVELOPERS = {"dev", "docs", "test-scoring"}


def needed(pyproject: Path) -> set[str]:
    """The packages that the project and its other extras ask for, and theirs. All of them are installed."""
    read = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    project, extras = read["project"], read["project"]["optional-dependencies"]
    lines = [*read["build-system"]["requires"], *project["dependencies"]]
    lines += [line for name in extras.keys() - DEVELOPERS for line in extras[name]]
    todo, seen = [Requirement(line) for line in lines], set[tuple[str, str]]()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} if name != project["name"] else ():
            if (name, extra) not in seen:
                seen.add((name, extra))
                asked = map(Requirement, distribution(name).requires or [])
                todo += [each for each in asked if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def main() -> None:
    installed = {canonicalize_name(each.name) for each in distributions()}
    beside = sorted(installed - needed(Path(sys.argv[1])) - {"pip"})
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--yes", *beside], check=True)


if __name__ == "__main__":
    main()
