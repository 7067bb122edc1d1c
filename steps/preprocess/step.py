"""Step 4: frames and tokens as shards (paper 3.1.2)."""

from __future__ import annotations

from typing import Annotated

import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger

from materializers.directory import DirectoryMaterializer, ShardDirectory
from model.schema import SPLIT, TEXT, TITLE, TRAIN
from model.settings import OWN, BackboneSettings, SequenceSettings
from model.task import Task
from steps.caching import depends_on
from steps.paths import home
from steps.settings import IngestSettings

logger = get_logger(__name__)


@step(output_materializers=DirectoryMaterializer, cache_policy=depends_on(__name__))
def preprocess(
    posts: pd.DataFrame, task: Task, backbone: BackboneSettings, sequence: SequenceSettings, ingest: IngestSettings
) -> Annotated[ShardDirectory, "shards"]:
    """Every distinct image at the tower's size, every text as tokens."""
    from model.backbone import load_config, load_tokenizer
    from model.checkpoint import check_fits
    from model.own import build_own
    from steps.fine_tune.backbone import own_folder, resolve
    from steps.preprocess.shards import scratch_folder, write_shards
    from steps.preprocess.vocabulary import unread

    root = scratch_folder(home() / "work")
    if backbone.name == OWN:
        train = posts[posts[SPLIT] == TRAIN]
        build_own(own_folder(root), [*train[TITLE].fillna(""), *train[TEXT].fillna("")], task, sequence.image_size)
    resolved = resolve(backbone, home(), root)
    config = load_config(resolved)
    tokenizer = load_tokenizer(resolved)
    check_fits(config, tokenizer, task, sequence)  # hours before the training would say so
    if (line := unread(posts, tokenizer)) is not None:
        logger.warning(line)
    limits = ingest.limits
    n_images = write_shards(root, posts, task, sequence, tokenizer, limits)
    log_metadata({"posts": len(posts), "distinct_images": n_images})
    logger.info("Wrote %s posts and %s distinct images", len(posts), n_images)
    return ShardDirectory(root)
