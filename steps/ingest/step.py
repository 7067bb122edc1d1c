"""Step 1: a manifest and its images become the table of posts."""

from __future__ import annotations

from typing import Annotated

import pandas as pd
from zenml import log_metadata, step
from zenml.logger import get_logger

from model.files import write_whole
from model.task import Task
from steps.caching import depends_on
from steps.ingest import ahead
from steps.ingest.posts import RejectsError, read_manifest
from steps.ingest.rows import csv_text
from steps.ingest.sample import render_sample
from steps.paths import home
from steps.secrets import masked
from steps.settings import SAMPLE, IngestSettings, SampleSettings

logger = get_logger(__name__)


@step(cache_policy=depends_on(__name__))
def ingest(
    posts: str,
    fingerprint: str,  # of the manifest and its images: read by the cache only
    task: Task,
    sample: SampleSettings,
    settings: IngestSettings,
    root: str | None = None,
) -> tuple[Annotated[pd.DataFrame, "posts"], Annotated[pd.DataFrame, "rejects"]]:
    """Read `posts`, the path or URL of a manifest, or `sample`; rejected rows come back with their reasons.

    `root`: of a manifest that retraining wrote: the folder that its images are named from.
    """
    ahead.wait()
    manifest = render_sample(sample, home()) if posts == SAMPLE else posts
    try:
        result = read_manifest(manifest, task, settings, root=root)
    except RejectsError as error:  # a failed step keeps no outputs: the table is kept on disk
        path = home() / "reports" / "rejects.csv"
        write_whole(path, csv_text(error.rejects))
        raise RejectsError(f"{error}\nAll rejected rows: {path}", error.rejects) from error
    log_metadata({**result.counts, "manifest": masked(str(manifest)), "fingerprint": fingerprint})
    logger.info("Ingested %s posts, rejected %s (%s)", len(result.posts), len(result.rejects), manifest)
    return result.posts, result.rejects
