from __future__ import annotations

from pathlib import Path

from steps.code import code_digest

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
