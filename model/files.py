"""Files and folders that are written whole or not at all, and what a full disk says."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DiskError, chain

#: A disk, a quota, a process's own limit (`ulimit -f`) that is used up. Some libraries hand on words only: SQLite,
#: safetensors and tokenizers (Rust), and torch.save (C++), whose words are of a place in its file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = (
    *map(os.strerror, _FULL),
    *(f"(os error {number})" for number in _FULL),
    "database or disk is full",
)
_TORCH = ("enforce fail at inline_container.cc", "basic_ios::clear: iostream error")

#: What file systems answer that have no such call, or not for a file that is open for reading.
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
_REMEDY = "make room, or raise the quota or the limit (`ulimit -f`), then run the same command again"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A free path beside `path`, for a file or a folder that takes its place when the block ends.

    A killed process, a full disk or a power cut leaves the old content or the new; where the block fails, the old one
    stays. Of several processes that write the same path, the last one wins. A folder that is there is removed first: it
    cannot be exchanged in one step. A link is followed; a device or a pipe is written as it is.

    Raises:
        DiskError: `path` cannot be written.
    """
    with disk_told(path):
        if _is_stream(path):
            yield path
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        _remove(part)
        try:
            yield part
            to_disk(part)
            if target.is_dir():
                shutil.rmtree(target)
            part.replace(target)
        finally:
            _remove(part)


def _is_stream(path: Path) -> bool:
    """`/dev/stdout` is none of the files that can be exchanged, wherever it leads."""
    return str(path).startswith(("/dev/std", "/dev/fd/", "/proc/")) or (
        path.exists() and not path.is_file() and not path.is_dir()
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until the disk has the file, or all files of the folder.

    Many file systems find only now that there is no room, or have a file's name on the disk before its content.
    """
    for file in [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]:
        with file.open("rb") as written:
            try:
                os.fsync(written.fileno())
            except OSError as error:
                if error.errno not in _NO_FSYNC:
                    raise


def write_whole(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Write `content` (text as UTF-8) in place of what `path` holds, in one step.

    Args:
        private: only the user can read it.

    Raises:
        DiskError: as `replacing`.
    """
    with replacing(path) as part:
        if private:
            part.touch(mode=0o600)
        part.write_bytes(content.encode() if isinstance(content, str) else content)


# --- what a disk refuses --------------------------------------------------------------------------------------


@contextmanager
def disk_told(path: Path) -> Iterator[None]:
    """Make one message of it where the block, which writes `path`, finds the disk full or is refused.

    Raises:
        DiskError: in place of the error of the operating system, or of the library that wrote.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskError(f"{path}: {no_room(path, error)}") from error
        if isinstance(error, OSError) and _is_of(error, path):
            raise DiskError(
                f"{path}: cannot be written: {error.strerror or error}; name a place that this user can write to"
            ) from error
        raise


def is_full(error: BaseException | None) -> bool:
    """Whether the error, or the one that it came of, is a disk, a quota or a limit that is used up."""
    return any(
        getattr(found, "errno", None) in _FULL or any(words in str(found) for words in (*_FULL_WORDS, *_TORCH))
        for found in chain(error)
    )


def no_room(place: Path, error: BaseException) -> str:
    """What a full disk did, how many bytes are free where `place` lies, and what to do."""
    return f"cannot be written: {_words(error)}; {free_bytes(place):,} bytes are free there: {_REMEDY}"


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return next((words for words in _FULL_WORDS if words in str(error)), "the disk is full")


def full_disk(error: BaseException, *places: Path) -> str | None:
    """The message where a disk is full and nothing knows which file it was for, with the bytes free in `places`; None:
    the error is another.
    """
    if not is_full(error):
        return None
    for found in chain(error):  # what failed after it, as MLflow's word that the run failed, tells less
        if isinstance(found, DiskError):
            return str(found)
    free = ", ".join(f"{free_bytes(place):,} bytes are free in {place}" for place in places)
    return f"a file cannot be written: {_words(error)}; {free}: {_REMEDY}"


def free_bytes(place: Path) -> int:
    """Bytes that this user may still write to the file system that `place` lies on, or will lie on."""
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _is_of(error: OSError, path: Path) -> bool:
    """Whether what was refused is `path`, its part, or a folder above it: the block may also read other files."""
    if not isinstance(error.filename, str | bytes):
        return False
    refused, target = os.path.realpath(os.fsdecode(error.filename)), os.path.realpath(path)
    return refused.startswith(target) or target.startswith(refused)
