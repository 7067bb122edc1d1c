"""How files become a post's pictures: those that a manifest names, and videos, wherever they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from model.errors import ImageError
from model.images import ImageLimits, read_source
from model.video import frames
from steps.ingest.posts import namer


def picture_reader(root: str, limits: ImageLimits) -> Callable[[Any], bytes]:
    """Reads the pictures that a manifest names, by ingest's rules: files under its folder, links followed."""
    name_of = namer(root)

    def read(source: Any) -> bytes:
        if not isinstance(source, str) or not source.strip():
            raise ImageError("no path of a file under the manifest's folder")
        try:
            name = name_of(source)
        except ValueError as error:
            raise ImageError(str(error)) from None
        return read_source(name, limits, root=root)

    return read


def video_reader(root: str, limits: ImageLimits) -> Callable[[Any], tuple[str, list[bytes]]]:
    """The sha256 and the frames of the videos that a manifest names, by the same rules."""
    return watching(picture_reader(root, for_videos(limits)), limits)


def for_videos(limits: ImageLimits) -> ImageLimits:
    """For who reads a video's bytes as those of a picture are read."""
    return replace(limits, max_bytes=limits.max_video_bytes)


def watching(read: Callable[[Any], bytes], limits: ImageLimits) -> Callable[[Any], tuple[str, list[bytes]]]:
    """The sha256 and the frames of the videos whose bytes `read` gives."""

    def watch(source: Any) -> tuple[str, list[bytes]]:
        data = read(source)
        return hashlib.sha256(data).hexdigest(), frames(data, limits)

    return watch
