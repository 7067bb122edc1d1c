"""From the name of a backbone to something that can be loaded: the tiny one is built on first use, the one for a user's
own posts by preprocess, beside the shards that are tokens of its vocabulary.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from model.backbone_files import check_config, check_tokenizer, in_folder, read_headers, weight_files
from model.errors import ConfigError
from model.integrity import hashes
from model.settings import OWN, TINY, BackboneSettings
from model.task import TASKS_DIR
from model.tiny import build_tiny
from steps import recipe
from steps.ingest import sample

logger = logging.getLogger(__name__)

#: Single images that the tiny tower is pretrained on, and texts for its tokenizer.
TOWER_IMAGES = 6_000
TOKENIZER_POSTS = 3_000


def _policy() -> str:
    """The sample's policy, as it is written: the tiny tokenizer knows its words."""
    return (TASKS_DIR / "ucc.yaml").read_text(encoding="utf-8")


def fingerprint(backbone: BackboneSettings, *, tower_images: int = TOWER_IMAGES) -> str:
    """Names a backbone's content, the same on every machine: the tiny one is known by its recipe, a local folder by the
    bytes of its files, a hub's by its commit.
    """
    if backbone.name == TINY:
        name = f"tiny-{recipe.key(recipe.TINY_BACKBONE, policy=_policy(), tower_images=tower_images)}"
    elif Path(backbone.name).is_dir():
        name = f"{Path(backbone.name).name}-{recipe.key(0, files=hashes(Path(backbone.name)))}"
    else:
        name = backbone.name
    return "-".join(filter(None, (name, backbone.revision, backbone.quantization)))


def own_folder(shards: Path) -> Path:
    """Where the backbone that was made for the posts of shards lies."""
    return shards / "backbone"


def _is_whole(directory: Path) -> bool:
    find = in_folder(directory)
    try:
        check_config(find, str(directory))
        check_tokenizer(find, str(directory))
        read_headers(weight_files(find, str(directory)), str(directory))
    except ConfigError:
        return False
    return True


def resolve(
    backbone: BackboneSettings, home: Path, shards: Path | None = None, *, tower_images: int = TOWER_IMAGES
) -> BackboneSettings:
    """The settings with a name that `transformers` can load; the tiny backbone is kept under `home`.

    Args:
        shards: of the posts; only beside them is the backbone `own`.

    Raises:
        ConfigError: the backbone `own` is to be trained further, where there are no shards yet.
    """
    if backbone.name == OWN:
        if shards is None:
            raise ConfigError(
                f"backbone.name {OWN}: it is made anew of the posts of each training, so it cannot be trained further: "
                "set retrain.start to scratch, or take another backbone"
            )
        return backbone.model_copy(update={"name": str(own_folder(shards))})
    if backbone.name != TINY:
        return backbone
    directory = home / "backbones" / fingerprint(BackboneSettings(name=TINY), tower_images=tower_images)
    if not _is_whole(directory):
        if directory.exists():
            logger.warning("%s is damaged, or a part of it is gone: it is made again", directory)
            shutil.rmtree(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        texts = sample.sample_texts(TOKENIZER_POSTS, seed=0)
        images, attributes = sample.single_images(tower_images, seed=0)
        build_tiny(directory, [*texts, _policy()], images, attributes)
    return backbone.model_copy(update={"name": str(directory)})
