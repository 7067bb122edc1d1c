"""From the name of a backbone to something that can be loaded: the tiny one is built on first use."""

from __future__ import annotations

import hashlib
from pathlib import Path

import model.tiny
from model.settings import TINY, BackboneSettings
from model.task import TASKS_DIR
from model.tiny import build_tiny
from steps.caching import code_digest
from steps.ingest import sample

#: Single images that the tiny tower is pretrained on, and texts for its tokenizer.
TOWER_IMAGES = 6_000
TOKENIZER_POSTS = 3_000


def resolve(backbone: BackboneSettings, home: Path, *, tower_images: int = TOWER_IMAGES) -> BackboneSettings:
    """The settings with a name that `transformers` can load.

    The tiny backbone is kept under `home`, by a hash of the code that makes it.
    """
    if backbone.name != TINY:
        return backbone
    code = code_digest([Path(model.tiny.__file__), Path(sample.__file__)])
    wordings = [path.read_text(encoding="utf-8") for path in sorted(TASKS_DIR.glob("*.yaml"))]
    digest = hashlib.sha256("\0".join([code, *wordings, str(tower_images)]).encode()).hexdigest()[:16]
    directory = home / "backbones" / f"tiny-{digest}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        texts = sample.sample_texts(TOKENIZER_POSTS, seed=0)
        images, attributes = sample.single_images(tower_images, seed=0)
        build_tiny(directory, [*texts, *wordings], images, attributes)
    return backbone.model_copy(update={"name": str(directory)})
