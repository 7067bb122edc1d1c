"""Scores new posts with a registered version and keeps what it said: the table that `steps.retrain.live` reads."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from model.errors import ConfigError
from model.schema import IMAGE_SHA256, IMAGES, POST_ID, ROOT, TEXT, TITLE
from model.scorer import Scorer
from steps.retrain.live import DECISION, MODEL_VERSION, SCORED_AT, read_scores

#: Posts between two writes.
_CHUNK = 256


@dataclass(frozen=True)
class Scored:
    """How many posts were scored now, how many of these are flagged, and how many this version had scored before."""

    scored: int
    flagged: int
    before: int


def score_new(scorer: Scorer, version: str, posts: pd.DataFrame, table: Path, precision: int, now: datetime) -> Scored:
    """Append a line for each post that `version` has not scored yet: `score`, `decision` (flagged at `precision`), the
    answers that led there, `model_version`, `scored_at`. Killed, it goes on with the posts that are left.

    Args:
        posts: as ingest makes them.
        table: JSON Lines; made where it does not exist.
        precision: in percent, one that the version has a threshold for.

    Raises:
        ConfigError: the table is no JSON Lines file, or the version has no such threshold.
        ManifestError: the table holds rows that are no scores.
        ImageError: an image cannot be used.
    """
    if table.suffix.lower() not in (".jsonl", ".json"):
        raise ConfigError(f"scores {table}: rows are appended to JSON Lines only: name a file that ends in .jsonl")
    done: set[str] = set()
    if table.exists() and table.stat().st_size:
        known = read_scores(table)
        done = set(known.loc[known[MODEL_VERSION] == version, POST_ID])
    todo = posts[~posts[POST_ID].isin(done)]
    decision, flagged = f"decision_p{precision}", 0
    for start in range(0, len(todo), _CHUNK):
        part = todo.iloc[start : start + _CHUNK]
        found = scorer.score(part[[TITLE, TEXT, IMAGES, ROOT, IMAGE_SHA256]])
        columns = [str(name) for name in found]
        if decision not in columns:
            known_points = ", ".join(name for name in columns if name.startswith("decision_"))
            raise ConfigError(
                f"version {version} has no threshold for {precision} % precision (it has {known_points}): set "
                "retrain.live_precision, or evaluate.precisions of the training"
            )
        lines = found[["score", *(name for name in columns if name.startswith("answer_"))]].copy()
        lines.insert(0, POST_ID, part[POST_ID])
        lines[DECISION], lines[MODEL_VERSION], lines[SCORED_AT] = found[decision].astype(bool), version, now.isoformat()
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("ab", buffering=0) as file:  # one write: lines of several processes do not mix
            file.write(lines.to_json(orient="records", lines=True).encode())
        flagged += int(found[decision].sum())
    return Scored(scored=len(todo), flagged=flagged, before=len(posts) - len(todo))
