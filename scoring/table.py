"""Scores new posts with a registered version and keeps what it said: the table that `steps.retrain.live` reads."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from model.checkpoint_info import read_info
from model.columns import DECISION, ERROR, LOGIT, MODEL_VERSION, SCORED_AT, decision_column
from model.errors import ConfigError
from model.files import disk_told
from model.metrics import point_name
from model.schema import POST_ID
from steps.ingest.posts import read_manifest
from steps.ingest.rows import json_object, opened
from steps.locks import locked
from steps.paths import home
from steps.register import history, registry
from steps.register.own_code import scorer_of
from steps.retrain.live import read_scores
from steps.settings import TrainingSettings

if TYPE_CHECKING:
    from model.scorer import Scorer

logger = logging.getLogger(__name__)

#: Posts between two writes.
_CHUNK = 256
#: How a line of ours begins.
_BEGIN = f'{{"{POST_ID}":'.encode()


@dataclass
class Scored:
    """How many posts were scored now, how many of these are flagged, which could not be scored, by their errors, and
    how many this version had scored before.
    """

    scored: int
    flagged: int
    errors: list[str]
    before: int


def score_manifest(name: str, posts: str, settings: TrainingSettings, table: Path | None) -> str:
    """Score the posts of a manifest that the model's champion has not scored yet; returns what was done, as one line.

    Args:
        table: None: `retrain.scores`.

    Raises:
        ConfigError: no table is named; or as `score_new`.
        RegistryError: there is no champion.
    """
    if table is None and settings.retrain.scores is None:
        raise ConfigError("score: a table for the scores is needed: give --scores, or set retrain.scores")
    path = Path(table or str(settings.retrain.scores))
    champion = history.champion_of(name)
    checkpoint = registry.fetch(champion)
    found = read_manifest(posts, read_info(checkpoint).task, settings.ingest)
    precision = settings.retrain.live_precision
    done = score_new(scorer_of(checkpoint), champion.version, found.posts, path, precision, datetime.now(UTC))
    failed = f"{len(done.errors):,} could not be scored ({done.errors[0]}), " if done.errors else ""
    return (
        f"{name} version {champion.version}: {done.scored:,} posts scored, {done.flagged:,} of them flagged at "
        f"{precision} % precision, {failed}{done.before:,} were scored before; {len(found.rejects):,} rows rejected. "
        f"Table: {path}"
    )


def score_new(scorer: Scorer, version: str, posts: pd.DataFrame, table: Path, precision: int, now: datetime) -> Scored:
    """Append a line for each post that `version` has not scored yet: `score`, `decision` (flagged at `precision`), the
    answers that led there, `model_version`, `scored_at`. Killed, it goes on with the posts that are left. A post that
    cannot be scored gets a line with its `error`, without score and decision, and is tried again by the next call. Of
    several calls for one table the others wait: no post is scored twice.

    Args:
        posts: as ingest makes them.
        table: JSON Lines; made where it does not exist. A last line that was cut off is dropped, with a word.
        precision: in percent, one that the version has a threshold for.

    Raises:
        ConfigError: the table is no JSON Lines file, or the version has no such threshold.
        DiskError: the lines of a chunk of posts could not be written: none of them is in the table.
        ManifestError: the table holds rows that are no scores.
    """
    if table.suffix.lower() not in (".jsonl", ".json"):
        raise ConfigError(f"scores {table}: rows are appended to JSON Lines only: name a file that ends in .jsonl")
    if table.exists() and not table.is_file():  # a pipe would be waited for for ever
        raise ConfigError(f"scores {table}: is no file: name one that ends in .jsonl")
    place = hashlib.sha256(str(table.resolve()).encode()).hexdigest()[:16]
    with locked(home() / "locks" / f"scores-{place}.lock", f"the table {table}"):
        before = _scored_before(table, version)
        todo = posts[~posts[POST_ID].isin(before)]
        done = Scored(scored=0, flagged=0, errors=[], before=len(posts) - len(todo))
        for start in range(0, len(todo), _CHUNK):
            part = todo.iloc[start : start + _CHUNK]
            found = scorer.score(part)
            decision = found[_decision(list(map(str, found)), version, precision)]
            lines = found.drop(columns=[LOGIT, *(name for name in found if str(name).startswith(decision_column("")))])
            lines.insert(0, POST_ID, part[POST_ID])
            lines[DECISION], lines[MODEL_VERSION], lines[SCORED_AT] = decision, version, now.isoformat()
            _append(table, lines.to_json(orient="records", lines=True).encode())
            errors = found[ERROR].dropna()
            done.errors += errors.tolist()
            done.scored += len(found) - len(errors)
            done.flagged += int(decision.sum())
    return done


def _scored_before(table: Path, version: str) -> set[str]:
    """The posts that `version` has a score for in the table, which ends with a whole line afterwards."""
    if not table.exists() or not table.stat().st_size:
        return set()
    place, last = _open_end(table)
    cut_off = last != b"" and not _is_row(last)
    if cut_off and not place and last.startswith(_BEGIN[: len(last)]):  # it is all there is
        known = pd.DataFrame({POST_ID: [], MODEL_VERSION: []})
    else:
        known = read_scores(table)
    if cut_off:  # only now it is sure that the file is a table of scores, not one of somebody else's
        with disk_told(table), table.open("r+b") as file:
            file.truncate(place)
        logger.warning("scores %s: its last line was cut off: it is dropped, and its post scored again", table)
    elif last:
        _append(table, b"\n")
    return set(known.loc[known[MODEL_VERSION] == version, POST_ID])


def _open_end(table: Path) -> tuple[int, bytes]:
    """Where the last line begins, and the line, if it has no end; else the file's size, and nothing."""
    place, last = 0, b""
    with opened(table, "scores") as file:
        for line in file:
            place, last = place + len(last), line
    return (place + len(last), b"") if last.endswith(b"\n") else (place, last)


def _is_row(line: bytes) -> bool:
    try:
        json_object(line)
    except ValueError:
        return False
    return True


def _append(table: Path, lines: bytes) -> None:
    """All of it or nothing; in one write where the disk takes it, so that what others append does not mix with it."""
    with disk_told(table):
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(lines)
                while left:  # a disk that becomes full takes a part, without an error
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise


def _decision(columns: Collection[str], version: str, precision: int) -> str:
    decision = decision_column(point_name(precision))
    if decision not in columns:
        known_points = ", ".join(name for name in columns if name.startswith(decision_column("")))
        raise ConfigError(
            f"version {version} has no threshold for {precision} % precision (it has {known_points}): set "
            "retrain.live_precision, or evaluate.precisions of the training"
        )
    return decision
