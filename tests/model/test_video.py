"""model/video.py: the right frames of a right video, and one reason for every other one."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model import video
from model.errors import ImageError
from model.images import ImageLimits, frame_indices
from model.video import FRAMES, frames, read_video
from tests.support.clips import SIZE, clip, numbers, opened, picture

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=4_000_000)


@pytest.fixture(scope="module")
def plain() -> bytes:
    return clip()


def reason(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ImageError) as found:
        frames(data, limits)
    return str(found.value)


# --- right frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "container"),
    [("libx264", "mp4"), ("libx264", "matroska"), ("libx264", "mov"), ("libvpx-vp9", "webm"), ("libx265", "mp4")],
)
def test_the_frames_are_at_equal_distances_from_the_first_to_the_last(codec: str, container: str) -> None:
    """Of pictures at equal distances they are those that an album's images would be."""
    found = frames(clip(codec=codec, container=container), LIMITS)
    assert numbers(found) == frame_indices(60, FRAMES)


@pytest.mark.parametrize("options", [{"g": "250"}, {"g": "1"}, {"bf": "3", "g": "20", "x264-params": "open-gop=1"}])
def test_wherever_the_key_frames_are_the_frames_are_the_same(options: dict[str, str]) -> None:
    assert numbers(frames(clip(options=options | {"preset": "fast"}), LIMITS)) == frame_indices(60, FRAMES)


def test_what_lies_behind_a_key_frame_that_is_not_needed_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,200 pictures with a key frame at every 12th, 16 groups of at most 12 are decoded."""
    monkeypatch.setattr(video, "_MOST_DECODED", 16 * 12)
    assert numbers(frames(clip(1200), LIMITS))[:3] == [0, 79 % 64, 159 % 64]


def test_of_a_video_of_fewer_pictures_some_come_more_than_once() -> None:
    assert numbers(frames(clip(3), LIMITS)) == [0] * 8 + [1] * 7 + [2]
    assert numbers(frames(clip(1), LIMITS)) == [0] * FRAMES


def test_with_a_variable_rate_the_frame_is_the_one_on_display_at_its_time() -> None:
    """Three pictures in the first second and a half, the fourth after 15 seconds: at 0, 1, 2, … 15 s."""
    found = numbers(frames(clip(4, times=[0, 50, 150, 1500]), LIMITS))
    assert found == [0, 1] + [2] * 13 + [3]


@pytest.mark.parametrize(
    ("rotation", "corner"), [(0, "top left"), (90, "bottom left"), (180, "bottom right"), (-90, "top right")]
)
def test_a_video_is_upright_by_its_metadata(rotation: int, corner: str) -> None:
    frame = opened(frames(clip(4, rotation=rotation), LIMITS)[0]).astype(int)
    assert frame.shape[:2] == (SIZE if rotation % 180 else SIZE[::-1])
    corners = {
        "top left": frame[4, 4], "top right": frame[4, -5], "bottom left": frame[-5, 4], "bottom right": frame[-5, -5],
    }  # fmt: skip
    assert [name for name, pixel in corners.items() if pixel[0] - pixel[1] > 100] == [corner]


def test_a_very_wide_video_stays_within_what_an_image_may_be() -> None:
    assert opened(frames(clip(1, (6000, 64)), LIMITS)[0]).shape == (44, 4096, 3)


def test_a_frame_is_held_to_the_bytes_of_an_image(plain: bytes) -> None:
    tight = ImageLimits(max_bytes=100, max_pixels=4_000_000)
    assert re.fullmatch(r"its frames have up to [0-9,]+ bytes; at most 100 are read", reason(plain, tight))


def test_odd_sizes_are_kept() -> None:
    found = frames(clip(20, (33, 17), pixel_format="yuv444p"), LIMITS)
    assert {opened(jpeg).shape for jpeg in found} == {(17, 33, 3)}
    assert numbers(found) == frame_indices(20, FRAMES)


def test_a_large_video_becomes_as_large_as_an_annotator_reads() -> None:
    found = frames(clip(2, (1920, 1080)), LIMITS)
    assert opened(found[0]).shape == (768, 1365, 3)


def test_pixels_that_are_not_square_are_shown_as_players_do() -> None:
    import av

    buffer, source = io.BytesIO(), clip(4)
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        for number in range(4):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), "rgb24")))
        output.mux(stream.encode())
    assert opened(frames(source, LIMITS)[0]).shape == (SIZE[1], SIZE[0], 3)
    assert opened(frames(buffer.getvalue(), LIMITS)[0]).shape == (SIZE[1], 2 * SIZE[0], 3)


def test_colours_come_back() -> None:
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128)]
    content = [np.full((64, 96, 3), colour, dtype=np.uint8) for colour in colours]
    found = [opened(jpeg).mean((0, 1)) for jpeg in frames(clip(4, content=content), LIMITS)]
    for k, colour in zip((0, 5, 10, 15), colours, strict=True):
        assert np.abs(found[k] - colour).max() < 6


@pytest.mark.parametrize(("transfer", "white"), [(16, 0.5807), (18, 0.75)])
def test_white_of_hdr_is_bright_and_grey_stays_grey(transfer: int, white: float) -> None:
    """203 nits, a white page, are 58 % of PQ's and 75 % of HLG's signal (ITU-R BT.2408).

    White is pressed to 0.6 + 0.4 (1 - 1/e) of the light: 237 of sRGB's 255. A colour without hue gets none.
    """
    from model.video_decoder import to_sdr

    found = to_sdr(np.full((1, 1, 3), white), transfer)[0, 0].astype(int)
    assert np.abs(found - 237).max() <= 2
    assert to_sdr(np.zeros((1, 1, 3)), transfer).tolist() == [[[0, 0, 0]]]
    brightest = to_sdr(np.ones((1, 1, 3)), transfer)[0, 0].astype(int)
    assert (brightest > 250).all()


def test_an_hdr_video_is_shown_in_sdr() -> None:
    content = [np.full((64, 96, 3), round(0.5807 * 65535), dtype=np.uint16)] * 2
    data = clip(
        2,
        content=content,
        codec="libx265",
        pixel_format="yuv420p10le",
        colors=(9, 16, 9),
        container="matroska",
        options={"x265-params": "log-level=none"},
    )
    assert np.abs(opened(frames(data, LIMITS)[0]).astype(int) - 237).max() <= 6


def test_the_same_video_gives_the_same_bytes(plain: bytes) -> None:
    first, second = (hashlib.sha256(b"".join(frames(plain, LIMITS))).hexdigest() for _ in range(2))
    assert first == second


# --- broken and hostile files ----------------------------------------------------------------------------


def without_pictures() -> bytes:
    """A track that nothing was written to."""
    data = clip(1, codec="libvpx", container="webm")
    return data[: data.index(b"\x1f\x43\xb6\x75")]  # where the first cluster begins


def sound() -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def declared(width: int, height: int) -> bytes:
    """A WebM whose header says another size than its pictures have."""
    data = clip(4, (480, 320), codec="libvpx", container="webm")
    said = b"\xb0\x82" + struct.pack(">H", 480) + b"\xba\x82" + struct.pack(">H", 320)  # PixelWidth, PixelHeight
    assert said in data
    return data.replace(said, b"\xb0\x82" + struct.pack(">H", width) + b"\xba\x82" + struct.pack(">H", height))


def faststart(**options: Any) -> bytes:
    """The index before the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        return clip(place=Path(folder, "clip.mp4"), container_options={"movflags": "faststart"}, **options)


def damaged() -> bytes:
    """Its pictures are noise behind the first ones."""
    data = bytearray(faststart(options={"g": "250"}))
    start = data.index(b"mdat") + 4
    noise = np.random.default_rng(0).integers(0, 256, len(data), dtype=np.uint8).tobytes()
    third = start + (len(data) - start) // 3
    data[third:] = noise[: len(data) - third]
    return bytes(data)


def long_header() -> bytes:
    """A WebM that claims 10^9 s."""
    data = bytearray(clip(codec="libvpx", container="webm"))
    place = data.index(b"\x44\x89\x88")  # Duration, 8 bytes
    data[place + 3 : place + 11] = struct.pack(">d", 1e12)
    return bytes(data)


BROKEN = {
    "empty": (lambda: b"", "^empty file$"),
    "text": (lambda: b"#EXTM3U\nfile:///etc/passwd\n" * 20, "^not an MP4, MOV, WebM or MKV video$"),
    "avi": (lambda: clip(4, codec="mpeg4", container="avi"), "^not an MP4, MOV, WebM or MKV video$"),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "^not an MP4, MOV, WebM or MKV video$"),
    "cut at the end": (lambda: clip()[:-400], "^cut or corrupt: "),
    "cut in the middle": (lambda: faststart()[:-3000], "^cut or corrupt: "),
    "cut webm": (lambda: clip(codec="libvpx", container="webm", seed=1)[:6000], "^cut or corrupt: it claims "),
    "begins right": (lambda: b"\x00\x00\x00\x20ftypisom" + bytes(1000), "^(cut or corrupt: |holds no moving picture)"),
    "damaged": (damaged, "^cut or corrupt: its picture at [0-9.]+ s cannot be decoded$"),
    "no pictures": (without_pictures, "^cut or corrupt: "),
    "sound only": (sound, "^holds no moving picture$"),
    "huge by its header": (lambda: declared(12_000, 12_000), "^pictures of 144 megapixels; at most 4 are read$"),
    "very wide by its header": (lambda: declared(20_000, 20), "^20000 x 20 pixels; sides of at most 100 : 1 are read$"),
    "huge by its pictures": (lambda: clip(1, (2400, 2000)), "^pictures of 4.8 megapixels; at most 4 are read$"),
    "long by its header": (long_header, "^cut or corrupt: it claims 1,000,000,000.0 s, and ends after 2.0 s$"),
    "long": (lambda: clip(3, times=[0, 50, 61_000]), "^610 s long; at most 600 s are read$"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_or_hostile_file_is_one_clear_reason(name: str) -> None:
    make, expected = BROKEN[name]
    assert re.search(expected, reason(make()))


def test_a_small_header_over_huge_pictures_is_refused_by_the_decoder() -> None:
    data = bytearray(clip(1, (2400, 2000)))
    place = data.index(b"avc1", data.index(b"stsd"))
    data[place + 28 : place + 32] = struct.pack(">HH", 96, 64)
    assert reason(bytes(data)).startswith(("cut or corrupt: ", "pictures of 4.8 megapixels"))


def test_more_pictures_than_the_limit_are_not_read(plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_MOST_PICTURES", 59)
    assert reason(plain) == "more than 59 pictures; no more are read"
    monkeypatch.setattr(video, "_MOST_PICTURES", 60)
    monkeypatch.setattr(video, "_MOST_DECODED", 40)
    assert reason(plain) == "more than 40 pictures had to be decoded"


def test_a_file_of_too_many_bytes_is_not_opened(plain: bytes, tmp_path: Path) -> None:
    small = ImageLimits(max_bytes=10, max_pixels=4_000_000, max_video_bytes=len(plain) - 1)
    assert reason(plain, small) == f"{len(plain):,} bytes; at most {len(plain) - 1:,} are read"
    (tmp_path / "clip.mp4").write_bytes(plain)
    with pytest.raises(ImageError, match="at most"):
        read_video("clip.mp4", small, root=str(tmp_path))
    assert read_video("clip.mp4", LIMITS, root=str(tmp_path)) == plain


def test_a_video_that_takes_too_much_cpu_is_ended_and_the_next_one_is_decoded(
    plain: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = clip(300, (1280, 720), options={"g": "500"})
    monkeypatch.setattr(video, "_CPU_SECONDS", 0.05)
    assert reason(large) == "its decoding took more than 0.05 s of CPU"
    monkeypatch.undo()
    assert numbers(frames(plain, LIMITS)) == frame_indices(60, FRAMES)


@pytest.fixture
def own_decoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    mine: list[Any] = []
    monkeypatch.setattr(video, "_idle", mine)
    yield mine
    while mine:
        mine.pop().end()


def test_a_decoder_that_crashes_costs_its_video_and_no_other(plain: bytes, own_decoders: list[Any]) -> None:
    frames(plain, LIMITS)
    os.kill(own_decoders[0]._process.pid, signal.SIGSEGV)
    assert reason(plain) == "cut or corrupt: the decoder broke off (SIGSEGV)"
    assert own_decoders == []
    assert numbers(frames(plain, LIMITS)) == frame_indices(60, FRAMES)


def test_a_decoder_that_hangs_is_ended(plain: bytes, own_decoders: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    frames(plain, LIMITS)
    os.kill(own_decoders[0]._process.pid, signal.SIGSTOP)
    monkeypatch.setattr(video, "_WALL_SECONDS", 0.5)
    assert reason(plain) == "its decoding took more than 0.5 s, or too much memory, and was ended"


def test_after_a_reason_the_same_process_decodes_the_next_one(plain: bytes, own_decoders: list[Any]) -> None:
    frames(plain, LIMITS)
    (first,) = own_decoders
    reason(b"nothing of a video")
    frames(plain, LIMITS)
    assert own_decoders == [first]


def test_a_fork_has_decoders_of_its_own(plain: bytes, own_decoders: list[Any]) -> None:
    from concurrent.futures import ProcessPoolExecutor

    expected = frames(plain, LIMITS)
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(frames, [plain] * 4, [LIMITS] * 4))
    assert found == [expected] * 4
    assert frames(plain, LIMITS) == expected


def test_of_a_video_in_rgb_without_loss_no_pixel_changes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, 17, 33, 3), dtype=np.uint8)
    data = clip(FRAMES, (33, 17), content=noise, codec="libx264rgb", pixel_format="rgb24", options={"qp": "0"})
    found = [Image.open(io.BytesIO(file)) for file in frames(data, LIMITS)]
    assert {(image.format, image.mode, len(image.getexif())) for image in found} == {("PNG", "RGB", 0)}
    assert (np.stack([np.asarray(image) for image in found]) == noise).all()


def test_a_frame_is_a_jpeg_of_pixels_alone(plain: bytes) -> None:
    image = Image.open(io.BytesIO(frames(plain, LIMITS)[0]))
    assert (image.format, image.size, len(image.getexif())) == ("JPEG", SIZE, 0)
