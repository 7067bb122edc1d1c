"""Directories as artifacts: shards and checkpoints.

ZenML's own `Path` materializer packs a directory into one archive and unpacks it for every consumer;
shards are memory-mapped and read at random, so they stay files. In a local artifact store a
consumer reads them where they are, elsewhere they are fetched file by file.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from zenml.artifact_stores import LocalArtifactStore
from zenml.enums import ArtifactType
from zenml.io import fileio
from zenml.materializers.base_materializer import BaseMaterializer

from model.errors import DiskError
from model.files import disk_told


@dataclass(frozen=True)
class ShardDirectory:
    """A directory in the format of `model.data`."""

    path: Path


@dataclass(frozen=True)
class CheckpointDirectory:
    """A directory in the format of `model.checkpoint`."""

    path: Path


class DirectoryMaterializer(BaseMaterializer):
    """Stores the files of a directory under the artifact's own URI.

    Saving takes the directory over: it is moved, or removed once every file is stored, so that shards
    never lie on the disk twice.
    """

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (ShardDirectory, CheckpointDirectory)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA

    @property
    def _is_local(self) -> bool:
        return isinstance(self.artifact_store, LocalArtifactStore)

    @property
    def _root(self) -> str:
        return os.path.join(self.uri, "files")

    def save(self, data: ShardDirectory | CheckpointDirectory) -> None:
        """Store every file; the caller's directory is gone afterwards."""
        if self._is_local:
            try:
                with disk_told(Path(self._root)):
                    shutil.move(data.path, self._root)  # a copy, where the store is another disk
            except DiskError:
                shutil.rmtree(self._root, ignore_errors=True)
                raise
            return
        for path in sorted(data.path.rglob("*")):
            if path.is_file():
                target = os.path.join(self._root, *path.relative_to(data.path).parts)
                fileio.makedirs(os.path.dirname(target))
                fileio.copy(str(path), target)
        shutil.rmtree(data.path)

    def load(self, data_type: type[Any]) -> Any:
        """The directory: in place where the store is local, else a copy that lives as long as the process."""
        if self._is_local:
            return data_type(Path(self._root))
        with self.get_temporary_directory(delete_at_exit=False) as directory:
            for folder, _, names in fileio.walk(self._root):
                inside = os.path.relpath(str(folder), self._root)
                for name in map(str, names):
                    target = os.path.join(directory, inside, name)
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    fileio.copy(os.path.join(str(folder), name), target)
            return data_type(Path(directory))
