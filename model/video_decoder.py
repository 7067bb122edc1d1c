"""The process that decodes videos, see `model.video`: one that crashes, hangs or eats memory takes nobody with it.

Run as a file, so that it is the same wherever the package lies; it imports nothing of it. Over its pipes go a line of
JSON and the bytes that this line counts: `{"bytes": …, "frames": …, …}` and a video; back `{"error": …}` or
`{"sizes": […]}` and so many pictures.
"""

from __future__ import annotations

import bisect
import io
import json
import resource
import signal
import sys
from contextlib import suppress
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation
from PIL import Image

#: What is decoded. Of FFmpeg's some hundred formats and decoders these are what platforms deliver and phones make;
#: none of these formats names other files, as playlists do.
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9", "mpeg4", "h263"}
#: Pixels of the shorter side, at most: what an annotator reads of an image in high detail; and of the longer one.
SIDE, LONGEST = 768, 4096
#: Of JPEG; of PNG: 1 of 9, as the higher ones take several times as long.
_QUALITY, _COMPRESSION = 92, 1
#: Transfer functions of HDR by their numbers in ITU-T H.273; the nits of a white page in it (BT.2408).
_PQ, _HLG, _WHITE = 16, 18, 203.0
#: From where on HDR's light is pressed together, as a share of white.
_KNEE = 0.6
_2020_TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
#: Seconds, and a share, by which a file may claim to be longer than what it holds.
_SLACK, _SLACK_SHARE = 0.5, 0.02
#: Bytes of memory of this process, at most.
_MEMORY = 4 * 2**30


class BrokenVideoError(Exception):
    """The message is the reason."""


def frames(data: bytes, limits: dict[str, Any]) -> list[bytes]:
    """`limits["frames"]` pictures as files, at equal distances in time, the first and the last of the video included.

    Each is the picture on display at its time. The times are those of the packets, whatever a header claims; decoded is
    from the last key frame before a time on.
    """
    try:
        with av.open(io.BytesIO(data), "r", format=_format(data)) as container:
            return _sampled(container, limits)
    except (av.FFmpegError, OverflowError, ValueError, MemoryError) as error:
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenVideoError(f"cut or corrupt: {words}") from error


def _format(data: bytes) -> str:
    if not data:
        raise BrokenVideoError("empty file")
    if data[4:8] in _MP4_BOXES:
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    raise BrokenVideoError("not an MP4, MOV, WebM or MKV video")


def _sampled(container: Any, limits: dict[str, Any]) -> list[bytes]:
    stream = _stream(container, limits)
    packets, end = _packets(container, stream, limits)
    _refuse_cut(container, stream, packets, end)
    first_key = next((k for k, packet in enumerate(packets) if packet.is_keyframe), None)
    if first_key is None:
        raise BrokenVideoError("cut or corrupt: no key frame")
    packets = packets[first_key:]
    times = sorted({_time(p) for p in packets if not p.is_discard and _time(p) >= _time(packets[0])})
    if not times:
        raise BrokenVideoError("cut or corrupt: it holds no pictures")
    seconds = float((times[-1] - times[0]) * stream.time_base)
    if seconds > limits["max_seconds"]:
        raise BrokenVideoError(f"{seconds:,.0f} s long; at most {limits['max_seconds']:,.0f} s are read")
    n = limits["frames"]
    asked = [times[0] + k * (times[-1] - times[0]) // max(n - 1, 1) for k in range(n)]
    shown = [times[bisect.bisect_right(times, time) - 1] for time in asked]
    found = _decoded(stream.codec_context, packets, sorted(set(shown)), times, limits, stream.time_base)
    files = {time: _file(frame, stream.sample_aspect_ratio) for time, frame in found.items()}
    return [files[time] for time in shown]


def _stream(container: Any, limits: dict[str, Any]) -> Any:
    streams = [s for s in container.streams.video if "attached_pic" not in str(s.disposition).lower()]
    if not streams:
        sound = container.streams.audio or container.streams.video
        raise BrokenVideoError("holds no moving picture" if sound else "cut or corrupt: it holds no pictures")
    stream = streams[0]
    context = stream.codec_context
    if context.codec.name not in _CODECS:
        raise BrokenVideoError(f"its pictures are encoded as {context.codec.name}; H.264, HEVC, VP8, VP9, AV1 are read")
    _check_size(context.width, context.height, limits)
    # the header of the pictures themselves may say another size
    context.options = {"max_pixels": str(limits["max_pixels"])}
    context.thread_count = 1
    return stream


def _check_size(width: int, height: int, limits: dict[str, Any]) -> None:
    if width < 1 or height < 1:
        raise BrokenVideoError("cut or corrupt: its pictures have no size")
    if width * height > limits["max_pixels"]:
        raise BrokenVideoError(
            f"pictures of {width * height / 1e6:g} megapixels; at most {limits['max_pixels'] / 1e6:g} are read"
        )
    if max(width, height) > limits["max_aspect"] * min(width, height):
        raise BrokenVideoError(f"{width} x {height} pixels; sides of at most {limits['max_aspect']:g} : 1 are read")


def _packets(container: Any, stream: Any, limits: dict[str, Any]) -> tuple[list[Any], float]:
    """The packets of the pictures in the order of the file, and the end of all streams in seconds."""
    packets, end = [], 0.0
    for packet in container.demux():
        if not packet.size or (packet.pts is None and packet.dts is None):
            continue
        end = max(end, float((_time(packet) + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index:
            packets.append(packet)
            if len(packets) > limits["max_frames"]:
                raise BrokenVideoError(f"more than {limits['max_frames']:,} pictures; no more are read")
    if not packets:
        raise BrokenVideoError("cut or corrupt: it holds no pictures")
    return packets, end


def _time(packet: Any) -> int:
    return packet.pts if packet.pts is not None else packet.dts


def _refuse_cut(container: Any, stream: Any, packets: list[Any], end: float) -> None:
    if len(packets) < stream.frames or any(packet.is_corrupt for packet in packets):
        raise BrokenVideoError(
            f"cut or corrupt: {len(packets):,} of {max(stream.frames, len(packets)):,} pictures there"
        )
    if container.format.name.startswith("matroska") and container.duration is not None:
        claimed = container.duration / 1e6 + max(container.start_time or 0, 0) / 1e6
        if claimed > end + max(_SLACK, _SLACK_SHARE * end):
            raise BrokenVideoError(f"cut or corrupt: it claims {claimed:,.1f} s, and ends after {end:,.1f} s")


def _decoded(
    context: Any, packets: list[Any], wanted: list[int], times: list[int], limits: dict[str, Any], base: Any
) -> dict[int, Any]:
    """The pictures on display at the times `wanted`, by these."""
    keys = [(k, _time(packet)) for k, packet in enumerate(packets) if packet.is_keyframe]
    found: dict[int, Any] = {}
    n_decoded, todo = 0, list(wanted)

    def start_of(time: int) -> int:
        return max(k for k, key_time in keys if key_time <= time)

    while todo:
        start, last = start_of(todo[0]), None
        for frame in _frames_from(context, packets[start:]):
            n_decoded += 1
            if n_decoded > limits["max_decoded"]:
                raise BrokenVideoError(f"more than {limits['max_decoded']:,} pictures had to be decoded")
            _check_size(frame.width, frame.height, limits)
            while todo and frame.pts > todo[0]:
                found[todo[0]] = _near(last, todo.pop(0), times, base)
            if todo and frame.pts == todo[0]:
                found[todo.pop(0)] = frame
            last = frame
            if not todo or start_of(todo[0]) > start:
                break
        else:
            while todo:
                found[todo[0]] = _near(last, todo.pop(0), times, base)
    return found


def _near(frame: Any, time: int, times: list[int], base: Any) -> Any:
    """The last picture before a time for which none was decoded: of a picture in two packets, the second shows none.

    Where the last one is older than that, the picture that is wanted is damaged.
    """
    least = times[max(bisect.bisect_left(times, time) - 1, 0)]
    if frame is None or frame.pts < least:
        raise BrokenVideoError(
            f"cut or corrupt: its picture at {float((time - times[0]) * base):.2f} s cannot be decoded"
        )
    return frame


def _frames_from(context: Any, packets: list[Any]) -> Any:
    context.flush_buffers()
    for packet in [*packets, None]:
        with suppress(av.error.InvalidDataError):  # the picture that is wanted will be missed
            yield from (frame for frame in context.decode(packet) if frame.pts is not None)


# --- a picture -----------------------------------------------------------------------------------------------


def _file(frame: Any, aspect: Any) -> bytes:
    """JPEG; PNG of a video in RGB, as lossless recordings of screens and drawings are: it keeps every pixel."""
    image = _rgb(frame, *_size(frame, float(aspect or 1)))
    turn = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    quarter = round(frame.rotation / 90) % 4 * 90
    if quarter:
        image = image.transpose(turn[quarter])
    buffer = io.BytesIO()
    if frame.format.is_rgb:
        image.save(buffer, "PNG", compress_level=_COMPRESSION)
    else:
        image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _size(frame: Any, aspect: float) -> tuple[int, int]:
    """As it is shown: its pixels may be wider than high."""
    width, height = float(frame.width), float(frame.height)
    if 0.1 <= aspect <= 10:
        width *= aspect
    scale = min(1.0, SIDE / min(width, height), LONGEST / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _rgb(frame: Any, width: int, height: int) -> Image.Image:
    hdr = int(frame.color_trc) in (_PQ, _HLG)
    smooth = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    matrix = None
    if hdr:
        matrix = Colorspace.BT2020
    elif int(frame.colorspace) == 2 and frame.height > 576:  # not told: as players do
        matrix = Colorspace.ITU709
    shown = frame.reformat(
        width, height, "rgb48le" if hdr else "rgb24", src_colorspace=matrix, interpolation=smooth, threads=1
    )
    pixels = shown.to_ndarray()
    return Image.fromarray(to_sdr(pixels / 65535, int(frame.color_trc)) if hdr else pixels)


def to_sdr(signal: np.ndarray, transfer: int) -> np.ndarray:
    """(H, W, 3) of HDR's signal in [0, 1], BT.2020, as 8-bit sRGB; what is brighter than white is pressed together."""
    light = np.maximum(_nits(signal, transfer) / _WHITE @ _2020_TO_709.T, 0)
    peak = light.max(axis=-1, keepdims=True)
    pressed = np.where(peak > _KNEE, 1 - (1 - _KNEE) * np.exp(-(peak - _KNEE) / (1 - _KNEE)), peak)
    linear = (light * pressed / np.maximum(peak, 1e-9)).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * srgb + 0.5).astype(np.uint8)


def _nits(signal: np.ndarray, transfer: int) -> np.ndarray:
    """ITU-R BT.2100. HLG is shown on a display of 1,000 nits."""
    if transfer == _PQ:
        power = signal ** (32 / 2523)
        share = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        bright: np.ndarray = 10_000 * share ** (8192 / 1305)
        return bright
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luma = scene @ np.array([0.2627, 0.6780, 0.0593])
    shown: np.ndarray = 1000 * scene * luma[..., None] ** 0.2
    return shown


# --- the process ---------------------------------------------------------------------------------------------


def main(source: BinaryIO, sink: BinaryIO) -> None:
    av.logging.set_level(None)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    while line := source.readline():
        limits = json.loads(line)
        data = source.read(limits["bytes"])
        signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])  # SIGPROF ends the process, in native code too
        found: list[bytes] = []
        try:
            found = frames(data, limits)
            answer: dict[str, Any] = {"sizes": [len(file) for file in found]}
        except BrokenVideoError as error:
            answer = {"error": str(error)}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        sink.write(json.dumps(answer).encode() + b"\n" + b"".join(found))
        sink.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
