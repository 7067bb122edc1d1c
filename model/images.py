"""Images from bytes to frames: the one decoder of training and of serving.

What `ingest` accepts here is what `preprocess` and a served model read later, with the same result.
Nothing global is changed in Pillow, so that a process that embeds a scorer keeps its own limits.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import stat
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .errors import ImageError

#: What Pillow's readers raise on damaged or hostile files; their classes have no common base but Exception.
_BROKEN = (
    AssertionError,
    EOFError,
    KeyError,
    IndexError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

#: EXIF orientation -> how the stored picture is turned upright. `ImageOps.exif_transpose` does the
#: same, but writes the metadata anew and fails on pictures whose EXIF has another broken entry.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: How an image may be given, see `read_source`.
Source = str | os.PathLike[str] | bytes | bytearray | memoryview

#: How the base64 text of a JPEG, a PNG and a WebP begins.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR")
#: Characters of a path, at most (Linux); a longer text is looked up nowhere.
MOST_PATH = 4096
#: Who may open a folder of images to those who send posts, and how.
_ALLOWED_BY = "AGENTPS_IMAGE_ROOT where a version is served, image_root of a Scorer"

#: Where Pillow's `getexif` looks for an orientation.
_METADATA = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}


@dataclass(frozen=True)
class ImageLimits:
    """The largest image, and the largest video, that is read. Sides in pixels; aspect is the longer side over the
    shorter.
    """

    max_bytes: int
    max_pixels: int
    max_side: int = 30_000
    max_aspect: float = 100.0
    max_video_bytes: int = 200_000_000
    max_video_seconds: float = 600.0


#: For an image that is held to the sha256 of one that ingest found within its limits: there is one set of limits.
INGESTED = ImageLimits(max_bytes=sys.maxsize, max_pixels=sys.maxsize, max_side=sys.maxsize, max_aspect=math.inf)


def read_source(
    source: Source,
    limits: ImageLimits,
    *,
    root: str | None = None,
    sha256: str | None = None,
    folder: str | None = None,
) -> bytes:
    """The encoded bytes of an image, however it is given.

    Args:
        source: with `root` the name of a file under it. Without: the picture itself (its bytes, a data URL, or base64
            text, as JSON carries it), or the path of a file in `folder`, absolute or relative to it.
        root: an absolute local folder, or an fsspec URL such as `s3://bucket/posts`.
        sha256: in hex, of the bytes that are expected.
        folder: an absolute local folder, open to whoever gives the source; links are followed, and may not lead out of
            it, nor may `..`. None: no path is read, and nothing is told of what it names.

    Raises:
        ImageError: the source is none of these or names no readable file; the file is larger than `limits.max_bytes`
            (nothing of it is read then); or its bytes are not those of `sha256`.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif not isinstance(source, str | os.PathLike):
        raise ImageError(f"{type(source).__name__} given; the path or the bytes of one image are expected")
    elif root is not None:
        data = _read_under(root, os.fspath(source), limits)
    elif isinstance(source, str) and source.startswith("data:"):
        data = _read_data_url(source, limits)
    else:
        data = _read_path_or_base64(os.fsdecode(source), limits, folder)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ImageError("was changed since it was ingested (its sha256 is another)")
    return data


def read_frame(
    source: Source, size: int, limits: ImageLimits, *, root: str | None = None, sha256: str | None = None
) -> np.ndarray:
    """An image as one frame, (size, size, 3) uint8 RGB: the one way of training and of serving.

    Raises:
        ImageError: as `read_source` and `decode`.
    """
    return to_frame(decode(read_source(source, limits, root=root, sha256=sha256), limits, least_side=size), size)


def decode(data: bytes, limits: ImageLimits, *, least_side: int | None = None) -> Image.Image:
    """A JPEG, PNG or WebP image as 8-bit RGB: upright by its metadata, transparency laid on white.

    Frames, the annotator's payloads and thumbnails are all made from this picture, which holds pixels and no metadata.
    The header decides first: nothing is decoded of an image above the limits. Colour profiles are not applied.

    Args:
        least_side: pixels. A large baseline colour JPEG may come back smaller, at 1/2, 1/4 or 1/8 of its
            size, with no side below this; the file is read whole all the same, and refused for the same
            reasons. None: every image at its own size.

    Raises:
        ImageError: the message is the reason, ready for the rejects table.
    """
    with _explained(limits):
        image = _open(data, limits)
        scalable = image.mode == "RGB" and "progressive" not in image.info
        if least_side is not None and scalable and min(image.size) >= 2 * least_side:
            image.draft(None, (least_side, least_side))  # no other format than JPEG has it
        image.load()
        rgb = _rgb(image, data)
        turn = _UPRIGHT.get(_orientation(image))
    rgb.info = {}  # comments and profiles of the file, which encoders write again
    return rgb if turn is None else rgb.transpose(turn)


def sides(data: bytes, limits: ImageLimits) -> tuple[int, int]:
    """The longer and the shorter side of an image in pixels, by its header: no pixel of it is decoded.

    Which of them is the width, a PNG may say behind its pixels.

    Raises:
        ImageError: as `decode`, for what the header tells.
    """
    with _explained(limits):
        size = _open(data, limits).size
    return max(size), min(size)


def to_frame(image: Image.Image, size: int) -> np.ndarray:
    """The image as one (size, size, 3) uint8 RGB square, its aspect ratio given up (paper 3.1.2).

    Bicubic with antialiasing on 8-bit pixels, by the function that transformers' `LlavaOnevisionImageProcessor` calls
    through torchvision. Pillow's takes more than twice as long and differs by a rounding, or, where a hard edge
    overshoots, by the order of its two passes.
    """
    pixels = np.array(image)  # writable, as torch wants it
    if image.size == (size, size):
        return pixels
    import torch.nn.functional as F  # who only checks images does without torch
    from torch import from_numpy

    # The batch comes first: with another stride of it torch does not see that the channels are last, and copies twice.
    pixels_1CHW = from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    resized_1CHW = F.interpolate(pixels_1CHW, size=(size, size), mode="bicubic", antialias=True)
    frame: np.ndarray = resized_1CHW[0].permute(1, 2, 0).contiguous().numpy()
    return frame


def frame_indices(n_images: int, frames: int, *, repeat: bool = True) -> list[int]:
    """Which image each of a post's frames shows (paper 3.1.2).

    Above `frames` images: uniform sampling in order, first and last image included (one frame: the
    first). Below: the images repeat cyclically; without `repeat` each is one frame.

    Raises:
        ValueError: a post without images, or no frames.
    """
    if n_images < 1 or frames < 1:
        raise ValueError(f"{n_images} images, {frames} frames: at least one of each is needed")
    if n_images <= frames:
        return [i % n_images for i in range(frames if repeat else n_images)]
    # Integers: a floating-point linspace can miss an index by one.
    return [i * (n_images - 1) // max(frames - 1, 1) for i in range(frames)]


def _read_local(path: str, limits: ImageLimits) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        _check_bytes(status.st_size, limits)
        with open(path, "rb", buffering=0) as file:  # where files are small, pathlib takes as long as the reading
            return file.read()
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL character in the path
        raise ImageError(f"cannot be read: {error}") from error


def _read_under(root: str, name: str, limits: ImageLimits) -> bytes:
    if not isinstance(root, str) or not (os.path.isabs(root) or "://" in root):  # of a table without, it may be NaN
        raise ImageError(f"the root {root!r:.200} is neither an absolute path nor a URL")
    if os.path.isabs(name) or ".." in name.split("/"):
        raise ImageError(f"{name!r:.200} is not the name of a file under {root}")
    return _read_url(root, name, limits) if "://" in root else _read_local(os.path.join(root, name), limits)


def _read_url(root: str, name: str, limits: ImageLimits) -> bytes:
    from fsspec.core import url_to_fs  # those whose posts lie on a disk do without it

    try:
        files, folder = url_to_fs(root)
        path = f"{folder.rstrip('/')}/{name}"
        status = files.info(path)
        if status["type"] != "file":
            raise ImageError("not a regular file")
        if status.get("size") is not None:
            _check_bytes(status["size"], limits)
        data: bytes = files.cat_file(path)
        return data
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except (OSError, ValueError, ImportError) as error:  # the last two: no such file system, or its package is missing
        raise ImageError(f"cannot be read: {str(error) or type(error).__name__}") from error


def _read_data_url(url: str, limits: ImageLimits) -> bytes:
    header, comma, text = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise ImageError(f"{url!r:.60} is no data URL in base64 (data:image/jpeg;base64,...)")
    try:
        return _from_base64(text, limits)
    except ValueError as error:
        raise ImageError(f"a data URL whose base64 text is damaged: {error}") from error


def _read_path_or_base64(text: str, limits: ImageLimits, folder: str | None) -> bytes:
    """The base64 text of a JPEG begins with `/9j/`, as an absolute path may: a file comes first."""
    if len(text) < 2:  # a string where a list of images is meant is read one character at a time
        raise ImageError(f"{text!r} is no path of an image: are the images of the post a list?")
    path = None if folder is None else _inside(folder, text)
    if text.startswith(_BASE64_STARTS) and (path is None or not os.path.exists(path)):
        try:
            return _from_base64(text, limits)
        except ValueError as damage:
            raise ImageError(f"no picture in base64: {damage}") from None
    if folder is None:
        raise ImageError(f"no path is read here: send the picture itself, as base64 text or a data URL ({_ALLOWED_BY})")
    if path is None:
        raise ImageError(f"lies outside of the folder that is open to paths ({_ALLOWED_BY}), or goes by ..")
    return _read_local(path, limits)


def _inside(folder: str, text: str) -> str | None:
    """The path with all links resolved; None where it is not below `folder`, whether a file is there or not."""
    if len(text) > MOST_PATH or ".." in text.split("/"):
        return None
    try:
        root, written = os.path.realpath(folder), os.path.normpath(os.path.join(folder, text))
        if not written.startswith((os.path.join(os.path.normpath(folder), ""), os.path.join(root, ""))):
            return None  # out and back in would tell what is a link outside
        path = os.path.realpath(written)
    except (OSError, ValueError):  # a NUL, half of a character
        return None
    return path if path.startswith(os.path.join(root, "")) else None


def _from_base64(text: str, limits: ImageLimits) -> bytes:
    """Line breaks, which some encoders write, are no part of it. Raises: ValueError, where it is no base64."""
    _check_bytes(len(text) // 2, limits)  # far too much, before it is copied: as if a third of it were line breaks
    text = "".join(text.split())
    _check_bytes(len(text) * 3 // 4 - 2, limits)  # two of padding
    return base64.b64decode(text, validate=True)


def _check_bytes(n_bytes: int, limits: ImageLimits) -> None:
    if n_bytes > limits.max_bytes:
        raise ImageError(f"{n_bytes:,} bytes; at most {limits.max_bytes:,} are read")


@contextmanager
def _explained(limits: ImageLimits) -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:  # of the WebP reader, before `_check_header` can look
        most = min(limits.max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or limits.max_pixels))
        raise ImageError(f"too many pixels; at most {most / 1e6:g} megapixels are read") from error
    except _BROKEN as error:
        raise ImageError(f"cut or corrupt: {str(error) or type(error).__name__}") from error


def _open(data: bytes, limits: ImageLimits) -> ImageFile:
    """An image within the limits, with its header read.

    By the format's own class instead of `Image.open`: that one warns or raises by a process-wide pixel
    limit, and takes the preview that phones append to a JPEG for a second frame.
    """
    if not data:
        raise ImageError("empty file")
    _check_bytes(len(data), limits)
    image: ImageFile
    if data.startswith(b"\xff\xd8\xff"):
        image = JpegImageFile(io.BytesIO(data))
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        image = PngImageFile(io.BytesIO(data))
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        image = WebPImageFile(io.BytesIO(data))
    else:
        raise ImageError("not a JPEG, PNG or WebP image")  # what it holds is told to nobody
    _check_header(image, limits)
    return image


def _check_header(image: ImageFile, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError(f"{width * height / 1e6:g} megapixels; at most {limits.max_pixels / 1e6:g} are read")
    if max(width, height) > limits.max_side:
        raise ImageError(f"{width} x {height} pixels; a side of at most {limits.max_side} is read")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(f"{width} x {height} pixels; sides of at most {limits.max_aspect:g} : 1 are read")
    n_frames = getattr(image, "n_frames", 1)
    if n_frames > 1:
        raise ImageError(f"an animation of {n_frames} frames; one picture is read")


def _rgb(image: ImageFile, data: bytes) -> Image.Image:
    """The pixels of a loaded image as 8-bit RGB, transparency laid on white."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "I;16" or (image.format == "PNG" and image.mode in ("1", "L", "RGB")):
        return _opaque_png(image, data)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _opaque_png(image: ImageFile, data: bytes) -> Image.Image:
    """The pixels of a PNG without palette and alpha channel, in which one colour may be transparent.

    That colour is given in samples of the file's depth. Pillow compares it with its own 8-bit pixels, which is right
    at 8 bits only; and its conversion of 16-bit grey clips at 255.
    """
    depth, key = data[24], image.info.pop("transparency", None)
    samples = np.asarray(image.convert("L") if image.mode == "1" else image)  # (H, W) or (H, W, 3)
    rgb = (image if image.mode != "I;16" else Image.fromarray((samples >> 8).astype(np.uint8))).convert("RGB")
    if key is None:
        return rgb
    if image.mode == "RGB" and depth == 16:
        samples = samples.astype(np.uint16) << 8 | _low_bytes(data)
    # bits of the key that the file's depth has not mean nothing; Pillow stretches samples of fewer than 8 bits to 255
    equal = samples == (np.array(key) & (1 << depth) - 1) * {1: 255, 2: 85, 4: 17}.get(depth, 1)
    rgb.paste("white", mask=Image.fromarray(equal if equal.ndim == 2 else equal.all(axis=-1)))
    return rgb


def _low_bytes(data: bytes) -> np.ndarray:
    """The lower byte of each sample of a 16-bit RGB PNG, (H, W, 3) uint8: Pillow itself reads the upper one only."""
    image = PngImageFile(io.BytesIO(data))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]  # as if the first byte were the lower one
    return np.asarray(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. Where EXIF is broken: 1, the picture as stored, as viewers show it."""
    if _METADATA.isdisjoint(image.info):
        return 1
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation if isinstance(orientation, int) else 1
    except _BROKEN:
        return 1
