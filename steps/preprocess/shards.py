"""Posts to shards: every distinct image decoded and resized once, every text tokenized once."""

from __future__ import annotations

import os
import shutil
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from model.data import FRAMES, TEXT_IDS, ShardWriter
from model.errors import ImageError, plain
from model.files import disk_told
from model.images import ImageLimits, frame_indices, read_frame
from model.schema import IMAGE_SHA256, IMAGES, LABEL, POST_ID, PROBABILITY, ROOT, SPLIT, TEXT, TITLE
from model.settings import SequenceSettings
from model.task import Task
from model.text import encode_post_text
from steps.parallel import ordered_map

#: Images handed to a worker at a time, and bytes of frames that it hands back at most (more cost twice as much a byte).
_CHUNK, _CHUNK_BYTES = 64, 2**19
#: Images in a file, and bytes of a file at most.
_FILE, _FILE_BYTES = 4096, 2**27
#: Posts whose frame numbers and tokens are held in memory.
_PART = 4096


#: A file that holds an image: its root and its name there, and the image's sha256.
_File = tuple[str, str, str]


def _frame(file: _File, size: int, limits: ImageLimits) -> np.ndarray:
    root, name, sha256 = file
    try:
        return read_frame(name, size, limits, root=root, sha256=sha256)
    except ImageError as error:  # it could be read when it was ingested
        raise ImageError(
            f"{root}/{plain(name)}: {error}; ingest could read it: run the pipeline again, which ingests it anew"
        ) from error


def _distinct_images(posts: pd.DataFrame) -> tuple[dict[str, int], list[_File]]:
    """Of each content hash its number, in the order of their first appearance; and one file for each number."""
    numbers: dict[str, int] = {}
    files: list[_File] = []
    for root, hashes, images in zip(posts[ROOT], posts[IMAGE_SHA256], posts[IMAGES], strict=True):
        for digest, name in zip(hashes, images, strict=True):
            if digest not in numbers:
                numbers[digest] = len(files)
                files.append((root, name, digest))
    return numbers, files


def _one_thread() -> None:
    """Every core has a process already; and threads of OpenMP do not outlive a fork."""
    torch.set_num_threads(1)


def _fitting(count: int, n_bytes: int, size: int) -> int:
    """How many frames of `size` pixels a side are no more than `count` and `n_bytes`; one always is."""
    return max(1, min(count, n_bytes // (3 * size**2)))


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
    with disk_told(folder):
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
    numbers, files = _distinct_images(posts)
    size = sequence.image_size
    with ShardWriter(root, sequence, tokenizer.name_or_path, _fitting(_FILE, _FILE_BYTES, size)) as writer:
        for frame in ordered_map(
            partial(_frame, size=size, limits=limits),
            files,
            chunk=_fitting(_CHUNK, _CHUNK_BYTES, size),
            initializer=_one_thread,
        ):
            writer.add(frame)
        for start in range(0, max(1, len(posts)), _PART):
            part = posts.iloc[start : start + _PART]
            table = part[[POST_ID, SPLIT, LABEL, *task.question_ids, *({PROBABILITY} & {*part})]].copy()
            table[FRAMES] = [
                [numbers[hashes[k]] for k in frame_indices(len(hashes), sequence.frames, repeat=sequence.repeat_frames)]
                for hashes in part[IMAGE_SHA256]
            ]
            text_ids = [  # arrays: a list of Python's integers takes three times the memory
                np.array(encode_post_text(tokenizer, title, text, sequence.max_text_tokens), dtype=np.int64)
                for title, text in zip(part[TITLE], part[TEXT], strict=True)
            ]
            table[TEXT_IDS] = pd.Series(text_ids, index=table.index)
            writer.add_posts(table)
    return len(numbers)
