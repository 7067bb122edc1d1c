"""How files become a post's pictures: those that a manifest names, and videos, wherever they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from model.errors import ConfigError, ImageError, cut
from model.images import MOST_PATH, ImageLimits, read_source
from model.video import frames
from steps.ingest.posts import namer
from steps.secrets import masked


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


def read_below(url: str, source: Any, limits: ImageLimits) -> bytes:
    """The picture itself, or a file below `url`, an fsspec URL: by its name there, or by its whole URL.

    Raises: ImageError, as `model.images.read_source`.
    """
    try:
        return read_source(source, limits)
    except ImageError:
        if not isinstance(source, str) or source.startswith("data:") or len(source) > MOST_PATH:
            raise
    return read_source(source.removeprefix(f"{url.rstrip('/')}/"), limits, root=url)


def check_store(url: str) -> None:
    """Raises: ConfigError where `url` is no folder of an object store that can be read."""
    if urlsplit(url).scheme in ("http", "https", "file", "local"):
        raise ConfigError(f"{masked(url)}: name a local folder by its path; hosts stand in image_hosts")
    from fsspec.core import url_to_fs

    try:
        url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"{masked(url)}: {cut(masked(str(error)), 300)}") from error
