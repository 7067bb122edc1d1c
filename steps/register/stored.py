"""The files of a version: in the artifact store, and on this machine, where their hashes are compared."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.models_artifact_repo import REGISTERED_MODEL_META_FILE_NAME, ModelsArtifactRepository

from model.errors import CheckpointError, RegistryError
from model.files import write_whole
from model.integrity import hashes, refuse_pickles, sha256_of
from steps.register import cache
from steps.register.pyfunc import differences
from steps.register.reach import place, told

#: Where the checkpoint lies in a version, what MLflow describes the version in, and the manifest: the hashes of all.
CHECKPOINT, MLMODEL, FILES = "artifacts/checkpoint", "MLmodel", "files.json"
#: MLflow adds it to a version's folder when it reads from there.
_META = REGISTERED_MODEL_META_FILE_NAME


def stored(uri: str, ours: dict[str, str]) -> dict[str, str]:
    """The hashes of a version's files as the artifact store gives them back, and of its manifest, which it then gets.

    Args:
        ours: the hashes of those that this project wrote, by their paths; MLflow wrote the others.

    Raises:
        RegistryError: one of ours is another now.
    """
    store = _store(uri)
    with tempfile.TemporaryDirectory() as scratch:
        local = isinstance(store, LocalArtifactRepository)
        folder = _folder(store) or Path(scratch) / "version"
        if not local:
            _download(store, folder)
        found = {file: digest for file, digest in hashes(folder).items() if file != _META}
        if wrong := [file for file, digest in ours.items() if found.get(file) != digest]:
            raise RegistryError(
                f"{uri}: the artifact store gives back other bytes than it got: {', '.join(wrong[:5])}: check the store"
            )
        manifest = folder / FILES if not local else Path(scratch) / FILES
        write_whole(manifest, json.dumps(found, indent=1, sort_keys=True))
        store.log_artifact(str(manifest))
        found[FILES] = sha256_of(manifest)
        one_file(uri, FILES, found[FILES])
        if not local:  # the gate reads it next
            cache.kept(key_of(found), lambda entry: not _faults(entry, found), partial(shutil.move, folder))
    return found


def whole(uri: str, expected: dict[str, str]) -> Path:
    """The version's folder on this machine; in the artifact store itself where that is a folder here.

    Args:
        expected: the sha256 of each file by its path. Without `MLmodel` it is of the checkpoint alone.

    Raises:
        RegistryError: the files are gone, or cannot be read.
        CheckpointError: a file was changed, removed or added; a pickle is there.
    """

    def check(folder: Path) -> None:
        refuse_pickles(folder)
        if found := _faults(folder, expected):
            raise CheckpointError(
                f"{uri} in {folder}: not the version that was registered: {'; '.join(found)}: restore its files, or "
                "register it again from the run that made it"
            )

    def fill(part: Path) -> None:
        _download(store, part)
        check(part)

    try:
        store = _store(uri)
        folder = _folder(store)
        if folder is None:
            return cache.kept(key_of(expected), lambda entry: not _faults(entry, expected), fill)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        check(folder)
        return folder
    except (MlflowException, OSError) as error:
        raise RegistryError(f"registry {place()}: {uri} cannot be read: {told(error)}") from None


def one_file(uri: str, file: str, expected: str | None) -> bytes:
    """The content of one file of a version.

    Raises:
        RegistryError: it cannot be read.
        CheckpointError: its sha256 is not `expected`.
    """
    try:
        store = _store(uri)
        folder = _folder(store)
        with tempfile.TemporaryDirectory() as scratch:
            content = (Path(store.download_artifacts(file, scratch)) if folder is None else folder / file).read_bytes()
    except (MlflowException, OSError) as error:
        raise RegistryError(f"registry {place()}: {uri}/{file} cannot be read: {told(error)}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{uri}: {file} has sha256 {found[:12]}…, {(expected or 'none')[:12]}… was registered: restore the file, "
            "or register the checkpoint again"
        )
    return content


def _store(uri: str) -> ArtifactRepository:
    return get_artifact_repository(ModelsArtifactRepository.get_underlying_uri(uri))


def _folder(store: ArtifactRepository) -> Path | None:
    # links resolved: the store may lie on another disk, and MLflow loads nothing from behind a link
    return Path(store.artifact_dir).resolve() if isinstance(store, LocalArtifactRepository) else None


def _download(store: ArtifactRepository, folder: Path) -> None:
    folder.mkdir(parents=True)
    store.download_artifacts("", str(folder))


def _faults(folder: Path, expected: dict[str, str]) -> list[str]:
    if MLMODEL in expected:
        return differences(folder, expected, unlisted=(_META,))
    inner = {file.removeprefix(f"{CHECKPOINT}/"): digest for file, digest in expected.items()}
    return differences(folder / CHECKPOINT, inner)


def key_of(files: dict[str, str]) -> str:
    """The name under which a version is kept: that of its manifest, where it has one."""
    if FILES in files:
        return files[FILES][:32]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]
