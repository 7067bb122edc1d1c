"""Preprocessing against the plain path (decode the whole picture, convert, resize), and its memory.

    .venv/bin/python -m benchmarks.preprocessing

Writes `benchmarks/preprocessing.json` and the tables of `docs/speed.md`. The pictures are synthetic: noise with the
spectrum of photographs, discs and stripes with hard edges, the grain of a sensor; "phone" is a 12-megapixel picture
scaled down as an app stores it. Both paths run in turn in one process; times are CPU seconds, so other work on the
machine counts little.
"""

from __future__ import annotations

import hashlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from PIL import Image, features
from transformers import Qwen2Tokenizer

from benchmarks.peers.meter import cpu_seconds
from benchmarks.record import forget_peak, in_turn, machine, memory, put, table, write
from model.images import ImageLimits, decode, read_frame, read_source
from model.settings import SequenceSettings
from model.task import load_task
from model.tiny import build_tokenizer
from steps.ingest.sample import sample_texts
from steps.paths import REPOSITORY
from steps.preprocess import shards

RECORD = REPOSITORY / "benchmarks" / "preprocessing.json"
SIDE, ROUNDS = 384, 15
LIMITS = ImageLimits(max_bytes=100_000_000, max_pixels=50_000_000)
STEP_IMAGES = 200
MEMORY = ((1_000, 32), (10_000, 32), (100_000, 32), (1_000, SIDE), (4_000, SIDE))


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(3)
    frequency = np.hypot(np.fft.rfftfreq(width)[None], np.fft.fftfreq(height)[:, None])
    frequency[0, 0] = 1
    common = rng.normal(size=(height, width))
    pixels = np.empty((height, width, 3), np.float32)
    for channel in range(3):
        spectrum = np.fft.rfft2(0.8 * common + 0.4 * rng.normal(size=(height, width))) / frequency**1.1
        values = np.fft.irfft2(spectrum, s=(height, width))
        pixels[..., channel] = (values - values.mean()) / values.std() * 50 + 128
    y, x = np.mgrid[:height, :width]
    for _ in range(25):
        disc = (y - rng.integers(height)) ** 2 + (x - rng.integers(width)) ** 2 < rng.integers(10, height // 8) ** 2
        pixels[disc] = pixels[disc] * 0.3 + rng.integers(0, 256, 3) * 0.7
    for _ in range(15):
        top, left, period = rng.integers(height - 40), rng.integers(width - 200), rng.integers(3, 9)
        patch = pixels[top : top + 40, left : left + 200]
        patch[:, np.arange(200) // period % 2 == 0] = rng.integers(0, 256, 3)
    pixels += rng.normal(0, 3, (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, fmt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    camera = photo(4000, 3000)
    phone = photo(3024, 4032).resize((1080, 1440), Image.Resampling.LANCZOS)
    return {
        **{f"phone, 1080 x 1440, JPEG quality {q}": encoded(phone, "JPEG", quality=q) for q in (75, 85, 90, 95)},
        "phone, 1080 x 1440, progressive JPEG": encoded(phone, "JPEG", quality=85, progressive=True),
        "phone, 1080 x 1440, PNG": encoded(phone, "PNG"),
        "camera, 4000 x 3000, JPEG quality 90": encoded(camera, "JPEG", quality=90),
        "exactly twice, 768 x 1024, JPEG quality 85": encoded(phone.resize((768, 1024)), "JPEG", quality=85),
        "small, 640 x 480, JPEG quality 85": encoded(camera.resize((640, 480)), "JPEG", quality=85),
    }


def plain_frame(source: str | bytes, size: int, limits: ImageLimits, **where: str) -> np.ndarray:
    """What Pillow's manual shows. The bytes are read, and held to their hash, as ours are."""
    image = Image.open(io.BytesIO(read_source(source, limits, **where)))
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def difference(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    gap = np.abs(found.astype(int) - expected)
    return {"mean": round(float(gap.mean()), 2), "p99": float(np.percentile(gap, 99)), "max": int(gap.max())}


def frame_row(name: str, data: bytes) -> dict[str, Any]:
    arms: dict[str, Callable[[], object]] = {
        "plain": lambda: plain_frame(data, SIDE, LIMITS),
        "ours": lambda: read_frame(data, SIDE, LIMITS),
        "check": lambda: decode(data, LIMITS, least_side=1),
        "full": lambda: decode(data, LIMITS),
    }
    plain, ours, check, full = (1000 * found["cpu"] for found in in_turn(arms, ROUNDS, warm=False).values())
    expected = plain_frame(data, SIDE, LIMITS)
    twice = decode(data, LIMITS, least_side=2 * SIDE).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return {
        "picture": name,
        "kB": round(len(data) / 1000),
        "plain_ms": round(plain, 2),
        "ours_ms": round(ours, 2),
        "ratio": round(plain / ours, 2),
        "full_check_ms": round(full, 2),
        "check_ms": round(check, 2),
        "difference": difference(read_frame(data, SIDE, LIMITS), expected),
        "difference_with_margin_2": difference(np.asarray(twice), expected),
    }


def posts_of(folder: Path, picture: bytes, count: int) -> pd.DataFrame:
    """Posts of one image each, the same picture in files of different bytes: each is read and decoded."""
    hashes = []
    for k in range(count):
        data = picture + str(k).encode()  # behind the end of the JPEG, where nobody reads
        (folder / f"{k}.jpg").write_bytes(data)
        hashes.append(hashlib.sha256(data).hexdigest())
    return pd.DataFrame(
        {
            "post_id": [f"p{k}" for k in range(count)],
            "split": "train",
            "title": [f"post {k} of this benchmark" for k in range(count)],
            "text": "a walk along the sea with friends, and what we saw there #fyp #album",
            "root": str(folder),
            "images": [[f"{k}.jpg"] for k in range(count)],
            "image_sha256": [[one] for one in hashes],
            **{name: pd.array([0] * count, "Int8") for name in ("label", *load_task("ucc").question_ids)},
        }
    )


@cache
def tokenizer() -> Qwen2Tokenizer:
    return build_tokenizer(sample_texts(500, seed=0), 1024)


def preprocess(posts: pd.DataFrame, side: int) -> None:
    sequence = SequenceSettings(frames=16, image_size=side, max_text_tokens=196, max_tokens=256)
    with tempfile.TemporaryDirectory() as folder:
        shards.write_shards(Path(folder) / "shards", posts, load_task("ucc"), sequence, tokenizer(), LIMITS)


def step_rows(data: bytes) -> dict[str, float]:
    """CPU milliseconds per image, of the whole step: read, decode, resize, hand over, hash, write."""
    spent: dict[str, list[float]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        posts = posts_of(Path(folder), data, STEP_IMAGES)
        tokenizer()
        for _ in range(3):
            for name, function in (("plain", plain_frame), ("ours", read_frame)):
                start = cpu_seconds()
                with patch.object(shards, "read_frame", function):
                    preprocess(posts, SIDE)
                spent[name].append(1000 * (cpu_seconds() - start) / STEP_IMAGES)
    return {name: round(statistics.median(times), 2) for name, times in spent.items()}


def memory_row(count: int, side: int) -> dict[str, Any]:
    """Run in a process of its own, whose peak is this preprocessing's."""
    with tempfile.TemporaryDirectory() as folder:
        posts = posts_of(Path(folder), encoded(Image.new("RGB", (48, 48)), "JPEG"), count)
        tokenizer()
        forget_peak()
        with_table = memory("VmRSS")
        start = time.perf_counter()
        preprocess(posts, side)
    return {
        "posts": count,
        "side": side,
        "seconds": round(time.perf_counter() - start, 1),
        "with_table_MB": round(with_table),
        "peak_MB": round(memory("VmHWM")),
    }


def tables(record: dict[str, Any]) -> dict[str, str]:
    frames = [
        [
            row["picture"],
            row["kB"],
            f"{1000 / row['plain_ms']:.0f}",
            f"{1000 / row['ours_ms']:.0f}",
            f"{row['ratio']:.2f}",
            f"{row['full_check_ms'] / row['check_ms']:.2f}",
        ]
        for row in record["frames"]
    ]
    step = record["step"]
    frames.append(
        [
            "the step, phone at quality 85",
            "",
            f"{1000 / step['plain']:.0f}",
            f"{1000 / step['ours']:.0f}",
            f"{step['plain'] / step['ours']:.2f}",
            "",
        ]
    )
    gaps = [
        [row["picture"]]
        + [
            f"{gap['mean']:.2f} / {gap['p99']:.0f} / {gap['max']}"
            for gap in (row["difference"], row["difference_with_margin_2"])
        ]
        for row in record["frames"]
    ]
    peaks = [
        [f"{row['posts']:,}", row["side"], row["with_table_MB"], row["peak_MB"], row["peak_MB"] - row["with_table_MB"]]
        for row in record["memory"]
    ]
    return {
        "preprocessing frames": table(
            ["picture", "kB", "plain, images/s per core", "ours, images/s per core", "ratio", "ingest's check, ratio"],
            frames,
        ),
        "preprocessing differences": table(
            ["picture", "as it is: mean / p99 / max", "twice the side kept: mean / p99 / max"], gaps
        ),
        "preprocessing memory": table(["posts", "side", "with the table, MB", "peak, MB", "more, MB"], peaks),
    }


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        sys.stdout.write(json.dumps(memory_row(int(sys.argv[2]), int(sys.argv[3]))))
        return
    torch.set_num_threads(1)  # as in the step's processes; and a second one would wait for work at the others' cost
    encodings = pictures()
    record: dict[str, Any] = {
        "machine": machine("pillow", "numpy") | {"libjpeg-turbo": features.version("libjpeg_turbo")},
        "frames": [frame_row(name, data) for name, data in encodings.items()],
        "step": step_rows(encodings["phone, 1080 x 1440, JPEG quality 85"]),
        "memory": [],
    }
    for count, side in MEMORY:
        command = [sys.executable, "-m", "benchmarks.preprocessing", "memory", str(count), str(side)]
        record["memory"].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    write(RECORD, record)
    put(tables(record))


if __name__ == "__main__":
    main()
