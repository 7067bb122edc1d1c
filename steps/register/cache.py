"""What was fetched from a server, kept on this machine by its content; versions and bytes are bounded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from model.errors import RegistryError
from model.files import replacing, write_whole
from steps.locks import locked
from steps.paths import home

#: Versions. The gate reads two at once, the champion and its candidate: those used last stay whatever their size.
KEPT, _AT_ONCE = 4, 2
MAX_BYTES = 50_000_000_000
#: The entries' names, the one that was used last at the end: a clock may be wrong.
_ORDER = "order"


def entry(key: str) -> Path:
    """Where the folder of `key` is, if it is kept."""
    return home() / "versions" / key


def kept(key: str, is_whole: Callable[[Path], bool], fill: Callable[[Path], object]) -> Path:
    """The folder of `key`; the ones that were not used for longest make room for a new one.

    Args:
        key: a hash of the content.
        is_whole: whether a folder that is there still holds it; else it is made again.
        fill: makes the folder, which is free, with its content, or raises.

    Raises:
        RegistryError: it cannot be written.
    """
    folder = entry(key)
    root = folder.parent
    try:
        with locked(home() / "locks" / "versions.lock", f"the versions that are kept in {root}"):
            for left in root.glob("*.part"):  # of a process that was killed: a live one would hold the lock
                _remove(left)
            if not (folder.is_dir() and is_whole(folder)):
                with replacing(folder) as part:
                    fill(part)
            _use(root, key)
            return folder
    except OSError as error:
        raise RegistryError(f"{root}: a version cannot be kept: {error}: make room, or let it be written") from error


def _use(root: Path, key: str) -> None:
    order = root / _ORDER
    known = order.read_text(encoding="utf-8", errors="replace").split() if order.is_file() else []
    there = {path.name for path in root.iterdir() if path.is_dir()}
    names = [name for name in dict.fromkeys((*sorted(there - {*known}), *known)) if name in there and name != key]
    names.append(key)
    size = {name: sum(path.stat().st_size for path in (root / name).rglob("*") if path.is_file()) for name in names}
    while len(names) > KEPT or (len(names) > _AT_ONCE and sum(size[name] for name in names) > MAX_BYTES):
        _remove(root / names.pop(0))
    write_whole(order, "\n".join(names))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
