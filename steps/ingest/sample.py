"""The embedded sample: album posts rendered from a seed, with a hidden truth that only the simulated annotator reads.

Each image shows one subject, drawn either as a snapshot (user generated) or as a poster
(professionally generated), with a watermark, a time stamp or nothing laid over it. Title and text
either tell, with feeling, of a subject (original) or only name one (not original). From the true
counts the rule of `configs/tasks/ucc.yaml` makes the five process labels, and

    unoriginal = (not ugc and not relevant) or (watermark and not (ugc and relevant and theme))

with relevant = title_relevant or text_relevant makes the final label, `LABEL_NOISE` of which are
then flipped, as people's labels are not perfect either. Whether a text is relevant can only be
known by comparing its words with the pictures: no single image and no text alone tells.

Every post depends on (seed, difficulty, split, index) alone: a larger sample begins with the smaller one.

With `clips`, some albums come as a video without loss. The network reads the same of it, pixel for pixel, if it reads
`CLIP_PICTURES` frames and albums are repeated to so many, as by default.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from model.files import disk_told, to_disk
from model.schema import (
    CREATED_AT,
    IMAGES,
    LABEL,
    POST_ID,
    SPLIT,
    SPLITS,
    TEXT,
    TITLE,
    TRAIN,
    VIDEO,
    VIDEO_SHA256,
)
from model.task import TASKS_DIR, Task, load_task
from model.video import FRAMES
from steps.lifetime import end_with_parent
from steps.locks import locked
from steps.settings import Difficulty, SampleSettings

IMAGE_SIZE = 32
MAX_IMAGES = 8
#: Pictures that a clip shows, for half a second each: an album's, again and again. Each is in two of its frames, so
#: that whoever takes this many of those, at equal distances, has the album repeated to so many.
CLIP_PICTURES = FRAMES // 2
#: Share of the final labels that people got wrong.
LABEL_NOISE = 0.05
_SCALE = 3  # drawn larger, then averaged down: smooth edges at 32 pixels
_PEN = 5  # no less than half a line's width and what bilinear interpolation reads beside a pixel
_POSTS_PER_FOLDER = 500
_FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)

Draw = ImageDraw.ImageDraw
Box = tuple[float, float, float]  # centre x, centre y, half size

STYLES = ("poster", "snapshot")
OVERLAYS = ("none", "watermark", "timestamp")


def _sun(d: Draw, box: Box, ink: str) -> None:
    x, y, r = box
    d.ellipse((x - 0.55 * r, y - 0.55 * r, x + 0.55 * r, y + 0.55 * r), fill=ink)
    for k in range(8):
        a = k * math.pi / 4
        d.line((x + 0.7 * r * math.cos(a), y + 0.7 * r * math.sin(a), x + r * math.cos(a), y + r * math.sin(a)), ink, 5)


def _tree(d: Draw, box: Box, ink: str) -> None:
    x, y, r = box
    d.polygon(((x, y - r), (x + 0.8 * r, y + 0.4 * r), (x - 0.8 * r, y + 0.4 * r)), fill=ink)
    d.rectangle((x - 0.18 * r, y + 0.4 * r, x + 0.18 * r, y + r), fill=ink)


def _house(d: Draw, box: Box, ink: str) -> None:
    x, y, r = box
    d.polygon(((x, y - r), (x + r, y - 0.1 * r), (x - r, y - 0.1 * r)), fill=ink)
    d.rectangle((x - 0.7 * r, y, x + 0.7 * r, y + 0.9 * r), outline=ink, width=7)


def _fish(d: Draw, box: Box, ink: str) -> None:
    x, y, r = box
    d.ellipse((x - r, y - 0.5 * r, x + 0.5 * r, y + 0.5 * r), fill=ink)
    d.polygon(((x + 0.3 * r, y), (x + r, y - 0.6 * r), (x + r, y + 0.6 * r)), fill=ink)


def _ring(d: Draw, box: Box, ink: str) -> None:
    x, y, r = box
    d.ellipse((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), outline=ink, width=8)


def _boat(d: Draw, box: Box, ink: str) -> None:
    x, y, r = box
    d.polygon(
        ((x - r, y + 0.3 * r), (x + r, y + 0.3 * r), (x + 0.6 * r, y + 0.9 * r), (x - 0.6 * r, y + 0.9 * r)), fill=ink
    )
    d.line((x, y + 0.3 * r, x, y - r), ink, 5)


@dataclass(frozen=True)
class Subject:
    """
    reach: how far from the centre of its box it is drawn, in half sizes, the width of lines aside.
    """

    word: str
    draw: Callable[[Draw, Box, str], None]
    reach: float


SUBJECTS = (
    Subject("sun", _sun, 1.0),
    Subject("tree", _tree, 1.02),
    Subject("house", _house, 1.15),
    Subject("fish", _fish, 1.17),
    Subject("ring", _ring, 0.91),
    Subject("boat", _boat, 1.09),
)

_ORIGINAL = (
    "I think the {w} made my whole day",
    "so happy with this {w} !!",
    "honestly the best {w} I have seen",
    "this {w} tells the story of my summer",
    "we laughed so much about the {w}",
    "feeling sad to leave the {w} behind",
    "my little brother loves the {w} too",
    "cannot believe how good the {w} was",
)
_PLAIN = (
    "{w}",
    "{w} wallpaper",
    "the {w} collection",
    "{w} hd 4k",
    "best of {w} compilation",
    "{w} part 2",
    "song lyrics about {w}",
    "{w} daily",
)
# Enough of them that two posts hardly ever say the same: a text in train and test would be a leak.
_TAGS = tuple("#" + tag for tag in (
    "fyp", "album", "daily", "viral", "mood", "pics", "weekend", "travel", "nature", "city", "vibes", "life", "art",
    "photo", "trend", "love", "fun", "summer", "spring", "night", "morning", "memories", "friends", "today",
))  # fmt: skip
_INKS = ("#7a1f1f", "#1f3f7a", "#1f6b35", "#5a2a70", "#7a5a10", "#222222", "#0f6068", "#8a2f60")
_PAPERS = ("#f4e3c1", "#cfe3f5", "#d9f0d3", "#f5d6df", "#ece4f7", "#fff7c9", "#dfe6e6", "#f7dcc4")


def _turned(image: Image.Image, angle: float, centre: tuple[float, float], radius: float, paper: str) -> Image.Image:
    """As `image.rotate(angle, BILINEAR, fillcolor=paper)` for an image that is paper outside a circle: 2/3 of its time.

    Args:
        angle: degrees, counterclockwise.
        centre, radius: of the circle, in pixels.
    """
    side, middle = image.width, image.width / 2
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    a, b = round(cos, 15), round(-sin, 15)  # from a pixel of the result to the place where it is read, as in `rotate`
    dx, dy = centre[0] - middle, centre[1] - middle
    x, y = middle + cos * dx + sin * dy, middle - sin * dx + cos * dy
    left, top = max(0, math.floor(x - radius)), max(0, math.floor(y - radius))
    size = min(side, math.ceil(x + radius)) - left, min(side, math.ceil(y + radius)) - top
    x, y = left - middle, top - middle
    matrix = (a, b, a * x + b * y + middle, -b, a, a * y - b * x + middle)
    turned = Image.new("RGB", image.size, paper)
    part = image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=paper)
    turned.paste(part, (left, top))
    return turned


def draw_image(rng: np.random.Generator, subject: int, style: int, overlay: int) -> Image.Image:
    """One RGB image of IMAGE_SIZE pixels: SUBJECTS[subject], STYLES[style], OVERLAYS[overlay]."""
    side = IMAGE_SIZE * _SCALE
    paper, ink = _PAPERS[rng.integers(len(_PAPERS))], _INKS[rng.integers(len(_INKS))]
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    x, y = (rng.uniform(0.42, 0.58, 2) * side).tolist()
    r = rng.uniform(0.26, 0.36) * side
    SUBJECTS[subject].draw(draw, (x, y, r), ink)
    if STYLES[style] == "snapshot":
        angle = rng.uniform(8, 22) * (-1, 1)[rng.integers(2)]
        image = _turned(image, angle, (x, y), SUBJECTS[subject].reach * r + _PEN, paper)
    else:  # a poster has the bars of a film still
        bar = round(side * rng.uniform(0.07, 0.11))
        draw.rectangle((0, 0, side, bar), "#101010")
        draw.rectangle((0, side - bar, side, side), "#101010")
    draw = ImageDraw.Draw(image)
    if OVERLAYS[overlay] != "none":
        ink = "#ffffff" if OVERLAYS[overlay] == "watermark" else "#ff8c00"
        left = (0.08, 0.56)[rng.integers(2)] * side
        top = (0.14, 0.76)[rng.integers(2)] * side
        draw.rectangle((left - 3, top - 3, left + 0.36 * side, top + 0.11 * side), "#404040")
        if OVERLAYS[overlay] == "watermark":  # a round @, then a name
            draw.ellipse((left, top, left + 8, top + 8), outline=ink, width=3)
            draw.line((left + 12, top + 4, left + 0.33 * side, top + 4), ink, 5)
        else:  # digits
            for k in range(6):
                draw.line((left + 1 + 5.5 * k, top, left + 1 + 5.5 * k, top + 8), ink, 2)
    image = image.reduce(_SCALE)
    if STYLES[style] == "snapshot":  # the grain of a phone in a dim room
        grain = rng.normal(0, 14, (IMAGE_SIZE, IMAGE_SIZE, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    return image


@dataclass(frozen=True)
class SamplePost:
    """A post before it is written: its truth, and what is drawn from it."""

    title: str
    text: str
    subjects: tuple[int, ...]
    styles: tuple[int, ...]
    overlays: tuple[int, ...]
    #: The count that a perfect annotator would return, by question id.
    counts: dict[str, int]


#: Of title and of text: original and of the leading subject, original of another subject, plain.
_KINDS = {"easy": (0.74, 0.0, 0.26), "standard": (0.5, 0.24, 0.26), "hard": (0.4, 0.4, 0.2)}


def _wording(
    rng: np.random.Generator, subject: int, subjects: np.ndarray, tags: int, difficulty: Difficulty
) -> tuple[str, int]:
    """A title or text and the number of images that it is relevant to (0 where it is not original)."""
    kind = rng.choice(3, p=_KINDS[difficulty])
    others = [s for s in range(len(SUBJECTS)) if s != subject]
    if difficulty == "hard":  # something that is shown, too, wherever there is another thing
        others = [s for s in others if s in subjects] or others
    told = subject if kind != 1 else int(rng.choice(others))
    templates = _PLAIN if kind == 2 else _ORIGINAL
    sentence = templates[rng.integers(len(templates))].format(w=SUBJECTS[told].word)
    sentence = " ".join((sentence, *(_TAGS[k] for k in rng.choice(len(_TAGS), tags, replace=False))))
    return sentence, 0 if kind == 2 else int((subjects == told).sum())


def compose_post(rng: np.random.Generator, difficulty: Difficulty = "standard") -> SamplePost:
    n = min(1 + int(rng.geometric(0.3)), MAX_IMAGES) if rng.random() < 0.9 else 1
    subject = int(rng.integers(len(SUBJECTS)))
    one_theme = rng.random() < 0.7
    others = rng.integers(len(SUBJECTS), size=n)
    subjects = np.where(rng.random(n) < (0.97 if one_theme else 0.4), subject, others)
    subjects[0] = subject
    styles = (rng.random(n) < (0.92 if rng.random() < 0.6 else 0.08)).astype(int)
    marked = rng.random(n) < rng.uniform(0.2, 1.0) if rng.random() < 0.33 else np.zeros(n, bool)
    overlays = np.where(marked, 1, np.where(rng.random(n) < 0.2, 2, 0))
    title, title_count = _wording(rng, subject, subjects, 0, difficulty)
    text, text_count = _wording(rng, subject, subjects, int(rng.integers(2, 4)), difficulty)
    counts = {
        "watermark": int(marked.sum()),
        "ugc": int(styles.sum()),
        "title_relevant": title_count,
        "text_relevant": text_count,
        "theme_relevant": int(np.bincount(subjects).max()),
    }
    return SamplePost(
        title=title,
        text=text,
        subjects=tuple(map(int, subjects)),
        styles=tuple(map(int, styles)),
        overlays=tuple(map(int, overlays)),
        counts=counts,
    )


def final_label(answers: dict[str, int]) -> int:
    """The rule of this sample's policy, from the five true process labels."""
    relevant = answers["title_relevant"] or answers["text_relevant"]
    own = answers["ugc"] and relevant and answers["theme_relevant"]
    return int((not answers["ugc"] and not relevant) or (answers["watermark"] and not own))


def _draw_album(post: SamplePost, rng: np.random.Generator) -> list[bytes]:
    """A post's images as JPEG files."""
    files = []
    for parts in zip(post.subjects, post.styles, post.overlays, strict=True):
        buffer = BytesIO()
        draw_image(rng, *parts).save(buffer, "JPEG", quality=92, subsampling=0)
        files.append(buffer.getvalue())
    return files


def write_album(root: Path, stem: str, post: SamplePost, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Draw a post's images, `root/STEM-0.jpg` and so on. Returns their names below `root`, and their sha256."""
    files = _draw_album(post, rng)
    return _write_files(root, stem, files), [_sha256(file) for file in files]


def _sha256(file: bytes) -> str:
    return hashlib.sha256(file).hexdigest()


def _write_files(root: Path, stem: str, files: list[bytes]) -> list[str]:
    names = [f"{stem}-{k}.jpg" for k in range(len(files))]
    for name, file in zip(names, files, strict=True):
        (root / name).write_bytes(file)
    return names


def _clip(files: list[bytes]) -> bytes:
    """A video of an album: an MP4 with H.264 in RGB without loss."""
    import av

    pictures = [Image.open(BytesIO(file)) for file in files]
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264rgb", rate=4, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = IMAGE_SIZE, IMAGE_SIZE, "rgb24"
        stream.codec_context.thread_count = 1  # the file tells it: else not the same bytes on every machine
        for number in range(FRAMES):
            picture = pictures[number * CLIP_PICTURES // FRAMES % len(pictures)]
            output.mux(stream.encode(av.VideoFrame.from_image(picture)))
        output.mux(stream.encode())
    return buffer.getvalue()


def _write_posts(
    root: Path, task: Task, settings: SampleSettings, split: str, start: int, stop: int
) -> tuple[list, list]:
    rows, truths = [], []
    split_index = SPLITS.index(split)
    total = settings.train + settings.val + settings.test
    offset = sum((settings.train, settings.val, settings.test)[:split_index])
    folder = f"images/{split}-{start // _POSTS_PER_FOLDER:03d}"
    (root / folder).mkdir(parents=True, exist_ok=True)
    with_clip = -1  # the last of the posts' groups, of `clips` each, that has its clip
    for index in range(start, stop):
        rng = np.random.default_rng((settings.seed, split_index, index))
        post = compose_post(rng, settings.difficulty)
        files = _draw_album(post, rng)
        shown: dict[str, Any] = {IMAGES: []}
        truth: dict[str, Any] = {"images_sha256": [_sha256(file) for file in files], "n_images": len(files)}
        # each image is in as many frames: a share of the images is the same share of the frames
        if settings.clips and index // settings.clips != with_clip and FRAMES % len(files) == 0:
            with_clip, clip = index // settings.clips, _clip(files)
            shown[VIDEO], truth[VIDEO_SHA256] = f"{folder}/{index:06d}.mp4", _sha256(clip)
            (root / shown[VIDEO]).write_bytes(clip)
        else:
            shown[IMAGES] = _write_files(root, f"{folder}/{index:06d}", files)
        answers = {q.id: q.class_of(post.counts[q.id], len(files)) for q in task.questions}
        label = final_label(answers) ^ int(rng.random() < LABEL_NOISE)
        gold = split != TRAIN or rng.random() < settings.gold_share
        post_id = f"{split}-{index:06d}"
        rows.append(
            {
                POST_ID: post_id,
                # 90 days, train before val before test
                CREATED_AT: (_FIRST_DAY + timedelta(days=90 * (offset + index) / total)).isoformat(timespec="seconds"),
                TITLE: post.title,
                TEXT: post.text,
                **shown,
                LABEL: label,
                **{question: answer if gold else None for question, answer in answers.items()},
                SPLIT: split,
            }
        )
        truths.append({POST_ID: post_id, **truth, **post.counts})
    return rows, truths


def _chunks(settings: SampleSettings) -> Iterator[tuple[str, int, int]]:
    for split, count in zip(SPLITS, (settings.train, settings.val, settings.test), strict=True):
        for start in range(0, count, _POSTS_PER_FOLDER):
            yield split, start, min(start + _POSTS_PER_FOLDER, count)


def sample_fingerprint(settings: SampleSettings) -> str:
    """Changes with the settings, with this module and with the task whose rules make the labels."""
    digest = hashlib.sha256(settings.model_dump_json().encode())
    digest.update(Path(__file__).read_bytes())
    digest.update((TASKS_DIR / "ucc.yaml").read_bytes())
    return digest.hexdigest()[:16]


def split_fingerprint(manifest: Path, split: str) -> str:
    """Names the content of a rendered split: texts, pictures, labels. Times are left out: they move with the sizes.
    Which posts are clips is left out too: they show the same pictures.

    The standard sample's test split is public: a result on it counts when this is the value of the dataset card.
    """
    posts = pd.read_json(manifest, lines=True)
    truth = pd.read_parquet(manifest.with_name("truth.parquet"))
    posts["pictures"] = truth["images_sha256"].map(list)
    # whole numbers, also where another split lacks some of them
    rows = posts[posts[SPLIT] == split].drop(columns=[CREATED_AT, IMAGES, VIDEO], errors="ignore").convert_dtypes()
    return hashlib.sha256(rows.to_json(orient="records").encode()).hexdigest()[:16]


def render_sample(settings: SampleSettings, home: Path) -> Path:
    """Render the sample once, under `home`; return its manifest `posts.jsonl` (beside it: `truth.parquet`).

    An interrupted rendering leaves nothing behind that a later call would take for a whole one.
    """
    root = home / "sample" / sample_fingerprint(settings)
    if not (root / "posts.jsonl").exists():
        # two that rendered it would remove each other's
        lock = home / "locks" / f"sample-{root.name}.lock"
        with locked(lock, f"the sample {root}, which is being rendered"):
            if not (root / "posts.jsonl").exists():
                work = root.with_name(f"{root.name}.{os.getpid()}.part")
                shutil.rmtree(work, ignore_errors=True)
                try:
                    with disk_told(root):
                        _render(work, settings)
                        to_disk(work)
                    shutil.rmtree(root, ignore_errors=True)
                    work.rename(root)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    return root / "posts.jsonl"


def _render(folder: Path, settings: SampleSettings) -> None:
    folder.mkdir(parents=True)
    task = load_task("ucc")
    chunks = list(_chunks(settings))
    with ProcessPoolExecutor(initializer=end_with_parent) as pool:
        parts = list(pool.map(_write_posts, *zip(*((folder, task, settings, *chunk) for chunk in chunks), strict=True)))
    with (folder / "posts.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for rows, _ in parts for row in rows)
    pd.DataFrame([truth for _, truths in parts for truth in truths]).to_parquet(folder / "truth.parquet", index=False)


def single_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Single images with their attributes, to pretrain a tower on: no post, no text, no label of a task.

    Returns:
        (images, attributes): uint8 (count, IMAGE_SIZE, IMAGE_SIZE, 3), and int64 (count, 3) with the
        index of subject, style and overlay.
    """
    rng = np.random.default_rng((seed, 0x51))
    attributes = np.stack([rng.integers(len(names), size=count) for names in (SUBJECTS, STYLES, OVERLAYS)], axis=1)
    images = np.stack([np.asarray(draw_image(rng, *map(int, row))) for row in attributes])
    return images, attributes


def sample_texts(count: int, seed: int) -> list[str]:
    """Titles and texts of the sample's kind, to train the tiny tokenizer on."""
    posts = (compose_post(np.random.default_rng((seed, 0x7E, index))) for index in range(count))
    return [wording for post in posts for wording in (post.title, post.text)]
