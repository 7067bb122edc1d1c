"""Draw the posts of this example: 200 short clips of the embedded sample's kind, with the labels of its policy.

    python examples/clips/make_posts.py FOLDER

writes FOLDER/posts.jsonl and FOLDER/clips/. A clip shows the pictures that an album of the sample would have, one after
the other for half a second each. Your own manifest has the same columns; only `post_id` and `video` are required.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from model.schema import LABEL, POST_ID, SPLIT, TEST, TEXT, TITLE, TRAIN, VAL, VIDEO
from model.task import load_task
from steps.ingest.sample import compose_post, draw_image, final_label

COUNTS = {TRAIN: 120, VAL: 40, TEST: 40}
SIDE, PICTURES_PER_SECOND = 96, 8


def encode(path: Path, images: list[Image.Image]) -> None:
    """An MP4 with H.264, as phones make them."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=PICTURES_PER_SECOND, options={"crf": "12", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        for image in images:
            larger = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            for _ in range(PICTURES_PER_SECOND // 2):
                file.mux(stream.encode(av.VideoFrame.from_image(larger)))
        file.mux(stream.encode())


def make_posts(folder: Path, counts: dict[str, int] = COUNTS) -> Path:
    """Returns the manifest."""
    task = load_task("ucc")
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (split, count) in enumerate(counts.items()):
        for index in range(count):
            rng = np.random.default_rng((7, number, index))
            post = compose_post(rng)
            shown = zip(post.subjects, post.styles, post.overlays, strict=True)
            name = f"clips/{split}-{index:03d}.mp4"
            encode(folder / name, [draw_image(rng, *parts) for parts in shown])
            answers = {q.id: q.class_of(post.counts[q.id], len(post.subjects)) for q in task.questions}
            row = {POST_ID: f"{split}-{index:03d}", TITLE: post.title, TEXT: post.text, VIDEO: name, SPLIT: split}
            rows.append(row | {LABEL: final_label(answers)} | answers)
    manifest = folder / "posts.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return manifest


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/clips/make_posts.py FOLDER")
    sys.stdout.write(f"{make_posts(Path(sys.argv[1]))}\n")
