"""A training on machines that share no folder: its files lie in the run's artifact store.

The job is put there once, and each machine fetches it once to its own disk. What a training goes on from is stored by
Ray, which counts a checkpoint only when all processes have stored their part of it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fsspec.core import url_to_fs
from pyarrow.fs import FileSystem, FileType, FSSpecHandler, PyFileSystem, copy_files

from model.files import disk_told, replacing, write_whole
from model.train import last_whole_checkpoint
from steps.fine_tune.launch import CHECKPOINT, JOB, LABELS, RESULT, TRAINER, TrainingJob

_SHARDS, _BACKBONE, _START, _BEGUN = "shards", "backbone", "start", "begun"
#: What Trainer writes in each of several processes: what its dropout draws next.
_RANDOM = "rng_state_"


@dataclass(frozen=True)
class Store:
    """A folder that all machines reach.

    url: of fsspec, as `s3://bucket/folder`. options: of its file system, where the environment does not say them.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict, repr=False)  # keys are among them

    def folder(self, name: str) -> Folder:
        # other processes write there: no listing is kept
        files, path = url_to_fs(self.url, **self.options, use_listings_cache=False)
        return Folder(PyFileSystem(FSSpecHandler(files)), f"{path.rstrip('/')}/{name}")


@dataclass(frozen=True)
class Folder:
    """A folder of a file system, which can be handed to other processes."""

    files: FileSystem
    path: str

    def has(self, name: str) -> bool:
        return self.files.get_file_info(f"{self.path}/{name}").type != FileType.NotFound

    def read(self, name: str) -> bytes:
        with self.files.open_input_stream(f"{self.path}/{name}") as file:
            return bytes(file.read())

    def write(self, name: str, content: str) -> None:
        self.files.create_dir(self.path)
        with self.files.open_output_stream(f"{self.path}/{name}") as file:
            file.write(content.encode())

    def put(self, path: Path, name: str) -> None:
        """A file, or a folder with all that is in it, links followed."""
        if path.is_dir():
            self.files.create_dir(f"{self.path}/{name}")
        copy_files(str(path), f"{self.path}/{name}", destination_filesystem=self.files)

    def get(self, name: str, path: Path) -> None:
        """The file or the folder as `path`, beside what is there."""
        info = self.files.get_file_info(f"{self.path}/{name}")
        if info.type == FileType.Directory:
            path.mkdir(parents=True, exist_ok=True)
        copy_files(info.path, str(path), source_filesystem=self.files)

    def remove(self, name: str) -> None:
        if self.has(name):
            self.files.delete_file(f"{self.path}/{name}")


def put_job(directory: Path, folder: Folder) -> None:
    """Put the job of `directory` into `folder`, where it is not there yet; its file last, so that no part is a job."""
    job = TrainingJob.model_validate_json((directory / JOB).read_text(encoding="utf-8"))
    if not folder.has(JOB):
        parts = {_SHARDS: job.shards, LABELS: directory / LABELS}
        if job.start is not None:
            parts[_START] = job.start
        if (backbone := Path(job.resolved_backbone.name)).is_dir():
            parts[_BACKBONE] = backbone
        folder.files.create_dir(folder.path)
        with TemporaryDirectory() as begun:  # by torchrun
            link_state(directory, last_whole_checkpoint(directory / TRAINER), Path(begun))
            if any(Path(begun).iterdir()):
                parts[_BEGUN] = Path(begun)
            for name, path in parts.items():
                folder.put(path, name)
    folder.write(JOB, job.model_dump_json(indent=1))


def fetch_job(folder: Folder, directory: Path) -> None:
    """Have the job of `folder` in `directory` of this machine, fetched where it is not there yet."""
    with disk_told(directory):
        if not directory.exists():
            with replacing(directory) as part:
                part.mkdir()
                for name in (_SHARDS, LABELS, _START, _BACKBONE):
                    if folder.has(name):
                        folder.get(name, part / name)
        job = TrainingJob.model_validate_json(folder.read(JOB))
        here: dict[str, Any] = {"shards": directory / _SHARDS}
        if job.start is not None:
            here["start"] = directory / _START
        if (directory / _BACKBONE).exists():
            here["resolved_backbone"] = job.resolved_backbone.model_copy(update={"name": str(directory / _BACKBONE)})
        write_whole(directory / JOB, job.model_copy(update=here).model_dump_json(indent=1))


def link_state(directory: Path, newest: Path | None, into: Path, rank: int | None = None) -> None:
    """Links in `into` to what is needed of the training of `directory` to go on with it elsewhere.

    Args:
        newest: Trainer's checkpoint.
        rank: of the process that links its own part: its random state, and the first one all else. None: all parts.
    """
    paths = [] if newest is None else [*newest.rglob("*")]
    paths += [directory / RESULT, *(directory / TRAINER).glob("*.safetensors"), *(directory / CHECKPOINT).rglob("*")]
    for path in filter(Path.is_file, paths):
        random = path.name.startswith(_RANDOM)  # another process may write its own at this moment
        if rank is None or (path.name == f"{_RANDOM}{rank}.pth" if random else rank == 0):
            link = into / path.relative_to(directory)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def take_state(folder: Folder, stored: Folder | None, directory: Path) -> None:
    """Have in `directory` what was stored last, and nothing that only this machine knows.

    Args:
        stored: None: nothing was; it begins as the job of `folder` does.
    """
    for name in (TRAINER, CHECKPOINT):
        shutil.rmtree(directory / name, ignore_errors=True)
    (directory / RESULT).unlink(missing_ok=True)
    with disk_told(directory):
        if stored is not None:
            stored.get("", directory)
        elif folder.has(_BEGUN):
            folder.get(_BEGUN, directory)
