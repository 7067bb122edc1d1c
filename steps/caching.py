"""What a step's cached result depends on beside its inputs: the code that it runs.

ZenML hashes a step function's own source only, and ours are one call each.
"""

from __future__ import annotations

from zenml.config.cache_policy import CachePolicy

from steps.paths import REPOSITORY


def depends_on(*parts: str) -> CachePolicy:
    """A cache policy that also hashes these files and folders (their *.py), named from the repository's root."""
    files: list[str] = []
    for part in parts:
        path = REPOSITORY / part
        found = [path] if path.is_file() else sorted(path.glob("*.py"))
        if not found:
            raise ValueError(f"{part}: no such file or folder of *.py files")
        files += [str(file.relative_to(REPOSITORY)) for file in found]
    return CachePolicy(file_dependencies=files)
