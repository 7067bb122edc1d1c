"""Posts prepared for the model: the shard format, and batches of it.

A shard directory holds

    shards.json           sequence settings, tokenizer, number of images and their hash
    images-00000.npy …    uint8 (n, S, S, 3): each distinct image once
    posts.parquet         post_id, split, label, gold labels; `frames`: F image numbers; `text_ids`; where posts were
                          drawn for people, inclusion_probability

Dimensions: B posts · U distinct images of the batch · S side of a frame, in pixels · F frames
            · Q intermediate questions
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from .errors import CheckpointError
from .files import disk_told, to_disk, write_whole
from .prompt import Prompt
from .reader import make_batch, padded_frames
from .schema import LABEL, NO_FRAME, NO_LABEL, POST_ID, PROBABILITY, SPLIT
from .settings import SequenceSettings
from .task import Task

if TYPE_CHECKING:
    from .tower_cache import TowerCache

FRAMES, TEXT_IDS = "frames", "text_ids"
_META, _POSTS = "shards.json", "posts.parquet"


class ShardWriter:
    """Writes images in order, `images_per_file` per file, and posts in one or more parts, maybe without a row.

    Nothing waits in memory: an image is written as it comes. A context manager: where its block fails, as on a full
    disk, nothing that was written is left.
    """

    def __init__(
        self, root: Path, sequence: SequenceSettings, tokenizer_name: str, images_per_file: int = 4096
    ) -> None:
        with disk_told(root):
            root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self._sequence = sequence
        self._tokenizer_name = tokenizer_name
        self._images_per_file = images_per_file
        self._file: BinaryIO | None = None
        self._posts: pq.ParquetWriter | None = None
        self._images = 0
        self._digest = hashlib.sha256()

    def add(self, frame: np.ndarray) -> int:
        """Append one image, uint8 (S, S, 3); returns its number."""
        with disk_told(self.root):
            if self._images % self._images_per_file == 0:
                self._close_file()
                self._file = (self.root / f"images-{self._images // self._images_per_file:05d}.npy").open("wb")
                self._write_header(self._file, self._images_per_file)
            assert self._file is not None  # opened for the first image
            pixels = np.ascontiguousarray(frame).data
            self._file.write(pixels)
        self._digest.update(pixels)
        self._images += 1
        return self._images - 1

    def _write_header(self, file: BinaryIO, images: int) -> None:
        """NumPy leaves room for a first axis that grows: the header of any number of images is equally long."""
        side = self._sequence.image_size
        header = {"descr": "|u1", "fortran_order": False, "shape": (images, side, side, 3)}
        np.lib.format.write_array_header_1_0(file, header)

    def _close_file(self) -> None:
        if self._file is not None:
            closing, self._file = self._file, None
            with closing as file:
                if rest := self._images % self._images_per_file:  # the last file holds fewer than its header says
                    file.seek(0)
                    self._write_header(file, rest)

    def add_posts(self, posts: pd.DataFrame) -> None:
        """Append rows; the columns are those of the first part."""
        table = pa.Table.from_pandas(posts, preserve_index=False)
        with disk_told(self.root):
            if self._posts is None:
                self._posts = pq.ParquetWriter(self.root / _POSTS, table.schema)
            self._posts.write_table(table.cast(self._posts.schema))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        whole = False
        try:
            if error is None:
                with disk_told(self.root):
                    self._close_file()
                    self._close_posts()
                    to_disk(self.root)
                self._write_meta()
                whole = True
        finally:
            if not whole:
                self._remove()

    def _close_posts(self) -> None:
        closing, self._posts = self._posts, None
        if closing is not None:
            closing.close()

    def _remove(self) -> None:
        for close in (self._close_file, self._close_posts):
            with suppress(OSError):  # what could not be written is not written now either
                close()
        for path in (*self.root.glob("images-*.npy"), self.root / _POSTS):
            path.unlink(missing_ok=True)

    def _write_meta(self) -> None:
        meta = {
            "sequence": self._sequence.model_dump(),
            "tokenizer": self._tokenizer_name,
            "images": self._images,
            "images_per_file": self._images_per_file,
            # so that the whole directory can be told from another by its two small files
            "images_sha256": self._digest.hexdigest(),
        }
        write_whole(self.root / _META, json.dumps(meta, indent=1))


class Shards:
    """A shard directory, opened; images stay on disk until they are asked for."""

    def __init__(self, root: Path) -> None:
        try:
            meta = json.loads((root / _META).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{root}: no {_META}; run the preprocess step again: the same command does") from None
        self.root = root
        self.sequence = SequenceSettings.model_validate(meta["sequence"])
        self.n_images: int = meta["images"]
        self.images_sha256: str = meta["images_sha256"]
        self._per_file: int = meta["images_per_file"]
        self._files = [np.load(path, mmap_mode="r") for path in sorted(root.glob("images-*.npy"))]
        self.posts = pd.read_parquet(root / _POSTS)

    def subset(self, keep: np.ndarray) -> Shards:
        """The same images with a part of the posts.

        Args:
            keep: (posts,) bool.
        """
        part = copy.copy(self)
        part.posts = self.posts[keep].reset_index(drop=True)
        return part

    def images(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 (U, S, S, 3)."""
        return np.stack([self._files[n // self._per_file][n % self._per_file] for n in numbers])


class PostDataset(torch.utils.data.Dataset[int]):
    """The row numbers of one split: what they stand for is read when a batch is made."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return int(self.rows[index])


def class_labels(frame: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """int64 (len(frame), len(columns)), NO_LABEL where a cell is empty or the column is absent."""
    full = frame.reindex(columns=list(columns))
    return full.astype("Int64").fillna(NO_LABEL).to_numpy(dtype=np.int64, copy=True).reshape(len(frame), len(columns))


class Batches:
    """Makes `AgentPS.forward`'s arguments of row numbers of a shard directory.

    The process labels come from `labels` (the annotator's) where given, else from people's.

    Attributes:
        tower_cache: where it is set, batches hold the tower's states in place of pixels.
    """

    tower_cache: TowerCache | None = None

    def __init__(self, shards: Shards, prompt: Prompt, task: Task, labels: pd.DataFrame | None = None) -> None:
        self.shards = shards
        self._prompt = prompt
        posts = shards.posts
        self._frames_NF = padded_frames(posts[FRAMES], shards.sequence.frames)
        self._n_frames_N = (self._frames_NF != NO_FRAME).sum(1)
        self._text_ids = posts[TEXT_IDS].to_list()
        process = posts if labels is None else labels.set_index(POST_ID).reindex(posts[POST_ID])
        self._questions_NQ = torch.from_numpy(class_labels(process, task.question_ids))
        self._final_N = torch.from_numpy(class_labels(posts, [LABEL])[:, 0])

    def rows(self, split: str, *, labelled: bool) -> np.ndarray:
        """The row numbers of a split; `labelled`: those with a final label only."""
        wanted = (self.shards.posts[SPLIT] == split).to_numpy()
        if labelled:
            wanted = wanted & (self._final_N.numpy() != NO_LABEL)
        return np.flatnonzero(wanted)

    def images(self, rows: np.ndarray) -> tuple[np.ndarray, int]:
        """The numbers of the distinct images that these rows show, and how often a post of theirs reads one."""
        by_post = [np.unique(frames[frames != NO_FRAME]) for frames in self._frames_NF[rows]]
        reads = np.concatenate(by_post) if by_post else np.zeros(0, np.int64)
        return np.unique(reads), len(reads)

    def n_frames(self, rows: np.ndarray) -> np.ndarray:
        """int64 (len(rows),)"""
        found: np.ndarray = self._n_frames_N[rows]
        return found

    def text_ids(self, rows: np.ndarray) -> list[list[int]]:
        """The tokens of title and text."""
        return [list(self._text_ids[row]) for row in rows]

    def final_labels(self, rows: np.ndarray) -> np.ndarray:
        """int64 (len(rows),), NO_LABEL where there is none."""
        return self._final_N.numpy()[rows]

    def weights(self, rows: np.ndarray) -> np.ndarray | None:
        """float64 (len(rows),): for how many posts each labelled one stands; None: for itself (see `steps.survey`)."""
        posts = self.shards.posts
        return 1 / posts[PROBABILITY].to_numpy(np.float64)[rows] if PROBABILITY in posts else None

    def __call__(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        batch = make_batch(
            self._prompt, [self._text_ids[row] for row in rows], self._frames_NF[list(rows)], self._read_images
        )
        batch["question_labels_BQ"] = self._questions_NQ[list(rows)]
        batch["final_labels_B"] = self._final_N[list(rows)]
        return batch

    def _read_images(self, numbers_U: np.ndarray) -> dict[str, Tensor]:
        if self.tower_cache is None:
            return {"images_UHWC": torch.from_numpy(self.shards.images(numbers_U))}
        return {"tower_states_UPW": self.tower_cache[numbers_U]}
