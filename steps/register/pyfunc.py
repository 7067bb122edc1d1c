"""A version as MLflow loads it: by its own code, whatever else the process has imported.

MLflow executes a copy of this file that lies beside the checkpoint, in processes that have nothing of this repository.
So it imports nothing of ours: it holds the checkpoint's files to their hashes, imports the package `code/model` that
came with them under a name made of its content, and lets that code score.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

MANIFEST = "manifest.json"
CODE = "code/model"
#: The environment variable that names the folder whose files a post's sender may name; unset: none.
IMAGE_ROOT = "AGENTPS_IMAGE_ROOT"
#: What is read of a post that is sent: no `root`, which would be a folder of the sender's choice.
_COLUMNS = ("post_id", "title", "text", "images", "video")
#: How the text of a picture begins: a data URL, and the base64 of a JPEG, a PNG and a WebP.
_PICTURES = ("data:", "/9j/", "iVBORw0KGgo", "UklGR")


def differences(directory: Path, expected: Mapping[str, str], unlisted: Collection[str] = (MANIFEST,)) -> list[str]:
    """What distinguishes the files of `directory` from these hashes, a sentence per file.

    Args:
        expected: the sha256 of every file by its path with `/`.
        unlisted: files that may be there although no hash of theirs is expected.
    """
    found, odd = {}, []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):  # what it leads to may change at any time
            odd.append(name)
        elif path.is_file() and (name in expected or name not in unlisted):
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return [
        *(f"{name} is a link, or no file" for name in odd),
        *(f"{name} is missing" for name in sorted(expected.keys() - found.keys())),
        *(f"{name} was added" for name in sorted(found.keys() - expected.keys())),
        *(
            f"{name} has sha256 {found[name][:12]}…, {expected[name][:12]}… was registered"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ),
    ]


def _manifest(checkpoint: Path) -> dict[str, str]:
    """Raises: MlflowException where it is missing or damaged."""
    path = checkpoint / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MlflowException(f"{path}: {error}: the checkpoint is damaged") from error
    if not isinstance(manifest, dict):
        raise MlflowException(f"{path}: a mapping of files to hashes was expected: the checkpoint is damaged")
    return manifest


class _Package(MetaPathFinder, ExecutionLoader):
    """Imports the modules of one version under `name` from memory: no file is read later, and no bytecode written."""

    def __init__(self, name: str, folder: Path, sources: Mapping[str, bytes]) -> None:
        self._name, self._folder, self._sources = name, folder, sources

    def _file(self, fullname: str) -> str | None:
        if fullname != self._name and not fullname.startswith(f"{self._name}."):
            return None
        module = fullname[len(self._name) + 1 :].replace(".", "/")
        candidates = (f"{module}/__init__.py".lstrip("/"), f"{module}.py")
        return next((name for name in candidates if name in self._sources), None)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if self._file(fullname) else None

    def is_package(self, fullname: str) -> bool:
        return str(self._file(fullname)).endswith("__init__.py")

    def get_filename(self, fullname: str) -> str:
        return str(self._folder / str(self._file(fullname)))

    def get_source(self, fullname: str) -> str:
        return self._sources[str(self._file(fullname))].decode()


def own_code(checkpoint: Path) -> str:
    """Import the package that lies in a checkpoint whose files were verified.

    Returns:
        Its name among the modules of this process; the same code has the same name.
    """
    folder = checkpoint / CODE
    sources = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.py"))}
    digest = hashlib.sha256()
    for file, source in sources.items():
        digest.update(f"{file}\0{len(source)}\0".encode() + source)
    name = f"agentps_model_{digest.hexdigest()[:16]}"
    if name not in sys.modules:
        sys.meta_path.insert(0, _Package(name, folder, sources))
        import_module(name)
    return name


def _without_paths(images: Any) -> Any:
    """The cell with null in place of each path: a version whose code is older would read any file of its server."""
    if not isinstance(images, list | tuple | np.ndarray):
        return images
    return [image if isinstance(image, bytes) or str(image).startswith(_PICTURES) else None for image in images]


class AgentPSModel(PythonModel):
    """DataFrame of posts in, one row per post of score, decisions, answers and error out (see `Scorer.score`).

    Whoever sends a post names files of this machine only under the folder that its operator set as IMAGE_ROOT.
    """

    def load_context(self, context: Any) -> None:
        """Raises: MlflowException where a file is not the one that was registered."""
        checkpoint = Path(context.artifacts["checkpoint"])
        if found := differences(checkpoint, _manifest(checkpoint)):
            raise MlflowException(f"{checkpoint}: not the checkpoint that was registered: {'; '.join(found)}")
        scorer = import_module(f"{own_code(checkpoint)}.scorer").Scorer
        self._reads_any_path = "image_root" not in signature(scorer.from_directory).parameters
        options = {} if self._reads_any_path else {"image_root": os.environ.get(IMAGE_ROOT) or None}
        self._scorer = scorer.from_directory(checkpoint, **options)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """As `Scorer.score`; in a column that lacks a value, None stands for it: JSON has neither NaN nor NA."""
        posts = model_input[[name for name in _COLUMNS if name in model_input]]
        if self._reads_any_path:
            posts = posts.assign(images=[_without_paths(images) for images in posts["images"]])
        table: pd.DataFrame = self._scorer.score(posts)
        for name in table:
            if table[name].isna().any():
                table[name] = table[name].astype(object).where(table[name].notna(), None)
        return table


if __name__ != "steps.register.pyfunc":  # the repository takes the loader from here, MLflow the model from its copy
    set_model(AgentPSModel())
