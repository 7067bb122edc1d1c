"""From a raw post, or a row of shards, to `AgentPS.forward`'s arguments: one way for training, evaluation and serving.

Dimensions: B posts · U distinct images of the batch · F frames · P patches of a frame · W width of the tower's states
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .checkpoint import Loaded
from .errors import DataError, ImageError
from .images import ImageLimits, Source, decode, frame_indices, read_source, to_frame
from .post import parse, row_of, shown
from .prompt import Prompt
from .schema import IMAGE_SHA256, IMAGES, NO_FRAME, ROOT, TEXT, TITLE, VIDEO, VIDEO_SHA256
from .settings import PostLimits
from .text import encode_post_text
from .video import FRAMES, frames, read_video

_TEXTS = row_of(columns=(TITLE, TEXT))
#: Of a whole number that is read as text: Python refuses to write out much longer ones.
_MOST_BITS = 4096
#: Characters of an image's path, or of its base64 text, that a message shows.
_NAME = 200


def padded_frames(posts: Iterable[Sequence[int]], frames: int) -> np.ndarray:
    """int64 (posts, frames): the posts' frames, NO_FRAME behind those of a shorter album."""
    rows = [[*row, *[NO_FRAME] * (frames - len(row))] for row in posts]
    return np.array(rows, dtype=np.int64).reshape(len(rows), frames)


def make_batch(
    prompt: Prompt,
    texts: Sequence[Sequence[int]],
    frames_BF: np.ndarray,
    images: Callable[[np.ndarray], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """`AgentPS.forward`'s arguments without labels.

    Args:
        texts: the token ids of each post's title and text.
        frames_BF: int64, each post's images by their numbers, NO_FRAME behind those of a shorter album.
        images: of the distinct numbers, (U,), `images_UHWC` or `tower_states_UPW`.
    """
    shown_BF = frames_BF != NO_FRAME
    index_BF = frames_BF.copy()
    numbers_U, index_BF[shown_BF] = np.unique(frames_BF[shown_BF], return_inverse=True)
    batch: dict[str, Any] = dict(prompt.batch(texts, shown_BF.sum(1).tolist()))
    return batch | images(numbers_U) | {"frame_index_BF": torch.from_numpy(index_BF)}


@dataclass(frozen=True)
class RawPost:
    """A post whose cells are right; whether its images can be read is not known yet.

    root, image_sha256: see `model.images.read_source`; of images that are given without a table's root, None.
    video: its frames follow the images; None: there is none, or its frames are among the images.
    """

    title: str
    text: str
    images: Sequence[Source]
    root: str | None
    image_sha256: Sequence[str | None]
    video: Source | None = None

    @property
    def n_images(self) -> int:
        """With the frames of the video."""
        return len(self.images) + FRAMES * (self.video is not None)


def raw_post(cells: Mapping[str, Any], limits: PostLimits) -> RawPost:
    """A post by the rules of a manifest's row, its images being names, bytes, data URLs or base64 text.

    Raises:
        DataError: names the cell, what was found and what is expected.
    """
    texts, faults = parse(_TEXTS, {name: _digits(cells.get(name)) for name in (TITLE, TEXT)})
    given = cells.get(IMAGE_SHA256)
    images, hashes = _listed(cells.get(IMAGES)), _listed(given)
    # as ingest wrote it, the frames are there
    video = None if _is_null(cells.get(VIDEO)) or isinstance(cells.get(VIDEO_SHA256), str) else cells[VIDEO]
    if video is not None and _is_null(cells.get(IMAGES)):
        images = []
    if images is None or (not images and video is None):
        faults.append(f"{IMAGES}: {shown(cells.get(IMAGES))}; a list of one or more images is expected")
    elif not _is_null(given) and (hashes is None or len(hashes) != len(images)):
        faults.append(
            f"{IMAGE_SHA256}: {shown(given)}; null, or one hash for each of the {len(images)} images is expected"
        )
    if texts is not None:
        n_images = len(images or ()) + FRAMES * (video is not None)
        faults += limits.faults(getattr(texts, TITLE), getattr(texts, TEXT), n_images)
    if texts is None or images is None or faults:
        raise DataError("; ".join(faults))
    root = cells.get(ROOT)
    return RawPost(
        title=getattr(texts, TITLE),
        text=getattr(texts, TEXT),
        images=images,
        root=root if isinstance(root, str) else None,
        image_sha256=hashes or [None] * len(images),
        video=video,
    )


def _named(source: Source) -> str:
    return f" {source[:_NAME]!r}" if isinstance(source, str) else ""


def _listed(cell: Any) -> list[Any] | None:
    return list(cell) if isinstance(cell, list | tuple | np.ndarray) else None


def _is_null(cell: Any) -> bool:
    """NaN stands where tables with and without the column were joined."""
    return cell is None or cell is pd.NA or (isinstance(cell, float) and cell != cell)


def _digits(cell: Any) -> Any:
    """pandas makes whole numbers of texts of digits only, and floats where a cell of the column is null."""
    if isinstance(cell, bool | np.bool_):
        return cell
    if isinstance(cell, int | np.integer):
        return str(cell) if int(cell).bit_length() <= _MOST_BITS else cell
    return str(int(cell)) if isinstance(cell, float | np.floating) and float(cell).is_integer() else cell


class _SeenImages:
    """The tower's states of the images that were read last, by the sha256 of their files, in main memory.

    A stream of posts shows many pictures again: reposts, templates, the next version of a post.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._states: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = Lock()  # a server may score in several threads

    def get(self, key: bytes) -> Tensor | None:
        """(P, W), or None for an image that is not kept."""
        with self._lock:
            if key in self._states:
                self._states.move_to_end(key)
            return self._states.get(key)

    def put(self, key: bytes, states_PW: Tensor) -> None:
        with self._lock:
            if key not in self._states:
                self._states[key] = states_PW
                self._free -= states_PW.nbytes
            while self._free < 0:
                self._free += self._states.popitem(last=False)[1].nbytes


class PostReader:
    """Reads raw posts for one checkpoint's network."""

    def __init__(self, loaded: Loaded, seen_bytes: int, image_root: str | None = None) -> None:
        """
        Args:
            seen_bytes: main memory for what the tower said of images, which are then neither decoded nor encoded again.
            image_root: `folder` of `model.images.read_source`.
        """
        self._loaded, self._image_root = loaded, image_root
        self._seen = _SeenImages(seen_bytes)

    def shown(self, post: RawPost) -> list[int]:
        """The places of the images that its frames show."""
        sequence = self._loaded.info.sequence
        return frame_indices(post.n_images, sequence.frames, repeat=sequence.repeat_frames)

    def album(self, post: RawPost, read: dict[bytes, np.ndarray | Tensor]) -> list[bytes]:
        """The keys of a post's images in their order, those of its video's frames behind them.

        Every image must be one that ingest would let into training; only those that a frame shows become a frame.

        Args:
            read: gets what was not read before: by the image's key its frame, uint8 (S, S, 3), or the tower's states.

        Raises:
            ImageError: an image cannot be used; names it.
        """
        limits, shown_places = self._loaded.info.limits, set(self.shown(post))
        keys = []
        for place, (source, sha256) in enumerate(zip(post.images, post.image_sha256, strict=True)):
            try:
                data = read_source(source, limits, root=post.root, sha256=sha256, folder=self._image_root)
                keys.append(self._key(data, place in shown_places, read))
            except ImageError as error:
                raise ImageError(f"image {place + 1}{_named(source)}: {error}") from None
        if post.video is not None:
            try:
                found = frames(read_video(post.video, limits, root=post.root, folder=self._image_root), limits)
            except ImageError as error:
                raise ImageError(f"video{_named(post.video)}: {error}") from None
            keys += [self._key(jpeg, place in shown_places, read) for place, jpeg in enumerate(found, len(keys))]
        return keys

    def _key(self, data: bytes, is_shown: bool, read: dict[bytes, np.ndarray | Tensor]) -> bytes:
        """Of an image, which is read where it was not before."""
        limits = self._loaded.info.limits
        key = hashlib.sha256(data).digest()
        kept = read.get(key, self._seen.get(key))
        if is_shown:
            read[key] = self._frame(data, limits) if kept is None else kept
        elif kept is None:
            decode(data, limits, least_side=1)  # as ingest does
        return key

    def _frame(self, data: bytes, limits: ImageLimits) -> np.ndarray:
        size = self._loaded.info.sequence.image_size
        return to_frame(decode(data, limits, least_side=size), size)

    def batch(
        self, posts: Sequence[RawPost], albums: Sequence[list[bytes]], read: Mapping[bytes, np.ndarray | Tensor]
    ) -> dict[str, Tensor]:
        """`AgentPS.forward`'s arguments, of posts whose `albums` were `read`."""
        loaded, sequence = self._loaded, self._loaded.info.sequence
        keys = list(
            dict.fromkeys(album[k] for post, album in zip(posts, albums, strict=True) for k in self.shown(post))
        )
        number = {key: k for k, key in enumerate(keys)}
        states = self._states({key: read[key] for key in keys})
        ids = [encode_post_text(loaded.tokenizer, post.title, post.text, sequence.max_text_tokens) for post in posts]
        rows = [[number[album[k]] for k in self.shown(post)] for post, album in zip(posts, albums, strict=True)]
        return make_batch(
            loaded.prompt,
            ids,
            padded_frames(rows, sequence.frames),
            lambda numbers: {"tower_states_UPW": torch.stack([states[keys[k]] for k in numbers])},
        )

    def _states(self, read: Mapping[bytes, np.ndarray | Tensor]) -> dict[bytes, Tensor]:
        """(P, W) of each image; the frames among them go through the tower together."""
        frames = {key: value for key, value in read.items() if isinstance(value, np.ndarray)}
        states = {key: value for key, value in read.items() if isinstance(value, Tensor)}
        if frames:
            model = self._loaded.model
            images_UHWC = torch.from_numpy(np.stack(list(frames.values()))).to(next(model.parameters()).device)
            for key, states_PW in zip(frames, model.tower_states(images_UHWC).cpu(), strict=True):
                states[key] = states_PW.clone()  # a row alone would keep the whole tensor
                self._seen.put(key, states[key])
        return states
