"""The posts that records speak of: their cells in a manifest, and their pictures as the desk shows them."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from model.errors import AgentPSError, ImageError
from model.images import ImageLimits, decode
from model.post import post_id_of
from model.schema import CREATED_AT, IMAGES, LANGUAGE, POST_ID, TEXT, TITLE, VIDEO
from model.video import FRAMES
from scoring.files import picture_reader, video_reader
from scoring.plan import sources_of
from steps.ingest.rows import is_url
from steps.ingest.streamed import stream
from steps.retrain.fresh import folder_of

logger = logging.getLogger(__name__)

_COLUMNS = (POST_ID, TITLE, TEXT, IMAGES, VIDEO, CREATED_AT, LANGUAGE)
#: Pixels of a picture's longer side; and how often, in seconds, a manifest is asked whether it has grown.
_SIDE, _LOOK = 1_024, 5.0
#: A page waits so many seconds for a manifest that has grown; one that takes longer is there for a later page.
_SOON = 0.2
_SHOWN = 64
#: Videos whose frames are kept: a page asks for each frame by itself.
_VIDEOS = 8


class Post(NamedTuple):
    """images, video: their sources, as the manifest has them. slices: that it belongs to, as `month 2026-03`."""

    post_id: str
    title: str
    text: str
    images: tuple[Any, ...]
    video: str | None
    slices: frozenset[str]

    @property
    def pictures(self) -> int:
        """How many are shown: the images, and behind them the frames of the video."""
        return len(self.images) + (0 if self.video is None else FRAMES)


def _post(post_id: str, cells: Mapping[str, Any]) -> Post:
    title, text = (str(cells.get(name) or "") for name in (TITLE, TEXT))
    images = cells.get(IMAGES)
    images = tuple(images)[:_SHOWN] if isinstance(images, list | tuple) else ()
    video = cells.get(VIDEO)
    video = video if isinstance(video, str) else None
    slices = {"one image"} if len(images) == 1 and video is None else set()
    slices |= set() if (title + text).strip() else {"without text"}
    if created := cells.get(CREATED_AT):
        slices.add(f"month {str(created)[:7]}")
    if language := cells.get(LANGUAGE):
        slices.add(f"language {language!s:.20}")
    return Post(post_id, title, text, images, video, frozenset(slices))


class Posts:
    """Of a manifest, or of a folder's manifests; of a post that stands there twice the last. None: there are none.

    A manifest that grows is read again, from its begin and beside the pages, when a post is asked for that it lacked.
    """

    def __init__(self, source: str | None, limits: ImageLimits, now: Callable[[], float] = time.monotonic) -> None:
        """Raises: ManifestError: it cannot be read."""
        self._source, self._limits, self._now = source, limits, now
        self._one = threading.Lock()
        self._posts: dict[str, Post] = {}
        self._read = picture_reader(folder_of(source), limits) if source else None
        self._watch = lru_cache(_VIDEOS)(video_reader(folder_of(source), limits)) if source else None
        self._watching = threading.Lock()
        self._slices: list[str] = []
        self._state: Any = None
        self._at = now()
        if source:
            self._load(source)

    def __len__(self) -> int:
        return len(self._posts)

    def get(self, post_id: str) -> Post | None:
        found = self._posts.get(post_id)
        if found is None and self._source and self._now() - self._at > _LOOK and self._one.acquire(blocking=False):
            self._at = self._now()
            reading = threading.Thread(target=self._look, args=(self._source,), daemon=True)
            reading.start()
            reading.join(_SOON)
            found = self._posts.get(post_id)
        return found

    def _look(self, source: str) -> None:
        try:
            if _state(source) != self._state:
                self._load(source)
        except (AgentPSError, OSError) as error:
            logger.error("%s; the posts that were read before are shown", error)
        finally:
            self._at = self._now()
            self._one.release()

    def slices(self) -> list[str]:
        return self._slices

    def _load(self, source: str) -> None:
        state, found = _state(source), {}
        for manifest in sources_of(source):
            for row in stream(manifest, _COLUMNS):
                post_id = post_id_of((row.cells or {}).get(POST_ID))
                if row.cells is not None and post_id is not None:
                    found[post_id] = _post(post_id, row.cells)
        self._posts, self._state = found, state
        self._slices = sorted({name for post in found.values() for name in post.slices})

    def picture(self, post_id: str, number: int) -> bytes:
        """An image, or a frame of the video, as a JPEG of ours: pixels only, whatever the file held.

        Raises:
            ImageError: there is no such picture, or it cannot be read or decoded.
        """
        post = self.get(post_id)
        if post is None or self._read is None or self._watch is None or not 0 <= number < post.pictures:
            raise ImageError("there is no such picture")
        if number < len(post.images):
            data = self._read(post.images[number])
        else:
            with self._watching:  # a browser asks for several frames at once: the first request decodes for all
                data = self._watch(post.video)[1][number - len(post.images)]
        image = decode(data, self._limits, least_side=_SIDE // 2)
        image.thumbnail((_SIDE, _SIDE))
        made = io.BytesIO()
        image.save(made, "JPEG", quality=85)
        return made.getvalue()


def _state(source: str) -> Any:
    if is_url(source):
        return None
    return [(path, (found := Path(path).stat()).st_mtime_ns, found.st_size) for path in sources_of(source)]
