"""Posts to shards: every distinct image decoded and resized once, every text tokenized once."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from model.data import FRAMES, TEXT_IDS, ShardWriter
from model.errors import ImageError
from model.images import ImageLimits, frame_indices, read_frame
from model.schema import IMAGE_SHA256, IMAGES, LABEL, POST_ID, SPLIT, TEXT, TITLE
from model.settings import SequenceSettings
from model.task import Task
from model.text import encode_post_text

#: Images handed to a worker at a time.
_CHUNK = 64


def _frame(path: str, size: int, limits: ImageLimits) -> np.ndarray:
    try:
        return read_frame(path, size, limits)
    except ImageError as error:  # it could be read when it was ingested
        raise ImageError(f"{path}: {error}; the file has changed since ingest: run the pipeline again") from error


def _distinct_images(posts: pd.DataFrame) -> dict[str, str]:
    """One path for each content hash, in the order of their first appearance."""
    paths: dict[str, str] = {}
    for hashes, images in zip(posts[IMAGE_SHA256], posts[IMAGES], strict=True):
        for digest, path in zip(hashes, images, strict=True):
            paths.setdefault(digest, path)
    return paths


def _frames(paths: list[str], size: int, limits: ImageLimits) -> Iterator[np.ndarray]:
    with ProcessPoolExecutor() as pool:
        yield from pool.map(partial(_frame, size=size, limits=limits), paths, chunksize=_CHUNK)


def scratch_folder(work: Path) -> Path:
    """An empty folder of this process under `work`.

    Those of processes that ended are removed: they were copied into the artifact store, or their run was killed.
    """
    prefix = f"shards-{socket.gethostname()}-"
    for folder in work.glob(f"{prefix}*"):
        process = folder.name.removeprefix(prefix)
        if process.isdigit() and (int(process) == os.getpid() or not _is_running(int(process))):
            shutil.rmtree(folder)
    folder = work / f"{prefix}{os.getpid()}"
    folder.mkdir(parents=True)
    return folder


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def write_shards(
    root: Path,
    posts: pd.DataFrame,
    task: Task,
    sequence: SequenceSettings,
    tokenizer: PreTrainedTokenizerBase,
    limits: ImageLimits,
) -> int:
    """Write all posts under `root` (see `model.data` for the format); returns the number of distinct images.

    Raises:
        ImageError: an image has changed since ingest.
    """
    paths = _distinct_images(posts)
    writer = ShardWriter(root, sequence, tokenizer.name_or_path)
    numbers = {
        digest: writer.add(frame)
        for digest, frame in zip(paths, _frames(list(paths.values()), sequence.image_size, limits), strict=True)
    }
    table = posts[[POST_ID, SPLIT, LABEL, *task.question_ids]].copy()
    table[FRAMES] = [
        [numbers[hashes[k]] for k in frame_indices(len(hashes), sequence.frames)] for hashes in posts[IMAGE_SHA256]
    ]
    table[TEXT_IDS] = [
        encode_post_text(tokenizer, title, text, sequence.max_text_tokens)
        for title, text in zip(posts[TITLE], posts[TEXT], strict=True)
    ]
    writer.close(table)
    return len(numbers)
