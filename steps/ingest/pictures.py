"""The images and videos of a manifest: each distinct file is read once, on all cores, and known by its content.

The frames of a video are written as files under `home()`; from there on they are a post's images like all others.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from model import schema
from model.errors import ImageError
from model.files import replacing, write_whole
from model.images import ImageLimits, decode, read_source
from model.video import FORM, FRAMES, frames, read_video
from steps.ingest.groups import IMAGE
from steps.ingest.pdq import LEAST_QUALITY, SIDE, Hash, pdq
from steps.parallel import ordered_map
from steps.paths import home
from steps.settings import IngestSettings

logger = logging.getLogger(__name__)

#: Images, and videos, handed to a worker process together.
_CHUNK, _CHUNK_VIDEOS = 64, 2
#: Frames by which two videos are compared: many begin and end with what others begin and end with.
_MIDDLE = range(FRAMES // 4, FRAMES - FRAMES // 4)


class Picture(NamedTuple):
    """sha256: of the file's bytes. alike: the perceptual hash, where posts are grouped by their pictures."""

    sha256: str
    alike: Hash | None


class Clip(NamedTuple):
    """sha256: of the video's bytes. frames: names of files below `frames_home()`, with their own sha256. alike: of
    those by which videos are compared, where posts are grouped by their pictures, and that tell enough.
    """

    sha256: str
    frames: tuple[tuple[str, str], ...]
    alike: dict[str, Hash]


def frames_home() -> Path:
    return home() / "frames"


def frames_mark() -> str:
    """Another one after the frames were removed: what is cached by it is made anew."""
    path = frames_home() / "mark"
    if not path.exists():
        write_whole(path, uuid.uuid4().hex)
    return path.read_text(encoding="ascii")


def hash_images(
    names: Iterable[str], root: str, settings: IngestSettings, workers: int | None
) -> dict[str, Picture | ImageError]:
    """What each file holds, or why it cannot be used."""
    distinct = list(dict.fromkeys(names))
    logger.info("decoding %d images", len(distinct))
    read = partial(_read, root=root, limits=settings.limits, alike=IMAGE in settings.group_by)
    return dict(zip(distinct, ordered_map(read, distinct, chunk=_CHUNK, workers=workers), strict=True))


def _read(name: str, root: str, limits: ImageLimits, alike: bool) -> Picture | ImageError:
    try:
        data = read_source(name, limits, root=root)
        # all of the file is read, and no more pixels made than needed
        image = decode(data, limits, least_side=SIDE // 2 if alike else 1)
    except ImageError as error:
        return error
    return Picture(hashlib.sha256(data).hexdigest(), pdq(image) if alike else None)


def read_videos(
    names: Iterable[str], root: str, settings: IngestSettings, workers: int | None
) -> dict[str, Clip | ImageError]:
    """The frames of each video, decoded where no ingest did so before; or why it cannot be used."""
    distinct = list(dict.fromkeys(names))
    if not distinct:
        return {}
    logger.info("decoding %d videos", len(distinct))
    read = partial(_clip, root=root, limits=settings.limits, alike=IMAGE in settings.group_by, place=frames_home())
    return dict(zip(distinct, ordered_map(read, distinct, chunk=_CHUNK_VIDEOS, workers=workers), strict=True))


def _clip(name: str, root: str, limits: ImageLimits, alike: bool, place: Path) -> Clip | ImageError:
    try:
        data = read_video(name, limits, root=root)
        sha256 = hashlib.sha256(data).hexdigest()
        folder = place / sha256[:2] / f"{sha256}-{FORM}"
        if not folder.is_dir():
            found = frames(data, limits)
            with replacing(folder) as part:
                part.mkdir()
                for number, frame in enumerate(found):
                    kind = "png" if frame.startswith(b"\x89PNG") else "jpg"
                    (part / f"{number:02d}.{kind}").write_bytes(frame)
    except ImageError as error:
        return error
    files = sorted(folder.iterdir())
    shown = [file.read_bytes() for file in files]
    hashes = [hashlib.sha256(frame).hexdigest() for frame in shown]
    compared = {hashes[k]: pdq(decode(shown[k], limits, least_side=SIDE // 2)) for k in _MIDDLE if alike}
    return Clip(
        sha256,
        tuple((file.relative_to(place).as_posix(), own) for file, own in zip(files, hashes, strict=True)),
        {own: hash_ for own, hash_ in compared.items() if hash_.quality >= LEAST_QUALITY},
    )


def _beside_frames(name: str, sha256: str, root: str, limits: ImageLimits) -> str:
    """The name of a copy of an image below `frames_home()`: a post's files are named from one folder."""
    copy = Path("images", sha256[:2], sha256 + Path(name).suffix.lower())
    if not (frames_home() / copy).exists():
        write_whole(frames_home() / copy, read_source(name, limits, root=root, sha256=sha256))
    return copy.as_posix()


def with_frames(
    post: dict[str, Any], clip: Clip | ImageError | None, root: str, settings: IngestSettings
) -> dict[str, Any]:
    """The post with the frames of its video behind its images, all named from the folder of the frames."""
    if not isinstance(clip, Clip):
        return post | {schema.ROOT: root, schema.VIDEO_SHA256: None}
    own = zip(post[schema.IMAGES], post[schema.IMAGE_SHA256], strict=True)
    files = [(_beside_frames(name, sha256, root, settings.limits), sha256) for name, sha256 in own] + list(clip.frames)
    return post | {
        schema.IMAGES: [name for name, _ in files],
        schema.IMAGE_SHA256: [sha256 for _, sha256 in files],
        schema.ROOT: str(frames_home()),
        schema.VIDEO_SHA256: clip.sha256,
    }


def compared(post: Mapping[str, Any], alike: Mapping[str, Hash]) -> list[str]:
    """The files that make a post the same as another one: a video as a whole, and those of its frames that tell."""
    if post[schema.VIDEO_SHA256] is None:
        return list(post[schema.IMAGE_SHA256])
    own, shown = post[schema.IMAGE_SHA256][:-FRAMES], post[schema.IMAGE_SHA256][-FRAMES:]
    return [*own, post[schema.VIDEO_SHA256], *(frame for frame in shown if frame in alike)]
