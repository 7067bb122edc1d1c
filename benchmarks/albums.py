"""What a backbone learns from albums of photo-like pictures with people's process labels.

    .venv/bin/python -m benchmarks.albums FOLDER            # writes FOLDER/posts.jsonl, its pictures, FOLDER/task.yaml
    .venv/bin/python -m benchmarks.albums FOLDER --train    # and trains on them: two cores for an hour

`--train` writes `benchmarks/albums.json` and the table of `docs/own-posts.md`: the backbone `own` by its profile,
AgentPS and vanilla with three seeds each, and beside them the default backbone. A training that is finished is kept in
the folder, and not run again.

The pictures have 224 pixels a side, as JPEG, and are rendered: a thing in
perspective, with shading, a shadow and a cast of colour, on a textured ground (noise of many scales, or a piece of the
photographs that scikit-learn and matplotlib bring), with noise, blur and JPEG's own loss. Nothing of them is committed.

What makes it hard: each of the five questions is about one trait among many, one of them needs picture and title
together, and the decision is a rule on the answers, of which 3 % of the posts are labelled otherwise.
"""

from __future__ import annotations

import argparse
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from matplotlib.cbook import get_sample_data
from matplotlib.image import imread
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_sample_images

from benchmarks.record import machine, put, table
from benchmarks.record import write as write_record
from model.backbone import load_tokenizer
from model.data import Shards
from model.own import build_own
from model.schema import POST_ID, SPLIT, TEXT, TITLE, TRAIN
from model.settings import OWN, Variant
from model.task import load_task
from pipelines.config import read_options
from steps.fine_tune.backbone import fingerprint, own_folder, resolve
from steps.ingest.posts import read_manifest
from steps.parallel import ordered_map
from steps.paths import REPOSITORY
from steps.preprocess.shards import write_shards
from steps.settings import load_settings
from steps.study.cells import PEOPLE, cell_of
from steps.study.run import Study
from steps.study.train import Inputs

RECORD, PAGE = REPOSITORY / "benchmarks" / "albums.json", REPOSITORY / "docs" / "own-posts.md"
POSTS = 5_000
RECALLS = ("recall_at_p60", "recall_at_p80")
#: Profile, variants, number of seeds.
CELLS: tuple[tuple[str, tuple[Variant, ...], int], ...] = (
    ("own-posts", ("agentps_answers", "vanilla"), 3),
    ("default", ("agentps_answers",), 1),
)
SIDE = 224
COLOURS = {
    "red": (190, 35, 40), "blue": (40, 70, 180), "green": (40, 130, 60), "yellow": (215, 185, 40),
    "black": (35, 35, 38), "white": (230, 228, 222),
}  # fmt: skip
#: Of each kind of thing the words that a title has for it.
THINGS = {
    "bottle": ("bottle", "flask", "water bottle"),
    "mug": ("mug", "cup", "coffee mug"),
    "bag": ("bag", "tote", "shopper"),
    "clock": ("clock", "wall clock", "timepiece"),
    "lamp": ("lamp", "desk lamp", "reading light"),
    "chair": ("chair", "stool", "seat"),
}
#: Of them those that stand in a home.
HOME = ("chair", "lamp", "clock")
_FILLER = (
    "barely used", "from a home without pets", "pick up in the evening", "see my other ads", "selling because we move",
    "smoke free", "bought last year", "works as it should", "price is firm", "no returns please", "first come",
    "was a present", "fits any room", "easy to clean", "stored in a box", "happy to answer questions",
)  # fmt: skip
_ELSEWHERE = (
    "write to me on telegram", "pay by bank transfer first", "call {n}", "text me at {n}", "send mail to me directly",
    "contact me outside of the site", "whatsapp {n}",
)  # fmt: skip
#: Words of the same kind that ask for nothing.
_HERE = (
    "please write here", "pay when you pick it up", "model number {n}", "serial {n}", "mail order box is there",
    "my contact is the site", "call it a bargain",
)  # fmt: skip
TASK = """\
name: albums
version: 1
questions:
  - id: shows_title
    ask: Do at least half of all the pictures of this album really show the thing that its title names?
    annotate: Count the pictures that show what '{title}' names. ONLY return the number.
    rule: share >= 0.5
  - id: home
    ask: Is the thing in these pictures a piece for the home, like a chair, a lamp or a clock?
    annotate: Is it a chair, a lamp or a clock? ONLY return 1 or 0.
    answer: class
  - id: watermark
    ask: Is there a watermark or any other line of foreign writing across one or more of these pictures?
    annotate: Count the pictures with writing across them. ONLY return the number.
    rule: count >= 1
  - id: damaged
    ask: Does any one of the pictures show a scratch, a crack or other damage on the thing itself?
    annotate: Count the pictures that show damage. ONLY return the number.
    rule: count >= 1
  - id: elsewhere
    ask: Does the seller ask in the text to be paid or contacted somewhere else than on this site?
    annotate: Does '{text}' ask to pay or write elsewhere? ONLY return 1 or 0.
    answer: class
final:
  ask: Should a moderator take this offer down?
  classes: [fine, remove]
  positive: remove
"""


@cache
def _photographs() -> list[Image.Image]:
    arrays = [*load_sample_images().images, imread(get_sample_data("grace_hopper.jpg", asfileobj=False))]
    return [Image.fromarray(np.asarray(array)) for array in arrays]


def _noise(rng: np.random.Generator, steep: float) -> np.ndarray:
    """float (SIDE, SIDE) of mean 0 and deviation 1: noise of all scales, the coarse ones strongest."""
    y_S1, x_1H = scipy.fft.fftfreq(SIDE)[:, None], scipy.fft.rfftfreq(SIDE)[None]
    fall_SH = ((np.hypot(x_1H, y_S1) + 1 / SIDE) ** -steep).astype(np.float32)
    found = scipy.fft.irfft2(scipy.fft.rfft2(rng.standard_normal((SIDE, SIDE), np.float32)) * fall_SH)
    return np.asarray((found - found.mean()) / found.std())


def _ground(rng: np.random.Generator, photographs: list[Image.Image]) -> Image.Image:
    if rng.random() < 0.2:
        photo = photographs[rng.integers(len(photographs))]
        side = int(rng.integers(120, 400))
        left, top = int(rng.integers(photo.width - side)), int(rng.integers(photo.height - side))
        return photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
    base, spread = rng.integers(40, 220, 3), rng.normal(0, 18, 3)
    noise = _noise(rng, rng.uniform(1.2, 2.2))[..., None] * np.float32(rng.uniform(0.2, 1))
    return Image.fromarray(np.clip(base + noise * (spread + 14), 0, 255).astype(np.uint8))


def _outline(draw: ImageDraw.ImageDraw, kind: str, rng: np.random.Generator) -> None:
    """Draws the thing's mask; each has proportions of its own."""
    a, b = rng.uniform(0.8, 1.2, 2)

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        return (112 + (x0 - 112) * a, 112 + (y0 - 112) * b, 112 + (x1 - 112) * a, 112 + (y1 - 112) * b)

    def line(*points: float) -> list[float]:
        return [112 + (v - 112) * (a, b)[k % 2] for k, v in enumerate(points)]

    if kind == "bottle":
        draw.rounded_rectangle(box(86, 90, 138, 190), 12, fill=255)
        draw.polygon(line(88, 98, 103, 66, 121, 66, 136, 98), fill=255)
        draw.rectangle(box(103, 40, 121, 70), fill=255)
    elif kind == "mug":
        draw.rounded_rectangle(box(66, 74, 136, 160), 8, fill=255)
        draw.ellipse(box(118, 88, 170, 144), outline=255, width=11)
    elif kind == "bag":
        draw.polygon(line(64, 98, 160, 98, 174, 186, 50, 186), fill=255)
        draw.arc(box(82, 44, 142, 152), 180, 360, fill=255, width=9)
    elif kind == "clock":
        draw.ellipse(box(54, 54, 170, 170), fill=255)
    elif kind == "lamp":
        draw.polygon(line(88, 44, 136, 44, 166, 104, 58, 104), fill=255)
        draw.rectangle(box(107, 100, 117, 176), fill=255)
        draw.ellipse(box(78, 168, 146, 190), fill=255)
    else:
        draw.rectangle(box(72, 40, 84, 186), fill=255)
        draw.rectangle(box(72, 104, 152, 120), fill=255)
        draw.rectangle(box(140, 104, 152, 186), fill=255)
        draw.rectangle(box(72, 48, 88, 92), fill=255)


def _perspective(rng: np.random.Generator) -> list[float]:
    """PIL's eight numbers, of a random view: scale, turn, place and tilt."""
    turn, scale = rng.normal(0, 0.15), 1 / rng.uniform(0.9, 1.45)
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    x, y = 112 + rng.normal(0, 9, 2)
    tilt = rng.normal(0, 0.0007, 2)
    return [c, -s, 112 - c * x + s * y, s, c, 112 - s * x - c * y, *tilt]


def picture(
    rng: np.random.Generator, photographs: list[Image.Image], kind: str, colour: str, *, watermark: bool, damaged: bool
) -> Image.Image:
    """One photo-like picture of SIDE pixels."""
    ground = _ground(rng, photographs)
    mask, marks = Image.new("L", (SIDE, SIDE)), Image.new("L", (SIDE, SIDE))
    _outline(ImageDraw.Draw(mask), kind, rng)
    if kind == "clock":
        pen = ImageDraw.Draw(marks)
        for length in (34, 48):
            angle = rng.uniform(0, 2 * np.pi)
            pen.line((112, 112, 112 + length * np.cos(angle), 112 + length * np.sin(angle)), fill=170, width=5)
    if damaged:
        at, pen = rng.normal(112, 18, 2), ImageDraw.Draw(marks)
        for _ in range(int(rng.integers(2, 5))):
            to = at + rng.normal(0, 34, 2)
            pen.line((*at, *to), fill=255, width=int(rng.integers(7, 12)))
            at = to
    view = _perspective(rng)
    mask, marks = (m.transform((SIDE, SIDE), Image.Transform.PERSPECTIVE, view, Image.Resampling.BILINEAR)
                   for m in (mask, marks))  # fmt: skip
    shadow = mask.transform((SIDE, SIDE), Image.Transform.AFFINE, (1, 0.2, -30, 0, 1, -8)).reduce(4)
    soft = shadow.filter(ImageFilter.GaussianBlur(9 / 4)).resize((SIDE, SIDE))
    dark = np.asarray(soft, dtype=np.float32)[..., None] / 255
    pixels = np.asarray(ground, dtype=np.float32) * (1 - np.float32(rng.uniform(0.2, 0.6)) * dark)
    light = _noise(rng, 2.2) * 0.12 + 1 + np.linspace(-1, 1, SIDE, dtype=np.float32) * np.float32(rng.normal(0, 0.25))
    tint = (np.array(COLOURS[colour]) + rng.normal(0, 12, 3)).astype(np.float32)
    shade = tint * np.clip(light, 0.4, 1.6)[..., None]
    inside = np.asarray(mask, dtype=np.float32)[..., None] / 255
    mark = np.asarray(marks, dtype=np.float32)[..., None] / 255 * inside
    contrast = 15 if np.mean(COLOURS[colour]) > 110 else 200
    pixels = pixels * (1 - inside) + shade * inside
    pixels = pixels * (1 - 0.75 * mark) + contrast * 0.75 * mark
    if watermark:
        pixels = pixels + 170 * np.asarray(_writing(rng), dtype=np.float32)[..., None] / 255
    cast = (rng.normal(1, 0.05, 3) * rng.uniform(0.75, 1.15)).astype(np.float32)
    pixels = pixels * cast + np.float32(rng.uniform(2, 9)) * rng.standard_normal(pixels.shape, np.float32)
    found = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return found.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.0)))


def _writing(rng: np.random.Generator) -> Image.Image:
    """A line of letters across the picture, as a mask."""
    layer = Image.new("L", (SIDE, SIDE))
    letters = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVW"), int(rng.integers(8, 14))))
    ImageDraw.Draw(layer).text((int(rng.integers(0, 40)), int(rng.integers(20, 180))), letters, 255,
                               font_size=int(rng.integers(40, 56)))  # fmt: skip
    return layer.rotate(float(rng.uniform(-30, 30)), Image.Resampling.BILINEAR)


def _some(rng: np.random.Generator, phrases: tuple[str, ...], count: int) -> list[str]:
    return [str(p).format(n=int(rng.integers(10**6, 10**7))) for p in rng.choice(phrases, count, replace=False)]


def _post(number: int, folder: str) -> dict[str, Any]:
    """Renders one post's pictures; its row of the manifest."""
    rng = np.random.default_rng((0, number))
    photographs = _photographs()
    kind, colour = (str(rng.choice(list(names))) for names in (THINGS, COLOURS))
    other = str(rng.choice([name for name in THINGS if name != kind]))
    says = {name: bool(rng.random() < share) for name, share in (
        ("shows_title", 0.65), ("watermark", 0.3), ("damaged", 0.3), ("elsewhere", 0.3))}  # fmt: skip
    count = int(rng.integers(1, 7))
    shown = (np.arange(count) < np.ceil(count * rng.uniform(0.5, 1))) if says["shows_title"] else np.ones(count, bool)
    marked = {name: rng.permutation(count) < (rng.integers(-(-count // 2), count + 1) if says[name] else 0)
              for name in ("watermark", "damaged")}  # fmt: skip
    names = []
    for k, is_shown in enumerate(rng.permutation(shown)):
        traits = {name: bool(marked[name][k]) for name in marked}
        image = picture(rng, photographs, kind if is_shown else other, colour, **traits)
        names.append(f"img/{number:05d}-{k}.jpg")
        image.save(Path(folder) / names[-1], quality=int(rng.integers(60, 92)))
    words = _some(rng, _FILLER, int(rng.integers(1, 5)))
    words += _some(rng, _ELSEWHERE, 1) if says["elsewhere"] else _some(rng, _HERE, int(rng.integers(0, 2)))
    says["home"] = kind in HOME
    flags = says["home"] + says["watermark"] + says["damaged"]
    remove = (says["elsewhere"] and flags >= 1) or (not says["shows_title"] and flags >= 2) or flags == 3
    rng.shuffle(words)
    named = str(rng.choice(THINGS[kind if says["shows_title"] else other]))
    return {
        "post_id": f"album-{number:05d}",
        "title": " ".join([colour, named, *_some(rng, _FILLER, 1)]),
        "text": ", ".join(words),
        "images": names,
        "label": int(remove != (rng.random() < 0.03)),
        **{name: int(value) for name, value in says.items()},
    }


def write(folder: Path, posts: int) -> None:
    """The manifest with its pictures, and the task beside it."""
    (folder / "img").mkdir(parents=True, exist_ok=True)
    rows = ordered_map(partial(_post, folder=str(folder)), list(range(posts)), chunk=32)
    lines = [json.dumps(row) for row in rows]
    (folder / "posts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "task.yaml").write_text(TASK, encoding="utf-8")


def inputs_of(folder: Path, profile: str) -> Inputs:
    """The posts as shards, with the backbone of the profile; all train for as many epochs as `own-posts`."""
    task = load_task(folder / "task.yaml")
    settings, own = (
        load_settings(read_options(REPOSITORY / "configs" / f"{name}.yaml")) for name in (profile, "own-posts")
    )
    posts = read_manifest(folder / "posts.jsonl", task, settings.ingest).posts
    root = folder / profile
    if not root.exists():
        if settings.backbone.name == OWN:
            seen = posts[posts[SPLIT] == TRAIN]
            build_own(own_folder(root), [*seen[TITLE], *seen[TEXT]], task, settings.preprocess.image_size)
        tokenizer = load_tokenizer(resolve(settings.backbone, folder, root))
        write_shards(root, posts, task, settings.preprocess, tokenizer, settings.ingest.limits)
    train = settings.fine_tune.model_copy(update={"epochs": own.fine_tune.epochs})
    people = posts.loc[posts[SPLIT] == TRAIN, [POST_ID, *task.question_ids]]
    people.to_parquet(folder / "labels.parquet", index=False)
    backbone = resolve(settings.backbone, folder, root)
    return Inputs(
        shards=root, labels=folder / "labels.parquet", task=task, train=train, backbone=backbone,
        backbone_id=fingerprint(backbone), evaluate=settings.evaluate, gold_share=1.0, work=folder / "work",
    )  # fmt: skip


def train(folder: Path) -> dict[str, Any]:
    """Every cell of the record: two at a time, each on one core."""
    rows = []
    for profile, variants, seeds in CELLS:
        inputs = inputs_of(folder, profile)
        (folder / "work").mkdir(exist_ok=True)
        runner, posts = Study(inputs, folder / f"{profile}.jsonl"), Shards(inputs.shards).posts
        count = int((posts[SPLIT] == TRAIN).sum())
        cells = [
            cell_of(inputs.task, variant, count, PEOPLE).beside(seed) for seed in range(seeds) for variant in variants
        ]
        runner.run(cells, workers=2)
        for cell in cells:
            record = runner.record(cell)
            assert record is not None
            found = {name: record.metrics[name] for name in ("average_precision", *RECALLS)}
            rows.append({"profile": profile, "variant": cell.variant, "seed": cell.seed, **found})
    return {"machine": machine("torch", "transformers"), "train_posts": count, "rows": rows}


def tables(record: dict[str, Any]) -> dict[str, str]:
    by_cell: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        by_cell.setdefault((row["profile"], row["variant"]), []).append(row)
    lines = [
        [f"`{profile}`, {variant}", len(rows)]
        + [" ".join(f"{row['average_precision']:.3f}" for row in rows)]
        + [" ".join(f"{100 * row[name]:.0f}" for row in rows) for name in RECALLS]
        for (profile, variant), rows in by_cell.items()
    ]
    return {"albums": table(["profile, variant", "seeds", "average precision", "R@P60, %", "R@P80, %"], lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    if not (options.folder / "task.yaml").exists():
        write(options.folder, POSTS)
    if options.train:
        record = train(options.folder)
        write_record(RECORD, record)
        put(tables(record), PAGE)


if __name__ == "__main__":
    main()
