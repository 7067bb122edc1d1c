"""Which posts a retraining is made of: the fresh ones, older ones beside them, and the test posts of both.

The watermark is the newest `created_at` that the last successful retraining read. A post is fresh when it is newer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from model.errors import ManifestError
from model.schema import CREATED_AT, LABEL, MANIFEST_COLUMNS, POST_ID, SPLIT, TEST
from model.task import Task
from steps.ingest.posts import parse_time, read_rows, split_of
from steps.settings import IngestSettings, RetrainSettings

_SUFFIXES = (".jsonl", ".json", ".parquet")
#: Plans of other runs that are kept beside the current one.
_KEPT = 3

#: A manifest's row, `created_at` as a datetime in UTC.
Row = dict[str, Any]


class State(BaseModel):
    """What the last successful retraining of a model read, and what came of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    watermark: datetime
    version: str
    decision: str


def state_path(home: Path, model: str) -> Path:
    return home / "retrain" / f"{model}.json"


def read_state(path: Path) -> State | None:
    """None before the first retraining: then every post is fresh.

    Raises:
        ManifestError: the file is damaged.
    """
    try:
        return State.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ManifestError(
            f"watermark {path}: {error.error_count()} faults: correct it, or delete it to have every post fresh"
        ) from error


def advance(path: Path, state: State) -> None:
    """Move the watermark forward, in one step; never back."""
    held = read_state(path)
    if held is not None and held.watermark > state.watermark:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, state.model_dump_json(indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """A killed process leaves the old content or the new."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


# --- what is there ----------------------------------------------------------------------------------------


def folder_of(source: Path) -> Path:
    """The folder that images are named from."""
    return source if source.is_dir() else source.parent


def read_posts(source: Path, columns: Sequence[str] = (POST_ID, CREATED_AT)) -> list[Row]:
    """The posts of a manifest, or of a folder's manifests by their names; a post of several is that of the last.

    Raises:
        ManifestError: there is no manifest, or a post has no time, or one that is still to come.
    """
    paths = [source]
    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in _SUFFIXES)
        if not paths:
            raise ManifestError(f"posts {source}: the folder holds no {', '.join(_SUFFIXES)}: put manifests there")
    now = datetime.now(UTC)
    posts: dict[Any, Row] = {}
    for path in paths:
        for number, row in read_rows(path, tuple(columns), (POST_ID, CREATED_AT))[0]:
            try:
                time = parse_time(row.get(CREATED_AT))
                if time is None:
                    raise ValueError("missing; what is fresh is told by it")
                if time > now:
                    raise ValueError(f"{time.isoformat()} is still to come: every later post would count as old")
            except ValueError as error:
                raise ManifestError(f"manifest {path}:{number}: {CREATED_AT}: {error}") from None
            posts[row.get(POST_ID)] = row | {CREATED_AT: time}
    return list(posts.values())


def read_labels(path: Path) -> dict[str, int]:
    """People's labels by post; the last of a post counts.

    Raises:
        ManifestError: the file cannot be read, or a label is not 0 or 1.
    """
    found = {}
    for number, row in read_rows(path, (POST_ID, LABEL), (POST_ID, LABEL))[0]:
        if row.get(LABEL) not in (0, 1):
            raise ManifestError(f"labels {path}:{number}: {LABEL}: {row.get(LABEL)!r}; 0 or 1 is expected")
        found[row[POST_ID]] = int(row[LABEL])
    return found


def too_little(source: Path, state: State | None, settings: RetrainSettings) -> str | None:
    """Why there is nothing to do, in one line; None where there are enough fresh posts. Opens no image."""
    posts = read_posts(source)
    fresh = sum(state is None or post[CREATED_AT] > state.watermark for post in posts)
    if fresh >= settings.min_fresh:
        return None
    since = f" newer than {state.watermark.isoformat()}" if state else ""
    return (
        f"nothing to retrain on: {fresh} of {len(posts):,} posts are fresh{since}, retrain.min_fresh is "
        f"{settings.min_fresh}"
    )


# --- what is taken ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """rows: of the run's manifest, each with its split. since: fresh posts are newer; None: all are."""

    rows: list[Row]
    since: datetime | None
    watermark: datetime
    n_fresh: int


def select(
    posts: list[Row],
    since: datetime | None,
    labels: dict[str, int],
    settings: RetrainSettings,
    ingest: IngestSettings,
) -> Selection:
    """The posts that are trained on, that pick thresholds, and that test.

    A post's side follows from its manifest's `split`, else from a hash of its id, so no post ever changes it. Tested
    are all posts whose manifest says `split: test` (the benchmark, which stays) and those of the test side of the
    newest `test_days`; older ones of the test side are left out, never trained on.

    Args:
        since: the watermark, None before the first.
        labels: people's later labels by post id; they replace the manifest's.
    """
    newest = max(post[CREATED_AT] for post in posts)
    window, tested = (newest - timedelta(days=days) for days in (settings.window_days, settings.test_days))
    kept: list[Row] = []
    older: list[Row] = []
    n_fresh = 0
    for post in posts:
        fresh = since is None or post[CREATED_AT] > since
        n_fresh += fresh
        split = post.get(SPLIT) or split_of(str(post[POST_ID]), ingest.val_share, ingest.test_share)
        label = labels.get(post[POST_ID], post.get(LABEL))
        row = post | {SPLIT: split, LABEL: label}
        if split == TEST:
            if post.get(SPLIT) == TEST or post[CREATED_AT] > tested:
                kept.append(row)
        elif fresh or (settings.older == "window" and post[CREATED_AT] > window):
            kept.append(row)
        elif settings.older == "replay":
            older.append(row)
    if older:
        n_taken = round(settings.replay * sum(row[SPLIT] != TEST for row in kept))
        kept += sorted(older, key=lambda row: _place(row[POST_ID]))[:n_taken]
    kept.sort(key=lambda row: (row[CREATED_AT], str(row[POST_ID])))
    return Selection(rows=kept, since=since, watermark=newest, n_fresh=n_fresh)


def _place(post_id: str) -> bytes:
    # not the hash that splits: its low end is all test
    return hashlib.sha256(f"replay:{post_id}".encode()).digest()


def columns_of(task: Task) -> tuple[str, ...]:
    return (*MANIFEST_COLUMNS, *task.question_ids)


class Plan(BaseModel):
    """A retraining that was begun. The same posts have the same plan, so a killed run is gone on with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Path
    since: datetime | None
    watermark: datetime
    #: The version that was champion when the retraining was begun: what is started from and compared with.
    champion: str | None


def plan(selection: Selection, root: Path, champion: str | None, folder: Path) -> Plan:
    """Write the run's manifest below `folder`, once; of those of other runs the newest stay.

    Args:
        root: the folder that the rows' images are named from.
    """
    lines = [json.dumps(row | {CREATED_AT: row[CREATED_AT].isoformat()}, ensure_ascii=False) for row in selection.rows]
    text = "".join(f"{line}\n" for line in lines)
    digest = hashlib.sha256(f"{root}\0{selection.since}\0{text}".encode()).hexdigest()[:16]
    directory = folder / digest
    directory.mkdir(parents=True, exist_ok=True)
    others = [path for path in folder.iterdir() if path != directory]
    for old in sorted(others, key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(old)
    kept = directory / "plan.json"
    if not kept.exists():
        write_whole(directory / "posts.jsonl", text)
        made = Plan(
            manifest=directory / "posts.jsonl",
            since=selection.since,
            watermark=selection.watermark,
            champion=champion,
        )
        write_whole(kept, made.model_dump_json(indent=1))
    return Plan.model_validate_json(kept.read_bytes())
