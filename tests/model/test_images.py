"""model/images.py: what is read, what is refused and why, and which frames a post shows.

That every kind of file shows its true pixels is the subject of test_zoo.py.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import random
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile

from model.errors import ImageError
from model.images import INGESTED, ImageLimits, decode, frame_indices, read_frame, read_source, sides, to_frame

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=50_000_000)
LARGE = ImageLimits(max_bytes=10_000_000, max_pixels=50_000_000)


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def noise(width: int = 20, height: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def picture(width: int, height: int) -> Image.Image:
    """Smooth, as photos are: noise at a sixteenth of the size, drawn up."""
    return noise(width // 16, height // 16).resize((width, height), Image.Resampling.BICUBIC)


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one byte of picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (SVG, "^not a JPEG, PNG or WebP image$"),  # and nothing of what it holds
        (png_header(20_000, 10_000), "^200 megapixels; at most 50 are read$"),
        (png_header(100_000, 100_000), "^10000 megapixels; at most 50 are read$"),
        (png_header(30_001, 400), "30001 x 400 pixels; a side of at most 30000"),
        (png_header(4_040, 40), "4040 x 40 pixels; sides of at most 100 : 1"),
        (png_header(64, 64), "^cut or corrupt: "),
        (b"\xff\xd8\xff\xe0", "^cut or corrupt: "),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "^cut or corrupt: "),
        (b"\xff\xd8\xff" + bytes(100_000), "100,003 bytes; at most 100,000 are read"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode(data, LIMITS)


@pytest.mark.parametrize("least_side", [None, 1])
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_cut_file_is_refused(fmt: str, share: float, least_side: int | None) -> None:
    data = encoded(noise(64, 64), fmt)
    with pytest.raises(ImageError, match="cut or corrupt"):
        decode(data[: int(len(data) * share)], LIMITS, least_side=least_side)


def test_our_limits_alone_decide_what_is_too_large() -> None:
    """Pillow's process-wide limit would warn above 89 megapixels."""
    data = encoded(Image.new("1", (10_000, 9_000)), "PNG")
    with pytest.raises(ImageError, match="90 megapixels; at most 50"):
        decode(data, LIMITS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, ImageLimits(max_bytes=10**6, max_pixels=10**8)).size == (10_000, 9_000)


def test_the_sides_of_an_image_are_read_by_the_header_alone_and_within_the_limits() -> None:
    data = png_header(10_000, 20_000)  # one byte of picture
    assert sides(data, INGESTED) == (20_000, 10_000)
    with pytest.raises(ImageError, match=r"^200 megapixels; at most 50 are read$"):
        sides(data, LIMITS)
    with pytest.raises(ImageError, match="not a JPEG, PNG or WebP image"):
        sides(SVG, LIMITS)


def test_pillows_process_wide_settings_stay_as_they_are() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))
    decode(encoded(noise(), "JPEG"), LIMITS)
    with pytest.raises(ImageError):
        decode(png_header(20_000, 10_000), LIMITS)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damaged metadata
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_damaged_files_are_read_or_refused_but_never_raise_anything_else(fmt: str) -> None:
    data, source, n_refused = encoded(noise(), fmt), random.Random(0), 0
    for _ in range(1_000):
        damaged = bytearray(data)
        for _ in range(source.randint(1, 4)):
            damaged[min(int(source.expovariate(1 / 50)), len(data) - 1)] = source.randrange(256)
        try:
            assert decode(bytes(damaged), LIMITS).mode == "RGB"
        except ImageError as error:
            n_refused += 1
            with pytest.raises(ImageError, match=re.escape(str(error))):
                decode(bytes(damaged), LIMITS, least_side=1)
        else:  # what ingest accepted at the least size, no later reader refuses
            assert decode(bytes(damaged), LIMITS, least_side=1).mode == "RGB"
    assert 0 < n_refused < 1_000


@pytest.mark.parametrize(
    ("stored", "orientation", "least_side", "found"),
    [
        ((1080, 1440), 1, 384, (540, 720)),
        ((1080, 1440), 6, 384, (720, 540)),  # turned after it was scaled
        ((1081, 1440), 1, 540, (541, 720)),  # rounded up: never below
        ((1080, 1440), 1, 541, (1080, 1440)),
        ((1440, 400), 1, 384, (1440, 400)),  # the shorter side decides
        ((1600, 1200), 1, 384, (800, 600)),  # by a third it cannot be
        ((1600, 1200), 1, 300, (400, 300)),
        ((1600, 1200), 1, 1, (200, 150)),  # by no more than eight
        ((640, 480), 1, 384, (640, 480)),
        ((200, 100), 1, 384, (200, 100)),
    ],
)
def test_a_large_photo_comes_back_scaled_by_a_power_of_two_and_never_below_the_least_side(
    stored: tuple[int, int], orientation: int, least_side: int, found: tuple[int, int]
) -> None:
    data = encoded(picture(*stored), "JPEG", exif=rotated(orientation))
    assert decode(data, LARGE, least_side=least_side).size == found


@pytest.mark.parametrize(
    ("mode", "size", "fmt", "options"),
    [
        ("RGB", (640, 640), "PNG", {}),
        ("RGB", (640, 640), "WEBP", {}),
        ("CMYK", (640, 640), "JPEG", {}),
        ("L", (640, 640), "JPEG", {}),
        ("RGB", (640, 640), "JPEG", {"progressive": True}),
        ("RGB", (190, 380), "JPEG", {}),
        ("RGB", (95, 48), "JPEG", {}),
    ],
)
def test_only_baseline_colour_jpegs_of_twice_the_side_are_scaled(
    mode: str, size: tuple[int, int], fmt: str, options: dict
) -> None:
    data = encoded(picture(*size).convert(mode), fmt, **options)
    full = decode(data, LARGE)
    np.testing.assert_array_equal(np.asarray(decode(data, LARGE, least_side=96)), np.asarray(full))
    np.testing.assert_array_equal(read_frame(data, 96, LARGE), to_frame(full, 96))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_frame_of_a_scaled_photo_is_that_of_the_whole_one_within_a_few_grey_levels(orientation: int) -> None:
    data = encoded(picture(1088, 1440), "JPEG", exif=rotated(orientation))
    full = to_frame(decode(data, LARGE), 384).astype(int)
    difference = np.abs(read_frame(data, 384, LARGE) - full)
    assert 0 < difference.mean() < 1
    assert difference.max() < 16


def test_to_frame_is_one_bicubic_square_of_the_whole_image() -> None:
    frame = to_frame(Image.new("RGB", (40, 10), (1, 2, 3)), 8)
    assert frame.shape == (8, 8, 3)
    assert frame.dtype == np.uint8
    assert (frame == [1, 2, 3]).all()
    image = noise(8, 8)
    np.testing.assert_array_equal(to_frame(image, 8), np.asarray(image))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (40, 60)])
def test_to_frame_resizes_as_the_llava_onevision_processor_does(size: tuple[int, int]) -> None:
    """Within a rounding: its form on Pillow is the one that needs no torchvision."""
    from transformers.image_utils import SizeDict
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    processor = LlavaOnevisionImageProcessorPil()
    image = picture(*size)
    expected = processor.resize(
        np.asarray(image).transpose(2, 0, 1),
        size=SizeDict(height=96, width=96),
        resample=processor.resample,
    )
    difference = np.abs(to_frame(image, 96).astype(int) - np.asarray(expected).transpose(1, 2, 0))
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize(
    ("n_images", "frames", "expected"),
    [
        (3, 8, [0, 1, 2, 0, 1, 2, 0, 1]),
        (1, 4, [0, 0, 0, 0]),
        (4, 4, [0, 1, 2, 3]),
        (5, 3, [0, 2, 4]),
        (31, 16, list(range(0, 31, 2))),
        (9, 1, [0]),
    ],
)
def test_frame_indices_by_hand(n_images: int, frames: int, expected: list[int]) -> None:
    assert frame_indices(n_images, frames) == expected


def test_uniform_sampling_keeps_order_ends_and_even_gaps() -> None:
    for frames in range(2, 20):
        for n_images in range(frames, 70):
            indices = frame_indices(n_images, frames)
            gaps = np.diff(indices)
            assert len(indices) == frames
            assert (indices[0], indices[-1]) == (0, n_images - 1)
            assert gaps.min() >= 1
            assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("n_images", "frames", "expected"), [(3, 8, [0, 1, 2]), (1, 4, [0]), (5, 3, [0, 2, 4])])
def test_without_repeats_a_short_album_has_each_image_once(n_images: int, frames: int, expected: list[int]) -> None:
    assert frame_indices(n_images, frames, repeat=False) == expected


@pytest.mark.parametrize(("n_images", "frames"), [(0, 8), (3, 0)])
def test_frame_indices_of_nothing_is_an_error(n_images: int, frames: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        frame_indices(n_images, frames)


def test_read_source_takes_an_image_in_every_form(tmp_path: Path) -> None:
    data = encoded(noise(), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    files = fsspec.filesystem("memory")
    files.pipe_file("/forms/deep/a.png", data)
    text = base64.b64encode(data).decode()
    wrapped = base64.encodebytes(data).decode()
    for source in (data, bytearray(data), memoryview(data), text, wrapped):
        assert read_source(source, LIMITS) == data
    for source in (path, str(path), "a.png", Path("a.png"), "./a.png", ".//a.png"):
        for folder in (str(tmp_path), f"{tmp_path}/", "/" if os.path.isabs(source) else str(tmp_path)):
            assert read_source(source, LIMITS, folder=folder) == data
    for header in ("data:image/png;base64,", "data:;base64,", "data:image/png;charset=utf-8;base64,"):
        assert read_source(header + text, LIMITS) == data
    for root in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
        assert read_source("a.png", LIMITS, root=root) == data
    for root in ("memory://forms/deep", "memory://forms/deep/"):
        assert read_source("a.png", LIMITS, root=root) == data
    assert read_source("deep/a.png", LIMITS, root="memory://forms") == data


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_base64_text_of_a_picture_is_read_and_a_file_of_that_name_comes_first(
    fmt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of a JPEG looks like an absolute path: it begins with /9j/."""
    data = encoded(noise(), fmt)
    text = base64.b64encode(data).decode()
    assert read_source(text, LIMITS) == data
    for no_base64 in (text[:-1], text[:50] + "-" + text[51:], f"{text[:60]}=!", text[:20] + "!none.jpg"):
        for folder in (None, str(tmp_path), "/"):
            with pytest.raises(ImageError, match=r"^no picture in base64: "):
                read_source(no_base64, LIMITS, folder=folder)
    (tmp_path / "9j").mkdir()
    (tmp_path / "9j" / "abcd").write_bytes(b"the file")
    monkeypatch.setattr("model.images._inside", lambda folder, text: f"{folder}{text}")
    assert read_source("/9j/abcd", LIMITS, folder=str(tmp_path)) == b"the file"
    assert read_source("/9j/abcd", LIMITS) == base64.b64decode("/9j/abcd")


def test_read_source_refuses_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(bytes(100_001))
    fsspec.filesystem("memory").pipe_file("/refused/large.jpg", bytes(100_001))
    for source, root, reason in (
        ("a.jpg", None, "no such file"),
        (tmp_path / "none.jpg", None, "no such file"),
        (tmp_path, None, "not a regular file"),
        ("/dev/zero", None, "not a regular file"),
        (f"{tmp_path}/\0.jpg", None, "lies outside"),
        (f"{tmp_path}/{'x' * 5_000}.jpg", None, "lies outside"),
        (tmp_path / "large.jpg", None, "100,001 bytes; at most 100,000 are read"),
        ("none.jpg", str(tmp_path), "no such file"),
        ("large.jpg", str(tmp_path), "100,001 bytes; at most 100,000 are read"),
        ("", str(tmp_path), "not a regular file"),
        ("../a.jpg", str(tmp_path), "not the name of a file under"),
        (str(tmp_path / "large.jpg"), str(tmp_path), "not the name of a file under"),
        ("a.jpg", "posts", "the root 'posts' is neither an absolute path nor a URL"),
        ("a.jpg", float("nan"), "the root nan is neither an absolute path nor a URL"),
        ("large.jpg", "memory://refused", "100,001 bytes; at most 100,000 are read"),
        ("none.jpg", "memory://refused", "no such file"),
        ("", "memory://refused", "not a regular file"),
        ("a.jpg", "nonsense://refused", "cannot be read: Protocol not known: nonsense"),
        ("data:image/png,abc", None, "no data URL in base64"),
        ("data:image/png;base64,a", None, "base64 text is damaged"),
        ("data:image/png;base64,é", None, "base64 text is damaged"),
        ("/9j/é", None, "no picture in base64"),
        ("data:image/png;base64," + "A" * 140_000, None, "bytes; at most 100,000 are read"),
        ("/9j/" + "A" * 140_000, None, "bytes; at most 100,000 are read"),
        (None, None, "NoneType given; the path or the bytes of one image"),
        (3, None, "int given"),
        ([b"abc"], None, "list given"),
        ("/", None, "are the images of the post a list"),
        ("h", None, "are the images of the post a list"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_source(source, LIMITS, root=root, folder="/")


def test_no_path_is_read_outside_of_the_folder_that_is_open_and_nothing_is_told_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, secret = tmp_path / "open", tmp_path / "open-not" / "secret.png"
    opened.mkdir()
    secret.parent.mkdir()
    secret.write_bytes(encoded(noise(), "PNG"))
    (opened / "own.png").write_bytes(secret.read_bytes())
    (tmp_path / "back").symlink_to(opened)
    (opened / "link.png").symlink_to(secret)
    (opened / "folder").symlink_to(secret.parent)
    (opened / "broken.png").symlink_to(secret.parent / "none.png")
    monkeypatch.chdir(secret.parent)

    def said(source: object, folder: Path | None) -> str:
        with pytest.raises(ImageError) as refused:
            read_source(source, LIMITS, folder=None if folder is None else str(folder))  # type: ignore[arg-type]
        return str(refused.value)

    there = [secret, str(secret), f"{opened}/../open-not/secret.png", "../open-not/secret.png", "/etc/passwd", opened]
    there += ["link.png", "folder/secret.png", f"{opened}/link.png"]
    # out and back in: which of the folders outside is a link
    there += ["../back/own.png", f"{opened}/../back/../open/own.png", f"{tmp_path}/back/own.png", "./b/../own.png"]
    absent = [
        secret.with_name("none.png"),
        "/no/such/file",
        "../none.png",
        "broken.png",
        "folder/none.png",
        "/etc/passwd/x",
    ]
    absent += [f"file://{secret}/../../x", "a\0", "\ud800/a.png", "/" * 5_000]
    messages = {said(source, opened) for source in (*there, *absent[:-3])}
    assert read_source(f"{tmp_path}/back/own.png", LIMITS, folder=f"{tmp_path}/back") == secret.read_bytes()
    assert read_source(f"{opened}/own.png", LIMITS, folder=f"{tmp_path}/back") == secret.read_bytes()
    assert len(messages) == 1, messages
    assert "lies outside" in messages.pop()
    assert {said(source, opened) for source in absent[-3:]} == {said(secret, opened)}
    # Where no folder is open, nothing is looked up.
    monkeypatch.setattr("os.path.realpath", lambda *_, **__: pytest.fail("looked up"))
    monkeypatch.setattr("os.stat", lambda *_, **__: pytest.fail("looked up"))
    urls = [f"file://{secret}", "s3://bucket/a.png", "http://169.254.169.254/latest", "memory://forms/a.png"]
    closed = {said(source, None) for source in (*there, *absent, *urls, "secret.png")}
    monkeypatch.undo()
    assert len(closed) == 1
    assert "no path is read here" in closed.pop()
    for url in urls:  # a folder that is open reads no other file system
        assert said(url, opened) == "no such file"


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fsspec.filesystem("memory")
    files.pipe_file("/large/a.jpg", bytes(100_001))
    monkeypatch.setattr(type(files), "cat_file", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ImageError, match="at most 100,000"):
        read_source("a.jpg", LIMITS, root="memory://large")


def test_bytes_are_held_to_their_sha256_wherever_they_come_from(tmp_path: Path) -> None:
    data = encoded(noise(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    fsspec.filesystem("memory").pipe_file("/held/a.png", data)
    right, wrong = hashlib.sha256(data).hexdigest(), hashlib.sha256(b"").hexdigest()
    for source, root in (
        (data, None),
        (base64.b64encode(data).decode(), None),
        ("a.png", str(tmp_path)),
        ("a.png", "memory://held"),
    ):
        assert read_source(source, LIMITS, root=root, sha256=right) == data
        assert read_frame(source, 8, LIMITS, root=root, sha256=right).shape == (8, 8, 3)
        with pytest.raises(ImageError, match="was changed since it was ingested"):
            read_source(source, LIMITS, root=root, sha256=wrong)
        with pytest.raises(ImageError, match="was changed since it was ingested"):
            read_frame(source, 8, LIMITS, root=root, sha256=wrong)


def test_fsspec_is_imported_only_where_a_url_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"abc")
    code = (
        "import sys; from model.images import ImageLimits, read_source; "
        f"assert read_source('a.jpg', ImageLimits(9, 9), root={str(tmp_path)!r}) == b'abc'; "
        "assert 'fsspec' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
