"""The hashes of a checkpoint's files, and nothing among them that could run code while it is read.

A registered checkpoint carries `manifest.json`: the sha256 of each of its other files. The registry
keeps the same hashes, and that of the manifest, in the version's tags: the manifest tells damage from
the right bytes, the tags also tell a manifest that was rewritten together with them. Files are held to
them by `steps.register.pyfunc`, before any code of the checkpoint runs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .errors import CheckpointError
from .files import write_whole

MANIFEST = "manifest.json"
#: Suffixes under which torch, NumPy, joblib and Keras store pickles.
_PICKLES = frozenset((".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".npy", ".npz", ".joblib", ".dill", ".h5"))
#: A pickle of protocol 2 to 5, and a zip archive, which is what torch.save writes.
_SIGNATURES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
#: Begins with the length of its header, so any two bytes may come first; its reader refuses anything else.
_SAFETENSORS = ".safetensors"


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(directory: Path) -> dict[str, str]:
    """The sha256 of every file, by its path relative to `directory`, with `/`."""
    return {path.relative_to(directory).as_posix(): sha256_of(path) for path in _files(directory)}


def refuse_pickles(directory: Path) -> None:
    """Raises: CheckpointError where a file's name or first bytes are those of a pickle."""
    for path in _files(directory):
        if path.suffix.lower() == _SAFETENSORS:
            continue
        with path.open("rb") as file:
            start = file.read(4)
        if path.suffix.lower() in _PICKLES or start.startswith(_SIGNATURES):
            raise CheckpointError(
                f"{path}: a pickle, or a format that may hold one: reading it could run any code; weights are read "
                f"from {_SAFETENSORS} only: remove the file, or convert it where it can be trusted"
            )


def seal(directory: Path) -> dict[str, str]:
    """Write the manifest; the hashes of all files, the manifest's own among them.

    Raises:
        CheckpointError: a pickle is there.
    """
    refuse_pickles(directory)
    (directory / MANIFEST).unlink(missing_ok=True)
    write_whole(directory / MANIFEST, json.dumps(hashes(directory), indent=1, sort_keys=True))
    return hashes(directory)
