"""Posts as ingest makes them, of a table whose images are absolute paths."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pandas as pd


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).exists() else ""


def ingested(posts: pd.DataFrame, root: Path) -> pd.DataFrame:
    """images: names below `root`; root; and image_sha256, empty where there is no file."""
    return posts.assign(
        images=[[os.path.relpath(path, root) for path in album] for album in posts["images"]],
        root=str(root),
        image_sha256=[[_sha256(path) for path in album] for album in posts["images"]],
    )
