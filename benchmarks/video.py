"""How fast clips become frames, beside decoding all of them.

    .venv/bin/python -m benchmarks.video

Writes `benchmarks/video.json` and the table of `docs/speed.md`. A clip has 10 s of 1280 x 720 pixels at 30 pictures per
second: noise with the spectrum of photographs, moving. Times are CPU seconds of the decoding process.
"""

from __future__ import annotations

import io
import time
from statistics import median
from typing import Any, cast

import av
import numpy as np

from benchmarks.preprocessing import photo
from benchmarks.record import machine, put, table, write
from model.images import ImageLimits
from model.video import FRAMES
from model.video_decoder import frames
from steps.paths import REPOSITORY

RECORD = REPOSITORY / "benchmarks" / "video.json"
SECONDS, RATE, SIZE, ROUNDS = 10, 30, (1280, 720), 2
#: Codec, container, and pictures between two key frames: of platforms, of phones, and none but the first.
CLIPS = {
    "H.264, a key frame every 2 s": ("libx264", "mp4", 60),
    "H.264, a key frame every 1 s": ("libx264", "mp4", 30),
    "H.264, one key frame": ("libx264", "mp4", 100_000),
}
LIMITS = ImageLimits(max_bytes=10**9, max_pixels=50_000_000)


def clip(codec: str, container: str, distance: int) -> bytes:
    width, height = SIZE
    large = np.asarray(photo(width + 300, height + 300))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = cast("av.VideoStream", output.add_stream(codec, rate=RATE, bit_rate=2_500_000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = distance
        stream.options = {"preset": "veryfast"}
        for k in range(SECONDS * RATE):
            part = np.ascontiguousarray(large[k : k + height, k : k + width])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(part, "rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def all_pictures(data: bytes) -> int:
    """The plain path: every picture, of which 16 are kept."""
    with av.open(io.BytesIO(data), "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        kept = [frame for k, frame in enumerate(container.decode(video=0)) if k % (SECONDS * RATE // FRAMES) == 0]
        return len([frame.to_image() for frame in kept[:FRAMES]])


def row(name: str, data: bytes) -> dict[str, Any]:
    limits = {
        "frames": FRAMES, "max_pixels": LIMITS.max_pixels, "max_aspect": LIMITS.max_aspect, "max_seconds": 600,
        "max_frames": 40_000, "max_decoded": 20_000,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(ROUNDS):
        for arm, work in (("ours", lambda: frames(data, limits)), ("plain", lambda: all_pictures(data))):
            begin = time.process_time()
            work()
            seconds[arm].append(time.process_time() - begin)
    return {"clip": name, "kB": round(len(data) / 1000)} | {arm: median(found) for arm, found in seconds.items()}


def tables(record: dict[str, Any]) -> dict[str, str]:
    rows = [
        (
            r["clip"],
            r["kB"],
            f"{1 / r['plain']:.2f}",
            f"{1 / r['ours']:.2f}",
            f"{r['plain'] / r['ours']:.2f}",
        )
        for r in record["clips"]
    ]
    header = ("clip of 10 s, 1280 x 720", "kB", "every picture, clips/s per core", "ours, clips/s per core", "ratio")
    return {"video clips": table(header, rows)}


def main() -> None:
    record = machine("av", "numpy") | {"clips": [row(name, clip(*form)) for name, form in CLIPS.items()]}
    write(RECORD, record)
    put(tables(record))


if __name__ == "__main__":
    main()
