"""A zoo of image files whose true pixels are known: built in code, PNGs chunk by chunk, their truth by hand.

Every file shows the same four squares of one colour each, of 16 pixels a side, so that blocks of JPEG and a turn by
any EXIF orientation leave them whole and tell them apart.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
RED, GREEN, BLUE, SAND = (200, 30, 40), (20, 160, 60), (30, 50, 190), (220, 210, 90)
#: How far a JPEG may be from its truth, in levels of 255.
JPEG_LEVELS = 6
#: How far a JPEG made anew of one may be from it.
AGAIN_LEVELS = 10


@dataclass(frozen=True)
class Animal:
    """One file.

    Attributes:
        pixels: (SIDE, SIDE, 3) uint8, upright; None: the file is to be refused.
        levels: by how much a decoder may differ from `pixels` in a sample.
        refusal: a part of the reason, where it is to be refused.
        bare: it is sent to the annotator unchanged.
    """

    data: bytes
    pixels: np.ndarray | None = None
    levels: int = 0
    refusal: str = ""
    bare: bool = False


def squares(*samples: Any) -> np.ndarray:
    """Four values (numbers or tuples), row by row, as one picture of (SIDE, SIDE) or (SIDE, SIDE, C)."""
    grid = np.array(samples)
    return grid.reshape(2, 2, *grid.shape[1:]).repeat(SIDE // 2, axis=0).repeat(SIDE // 2, axis=1)


def grey(*values: float) -> np.ndarray:
    return squares(*[(int(value),) * 3 for value in values]).astype(np.uint8)


TRUTH = squares(RED, GREEN, BLUE, SAND).astype(np.uint8)


# --- PNG


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _packed(samples: np.ndarray, depth: int) -> bytes:
    """Rows of (H, W, C) samples as PNG stores them, each after the number of its filter (0: none)."""
    rows = samples.reshape(len(samples), -1)
    if depth == 16:
        coded = rows.astype(">u2").view(np.uint8)
    else:
        bits = rows[:, :, None] >> np.arange(depth)[::-1] & 1
        coded = np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in coded)


#: Of each pass of Adam7: first row and column, and the steps between them.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(
    samples: np.ndarray, depth: int, colour: int, *before: bytes, after: bytes = b"", interlaced: bool = False
) -> bytes:
    """
    Args:
        samples: (H, W) or (H, W, C), in the range of `depth` bits.
        colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
        before, after: chunks beside the pixels.
    """
    height, width = samples.shape[:2]
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in _ADAM7] if interlaced else [samples]
    body = zlib.compress(b"".join(_packed(part, depth) for part in passes if part.size))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    middle = b"".join(before) + chunk(b"IDAT", body) + after
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IEND", b"")


def _on_white(colour: tuple[int, ...], alpha: int) -> tuple[int, ...]:
    return tuple(round((value * alpha + 255 * (255 - alpha)) / 255) for value in colour)


def _pngs() -> dict[str, Animal]:
    zoo: dict[str, Animal] = {}
    colours, greys, alphas = (RED, GREEN, BLUE, SAND), (0, 18, 128, 200), (255, 0, 51, 128)
    rgb16 = [tuple(value << 8 | 0x7F for value in colour) for colour in colours]
    near = (*rgb16[0][:2], rgb16[0][2] + 1)  # the same upper bytes as RED's
    for interlaced in (False, True):
        name = "interlaced " if interlaced else ""
        draw = partial(png, interlaced=interlaced)
        for depth, values in ((1, (0, 1, 1, 0)), (2, (0, 1, 2, 3)), (4, (0, 1, 7, 15)), (8, (0, 18, 128, 255))):
            levels = [value * 255 / (2**depth - 1) for value in values]
            samples = squares(*values)
            zoo[f"{name}png grey {depth}"] = Animal(draw(samples, depth, 0), grey(*levels), bare=True)
            for key in sorted({*values[:2], values[-1]}):
                seen = [255 if value == key else level for value, level in zip(values, levels, strict=True)]
                data = draw(samples, depth, 0, chunk(b"tRNS", struct.pack(">H", key)))
                zoo[f"{name}png grey {depth}, {key} transparent"] = Animal(data, grey(*seen))
            index = squares(0, 1, 1, 0) if depth == 1 else squares(0, 1, 2, 3)
            shown = [colours[int(k)] for k in index[::16, ::16].ravel()]
            plte = chunk(b"PLTE", bytes(sum(colours[: 2**depth], ())))
            zoo[f"{name}png palette {depth}"] = Animal(draw(index, depth, 3, plte), squares(*shown), bare=True)
            for what, body in (("one", (255, 0)), ("two", (51, 0)), ("each", alphas[: 2**depth])):
                alpha = dict(zip(colours, body, strict=False))
                seen = [_on_white(colour, alpha.get(colour, 255)) for colour in shown]
                data = draw(index, depth, 3, plte, chunk(b"tRNS", bytes(body)))
                zoo[f"{name}png palette {depth}, {what} transparent"] = Animal(data, squares(*seen), levels=1)
        zoo[f"{name}png palette 8 without it"] = Animal(draw(index, 8, 3), refusal="cut or corrupt: Assertion")
        zoo[f"{name}png grey 16"] = Animal(
            draw(squares(0x00FF, 0x12FF, 0x8000, 0xFFFF), 16, 0), grey(0, 0x12, 0x80, 0xFF)
        )
        zoo[f"{name}png grey 16, one transparent"] = Animal(
            draw(squares(0x12FF, 0x12FE, 0x8000, 0x00FF), 16, 0, chunk(b"tRNS", b"\x12\xff")), grey(255, 0x12, 0x80, 0)
        )
        zoo[f"{name}png rgb 8"] = Animal(draw(TRUTH, 8, 2), TRUTH, bare=True)
        zoo[f"{name}png rgb 8, one transparent"] = Animal(
            draw(TRUTH, 8, 2, chunk(b"tRNS", struct.pack(">HHH", *GREEN))), squares(RED, (255,) * 3, BLUE, SAND)
        )
        zoo[f"{name}png rgb 16"] = Animal(draw(squares(*rgb16), 16, 2), TRUTH)
        zoo[f"{name}png rgb 16, one transparent"] = Animal(
            draw(squares(rgb16[0], near, near, rgb16[3]), 16, 2, chunk(b"tRNS", struct.pack(">HHH", *rgb16[0]))),
            squares((255,) * 3, RED, RED, SAND),
        )
        for depth, unit in ((8, 1), (16, 257)):
            for what, form, picture in (("grey", 4, [(value,) for value in greys]), ("rgb", 6, colours)):
                stored = [tuple(unit * v for v in (*c, a)) for c, a in zip(picture, alphas, strict=True)]
                seen = [_on_white(c * (3 // len(c)), a) for c, a in zip(picture, alphas, strict=True)]
                zoo[f"{name}png {what} and alpha {depth}"] = Animal(
                    draw(squares(*stored), depth, form), squares(*seen), levels=1
                )
    whole = png(TRUTH, 8, 2)
    index = squares(0, 1, 2, 3)
    linear, srgb = (chunk(b"gAMA", struct.pack(">I", gamma)) for gamma in (100_000, 45_455))
    frame = struct.pack(">IIIIIHHBB", 0, SIDE, SIDE, 0, 0, 1, 10, 0, 0)
    second = struct.pack(">IIIIIHHBB", 1, SIDE, SIDE, 0, 0, 1, 10, 0, 0)
    more = struct.pack(">I", 2) + zlib.compress(_packed(TRUTH, 8))
    zoo |= {
        "png of linear light": Animal(png(TRUTH, 8, 2, linear), TRUTH),
        "png that says sRGB by gamma": Animal(png(TRUTH, 8, 2, srgb, chunk(b"sRGB", b"\0")), TRUTH, bare=True),
        "png with a colour profile": Animal(png(TRUTH, 8, 2, chunk(b"iCCP", b"p\0\0" + zlib.compress(_icc()))), TRUTH),
        "png with a comment": Animal(png(TRUTH, 8, 2, chunk(b"tEXt", b"Comment\0secret")), TRUTH),
        "png with few pixels in its key's upper bits": Animal(
            png(squares(1, 2, 3, 4), 8, 0, chunk(b"tRNS", b"\x01\x02")), grey(1, 255, 3, 4)
        ),
        "png animation of one frame": Animal(
            png(TRUTH, 8, 2, chunk(b"acTL", struct.pack(">II", 1, 0)), chunk(b"fcTL", frame)), TRUTH
        ),
        "png animation": Animal(
            png(
                TRUTH,
                8,
                2,
                chunk(b"acTL", struct.pack(">II", 2, 0)),
                chunk(b"fcTL", frame),
                after=chunk(b"fcTL", second) + chunk(b"fdAT", more),
            ),
            refusal="an animation of 2 frames",
        ),
        "png that is cut": Animal(whole[: len(whole) // 2], refusal="cut or corrupt"),
        "png without its end, all pixels there": Animal(whole[:-20], TRUTH),
        "png with a damaged header": Animal(whole[:20] + b"\1" + whole[21:], refusal="cut or corrupt"),
        "png without pixels": Animal(png(np.zeros((0, 0, 3), int), 8, 2), refusal="cut or corrupt"),
        "png without height": Animal(png(np.zeros((0, 5, 3), int), 8, 2), refusal="cut or corrupt"),
        "png of an unknown form": Animal(png(index, 2, 2), refusal="cut or corrupt"),
        "png that is too long": Animal(
            png(np.zeros((1, 200), int), 1, 0), refusal="200 x 1 pixels; sides of at most 100"
        ),
        "png of too many pixels": Animal(png(np.zeros((3000, 3000), int), 1, 0), refusal="9 megapixels; at most 8"),
    }
    return zoo


# --- metadata


def tiff(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF's body: of each entry its tag, its type (2 text, 3 short, 4 long, 5 rational), how many, and four bytes."""
    body = b"".join(struct.pack("<HHI", tag, kind, n) + value.ljust(4, b"\0") for tag, kind, n, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def _short(value: int) -> bytes:
    return struct.pack("<H", value)


def _icc() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
_TURNED = np.rot90(TRUTH, -1)  # what orientation 6 means: the first row is the right-hand side
#: EXIF's body -> what a picture stored as TRUTH shows.
EXIF = {
    "orientation 6": (tiff((0x112, 3, 1, _short(6))), _TURNED),
    "orientation 6 as a long": (tiff((0x112, 4, 1, struct.pack("<I", 6))), _TURNED),
    "orientation 6 beside a text without end": (tiff((0x112, 3, 1, _short(6)), (0x11A, 2, 2, b"")), _TURNED),
    "orientation 6 beside a rational beyond the end": (tiff((0x112, 3, 1, _short(6)), (0x11A, 5, 9, b"\xff")), _TURNED),
    "orientation 6 beside a type that is none": (tiff((0x112, 3, 1, _short(6)), (0x11A, 99, 1, b"")), _TURNED),
    "orientation 1": (tiff((0x112, 3, 1, _short(1))), TRUTH),
    "orientation 0": (tiff((0x112, 3, 1, _short(0))), TRUTH),
    "orientation 9": (tiff((0x112, 3, 1, _short(9))), TRUTH),
    "orientation as text": (tiff((0x112, 2, 2, b"6\0")), TRUTH),
    "orientation as two numbers": (tiff((0x112, 3, 2, _short(6) + _short(3))), _TURNED),
    "no entries": (tiff(), TRUTH),
    "a cut head": (b"II*\0", TRUTH),
    "no head": (b"nonsense", TRUTH),
    "entries that are cut": (tiff((0x112, 3, 1, _short(6)))[:14], TRUTH),
    "nothing": (b"", TRUTH),
}
#: Orientation -> the same, by numpy.
_ORIENTED = {
    2: TRUTH[:, ::-1],
    3: TRUTH[::-1, ::-1],
    4: TRUTH[::-1],
    5: TRUTH.transpose(1, 0, 2),
    6: _TURNED,
    7: TRUTH[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(TRUTH),
}


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _with_metadata() -> dict[str, Animal]:
    jpeg, webp = encoded("JPEG"), encoded("WEBP", lossless=True)
    exifs = EXIF | {f"orientation {n} of 8": (tiff((0x112, 3, 1, _short(n))), seen) for n, seen in _ORIENTED.items()}
    zoo = {}
    for name, (body, seen) in exifs.items():
        data = jpeg[:2] + _segment(0xE1, b"Exif\0\0" + body) + jpeg[2:]
        zoo[f"jpeg, exif of {name}"] = Animal(data, seen, JPEG_LEVELS)
        zoo[f"png, exif of {name}"] = Animal(png(TRUTH, 8, 2, chunk(b"eXIf", body)), seen)
        zoo[f"png, exif of {name} after the pixels"] = Animal(png(TRUTH, 8, 2, after=chunk(b"eXIf", body)), seen)
        if body:  # Pillow writes no empty one
            zoo[f"webp, exif of {name}"] = Animal(encoded("WEBP", lossless=True, exif=body), seen)
    itxt = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode())
    raw = (
        b"\nexif\n  " + str(len(body := b"Exif\0\0" + EXIF["orientation 6"][0])).encode() + b"\n" + body.hex().encode()
    )
    return zoo | {
        "jpeg, xmp": Animal(
            jpeg[:2] + _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP.encode()) + jpeg[2:], _TURNED, JPEG_LEVELS
        ),
        "png, xmp": Animal(png(TRUTH, 8, 2, itxt), _TURNED),
        "png, xmp after the pixels": Animal(png(TRUTH, 8, 2, after=itxt), _TURNED),
        "png, exif as ImageMagick writes it": Animal(
            png(TRUTH, 8, 2, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))), _TURNED
        ),
        "webp, xmp": Animal(encoded("WEBP", lossless=True, xmp=XMP.encode()), _TURNED),
        "webp with a colour profile": Animal(encoded("WEBP", lossless=True, icc_profile=_icc()), TRUTH),
        "jpeg with a colour profile": Animal(encoded("JPEG", icc_profile=_icc()), TRUTH, JPEG_LEVELS),
        "jpeg with a comment": Animal(encoded("JPEG", comment=b"secret"), TRUTH, JPEG_LEVELS),
        "jpeg with bytes after the end": Animal(jpeg + b"secret", TRUTH, JPEG_LEVELS),
        "webp with bytes after the end": Animal(webp + b"secret", TRUTH),
    }


# --- JPEG, WebP and what is none of the three


def encoded(fmt: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    defaults = {"quality": 95} if fmt in ("JPEG", "MPO") else {}
    (image or Image.fromarray(TRUTH)).save(buffer, fmt, **defaults | options)
    return buffer.getvalue()


def _jpegs() -> dict[str, Animal]:
    jpeg = encoded("JPEG")
    frame = jpeg.index(b"\xff\xc0")
    inverted = Image.fromarray(255 - TRUTH)
    cmyk = np.concatenate([255 - TRUTH, np.zeros((SIDE, SIDE, 1), np.uint8)], axis=-1)  # no black: 255 - RGB
    # Adobe's YCCK holds YCbCr of the inverted picture; Pillow inverts all that it writes as CMYK
    ycck = np.concatenate([255 - np.asarray(inverted.convert("YCbCr")), cmyk[:, :, 3:]], axis=-1)
    as_cmyk = encoded("JPEG", Image.fromarray(ycck, mode="CMYK"))
    adobe = as_cmyk.index(b"Adobe") + 11
    ramp = grey(0, 18, 128, 255)
    black = np.concatenate([255 - TRUTH, np.full((SIDE, SIDE, 1), 128, np.uint8)], axis=-1)
    preview = Image.new("RGB", (16, 16))
    return {
        "jpeg": Animal(jpeg, TRUTH, JPEG_LEVELS, bare=True),
        "jpeg without colour subsampling": Animal(encoded("JPEG", subsampling=0), TRUTH, JPEG_LEVELS, bare=True),
        "jpeg, progressive": Animal(encoded("JPEG", progressive=True), TRUTH, JPEG_LEVELS),
        "jpeg, grey": Animal(encoded("JPEG", Image.fromarray(ramp[:, :, 0])), ramp, 2, bare=True),
        "jpeg, RGB as Adobe writes it": Animal(encoded("JPEG", keep_rgb=True), TRUTH, JPEG_LEVELS),
        "jpeg, CMYK": Animal(encoded("JPEG", Image.fromarray(cmyk, mode="CMYK")), TRUTH, JPEG_LEVELS),
        "jpeg, CMYK with black": Animal(
            encoded("JPEG", Image.fromarray(black, mode="CMYK")), (TRUTH * (127 / 255)).round().astype(np.uint8), 4
        ),
        "jpeg, YCCK": Animal(as_cmyk[:adobe] + b"\2" + as_cmyk[adobe + 1 :], TRUTH, JPEG_LEVELS),
        "jpeg with the preview that phones append": Animal(
            encoded("MPO", save_all=True, append_images=[preview]), TRUTH, JPEG_LEVELS
        ),
        "jpeg that is cut": Animal(jpeg[: len(jpeg) * 3 // 4], refusal="cut or corrupt"),
        "jpeg that ends in its header": Animal(jpeg[:30], refusal="cut or corrupt"),
        "jpeg of 12 bits": Animal(jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], refusal="cut or corrupt"),
        "jpeg of two components": Animal(jpeg[: frame + 9] + b"\2" + jpeg[frame + 10 :], refusal="cut or corrupt"),
        "jpeg without height": Animal(jpeg[: frame + 5] + bytes(2) + jpeg[frame + 7 :], refusal="cut or corrupt"),
    }


def _others() -> dict[str, Animal]:
    rgba = Image.fromarray(TRUTH).convert("RGBA")
    rgba.putalpha(Image.fromarray(squares(255, 0, 51, 128).astype(np.uint8)))
    seen = squares(RED, (255,) * 3, _on_white(BLUE, 51), _on_white(SAND, 128))
    webp = encoded("WEBP", quality=95)
    two = {"save_all": True, "append_images": [Image.new("RGB", (SIDE, SIDE))], "lossless": True}
    return {
        "webp": Animal(webp, TRUTH, 12, bare=True),  # its colours are of a narrower range
        "webp, lossless": Animal(encoded("WEBP", lossless=True), TRUTH),
        "webp, lossless with alpha": Animal(encoded("WEBP", rgba, lossless=True), seen, 1),
        "webp, lossy with alpha": Animal(encoded("WEBP", rgba, quality=95), seen, 12),
        "webp animation": Animal(encoded("WEBP", **two), refusal="an animation of 2 frames"),
        "webp that is cut": Animal(webp[: len(webp) // 2], refusal="cut or corrupt"),
        "gif": Animal(encoded("GIF"), refusal="not a JPEG, PNG or WebP image"),
        "bmp": Animal(encoded("BMP"), refusal="not a JPEG, PNG or WebP image"),
        "tiff": Animal(encoded("TIFF"), refusal="not a JPEG, PNG or WebP image"),
        "svg": Animal(b'<svg xmlns="http://www.w3.org/2000/svg"/>', refusal="not a JPEG, PNG or WebP image"),
        "an empty file": Animal(b"", refusal="empty file"),
        "a file of too many bytes": Animal(webp + bytes(200_000), refusal="bytes; at most 200,000 are read"),
    }


ZOO: dict[str, Animal] = _pngs() | _with_metadata() | _jpegs() | _others()
