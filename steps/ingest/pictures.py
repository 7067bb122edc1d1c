"""The image files of a manifest: each distinct one is read once, on all cores, and known by its content."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from model.errors import ImageError
from model.images import ImageLimits, decode, read_source
from steps.ingest.groups import IMAGE
from steps.ingest.pdq import SIDE, Hash, pdq
from steps.parallel import ordered_map
from steps.settings import IngestSettings

logger = logging.getLogger(__name__)

#: Images handed to a worker process together.
_CHUNK = 64


class Picture(NamedTuple):
    """sha256: of the file's bytes. alike: the perceptual hash, where posts are grouped by their pictures."""

    sha256: str
    alike: Hash | None


def hash_images(
    names: Iterable[str], root: str, settings: IngestSettings, workers: int | None
) -> dict[str, Picture | ImageError]:
    """What each file holds, or why it cannot be used."""
    distinct = list(dict.fromkeys(names))
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    logger.info("decoding %d images", len(distinct))
    read = partial(_read, root=root, limits=limits, alike=IMAGE in settings.group_by)
    return dict(zip(distinct, ordered_map(read, distinct, chunk=_CHUNK, workers=workers), strict=True))


def _read(name: str, root: str, limits: ImageLimits, alike: bool) -> Picture | ImageError:
    try:
        data = read_source(name, limits, root=root)
        # all of the file is read, and no more pixels made than needed
        image = decode(data, limits, least_side=SIDE // 2 if alike else 1)
    except ImageError as error:
        return error
    return Picture(hashlib.sha256(data).hexdigest(), pdq(image) if alike else None)
