"""What a result depends on beside its inputs: the code that made it, by what it does and not by how it reads."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(files: Iterable[Path]) -> str:
    """Hex digest of Python files that a comment, a docstring or another line break does not change.

    So a remark in a module does not make hours of training count as outdated.
    """
    digest = hashlib.sha256()
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()
