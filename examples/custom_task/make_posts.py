"""Draw the posts of this example: 160 listings of second-hand things, each with its pictures and people's labels.

    python examples/custom_task/make_posts.py FOLDER

writes FOLDER/posts.jsonl and FOLDER/images/, the same bytes each time. Your own manifest has the same
columns; only `post_id` and `images` are required.
"""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image, ImageDraw

N_POSTS = 160
SIDE = 64  # pixels
THINGS = ("chair", "lamp", "book")
BACKDROPS = ("studio", "room", "outdoors")
TITLES = (
    "Oak {}, hardly used",
    "Nice {} from our attic",
    "{} looking for a new home",
    "My old {}",
    "Cheap {}, pick up",
)


def draw(rng: random.Random, thing: str, backdrop: str, tagged: bool) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), {"studio": "#f2f2f2", "room": "#d8c3a5", "outdoors": "#9fd3f5"}[backdrop])
    d = ImageDraw.Draw(image)
    if backdrop != "studio":
        floor = rng.randint(40, 48)
        d.rectangle((0, floor, SIDE, SIDE), "#7a5230" if backdrop == "room" else "#3f8f3f")
    for _ in range(12):  # no two pictures are the same
        d.point((rng.randrange(SIDE), rng.randrange(SIDE)), "#606060")
    x, y = rng.randint(14, 24), rng.randint(12, 18)
    ink = rng.choice(("#202020", "#5a1f1f", "#1f2f5a"))
    if thing == "chair":
        d.rectangle((x, y, x + 5, y + 36), ink)
        d.rectangle((x, y + 18, x + 24, y + 23), ink)
        d.rectangle((x + 20, y + 18, x + 24, y + 36), ink)
    elif thing == "lamp":
        d.polygon(((x + 12, y), (x + 26, y + 16), (x - 2, y + 16)), ink)
        d.rectangle((x + 10, y + 16, x + 14, y + 36), ink)
    else:
        d.rectangle((x, y + 8, x + 28, y + 32), ink)
        d.line((x + 14, y + 8, x + 14, y + 32), "#ffffff", 2)
    if tagged:
        d.rectangle((44, 4, 62, 14), "#ffd400")
        d.line((47, 9, 59, 9), "#000000", 2)
    return image


def make_posts(folder: Path) -> Path:
    """Returns the manifest. Picture k of a post is a PNG where k is odd, else a JPEG."""
    rng = random.Random(20)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(N_POSTS):
        named, backdrop = rng.choice(THINGS), rng.choice(BACKDROPS)
        shown = named if rng.random() < 0.7 else rng.choice([thing for thing in THINGS if thing != named])
        tags = [rng.random() < 0.35 for _ in range(rng.randint(1, 4))]
        names = [f"images/{number:03d}-{k}.{'png' if k % 2 else 'jpg'}" for k in range(len(tags))]
        for name, tagged in zip(names, tags, strict=True):
            draw(rng, shown, backdrop, tagged).save(folder / name)
        post = {
            "post_id": f"listing-{number:03d}",
            "created_at": (datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=number)).isoformat(),
            "title": rng.choice(TITLES).format(named),
            "text": f"Listing {number}. {rng.choice(('Cash only.', 'Can be sent.', 'Price on request.'))} #secondhand",
            "images": names,
            # people's process labels: a class by its name or its index
            "backdrop": backdrop,
            "price_tag": int(any(tags)),
            "shows_title": int(shown == named),
            # people's decision
            "label": int(shown != named or (backdrop == "studio" and not any(tags))),
        }
        lines.append(json.dumps(post) + "\n")
    manifest = folder / "posts.jsonl"
    manifest.write_text("".join(lines), encoding="utf-8")
    return manifest


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/custom_task/make_posts.py FOLDER")
    sys.stdout.write(f"{make_posts(Path(sys.argv[1]))}\n")
