"""Small videos that PyAV encodes: a square of one grey for each picture, with a red corner, so that a frame tells which
one it is and how it is turned.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (96, 64)
#: Of the grey between two pictures that follow each other.
STEP = 4


def picture(number: int, size: tuple[int, int] = SIZE, seed: int | None = None) -> np.ndarray:
    """With `seed` the picture of another video."""
    width, height = size
    pixels = np.full((height, width, 3), number * STEP % 256, dtype=np.uint8)
    if seed is not None:
        from tests.support.photos import photo

        pixels = np.asarray(photo(1000 * seed + number // 30, size)) // 2 + pixels // 2
    pixels[: height // 4, : width // 4] = (255, 0, 0)
    return pixels


def clip(
    pictures: int = 60,
    size: tuple[int, int] = SIZE,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    times: Sequence[int] | None = None,
    rotation: int = 0,
    pixel_format: str = "yuv420p",
    seed: int | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    colors: tuple[int, int, int] | None = None,
    content: Sequence[np.ndarray] | None = None,
    place: Path | None = None,
) -> bytes:
    """
    times: in hundredths of a second, one for each picture; None: 30 pictures per second. rotation: in degrees, by which
    players turn it counterclockwise. colors: primaries, transfer function and matrix by their numbers in H.273. place:
    a file to write, for what moves parts of it.
    """
    import av

    buffer = io.BytesIO()
    with av.open(str(place) if place else buffer, "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=100 if times else 30)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.gop_size = 12
        stream.codec_context.time_base = Fraction(1, 100 if times else 30)
        stream.options = {"preset": "ultrafast", "crf": "10"} | (options or {}) if codec == "libx264" else options or {}
        if colors:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace = colors
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(pictures):
            pixels = picture(number, size, seed) if content is None else content[number]
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24" if pixels.dtype == np.uint8 else "rgb48le")
            if colors:
                frame = frame.reformat(format=pixel_format, dst_colorspace=9)
                frame.color_primaries, frame.color_trc, frame.colorspace = colors
            frame.pts = number if times is None else times[number]
            frame.time_base = stream.codec_context.time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return place.read_bytes() if place else buffer.getvalue()


def opened(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def numbers(jpegs: Sequence[bytes]) -> list[int]:
    """Which pictures of `clip` they are."""
    greys = [opened(jpeg)[-5:, -5:].mean() for jpeg in jpegs]
    return [round(float(grey) / STEP) for grey in greys]
