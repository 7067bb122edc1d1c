"""How the files that a manifest names become a post's pictures."""

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
    read = picture_reader(root, replace(limits, max_bytes=limits.max_video_bytes))

    def watch(source: Any) -> tuple[str, list[bytes]]:
        data = read(source)
        return hashlib.sha256(data).hexdigest(), frames(data, limits)

    return watch
