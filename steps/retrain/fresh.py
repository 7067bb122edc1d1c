"""Which posts a retraining is made of: the fresh ones, older ones beside them, and the test posts of both.

The retraining cursor is the newest `created_at` that the last successful retraining read. A post is fresh when it is
newer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

from pydantic import AliasChoices, AwareDatetime, Field, ValidationError

from model.errors import ManifestError, plain
from model.files import disk_told, write_whole
from model.post import PostId, row_of
from model.schema import CREATED_AT, LABEL, MANIFEST_COLUMNS, POST_ID, PROBABILITY, SPLIT, TEST
from model.strict import Strict
from model.task import Task
from steps.ingest.groups import split_of
from steps.ingest.posts import ORIGIN, Post, Reject, fingerprint_of, parse_posts, refuse_too_many
from steps.ingest.rows import absolute, checked_rows, is_url, json_object, opened, parent_of
from steps.retrain.reviewed import reviewed_labels
from steps.retrain.stored import is_store
from steps.secrets import resolved
from steps.settings import IngestSettings, RetrainSettings
from steps.survey import Asked, chance
from steps.tables import tell_unmatched

logger = logging.getLogger(__name__)

_SUFFIXES = (".jsonl", ".json", ".parquet")
#: Runs of the past that are kept beside the current one.
_KEPT = 3
#: A time that is further ahead than this is a wrong clock's, and tells nothing. One that is less far ahead may be of a
#: clock that differs, or of a zone that was left out.
_AHEAD = timedelta(days=1)
#: A probability that a spreadsheet rounded is still the same.
_ROUNDED = 0.01


def is_to_come(time: datetime, now: datetime | None = None) -> bool:
    """Whether `time` is so far ahead that a clock was wrong."""
    return time > (now or datetime.now(UTC)) + _AHEAD


class Cursor(Strict):
    """How far the last successful retraining of a model read, and what came of it."""

    #: The newest post that was read. `watermark` is its name in files of earlier versions.
    newest: AwareDatetime = Field(validation_alias=AliasChoices("newest", "watermark"))
    version: str
    decision: str


def cursor_path(home: Path, model: str) -> Path:
    return home / "retrain" / f"{model}.json"


def read_cursor(path: Path) -> Cursor | None:
    """None before the first retraining, or where it is still to come: then every post is fresh.

    Raises:
        ManifestError: the file is damaged, or cannot be read.
    """
    try:
        cursor = Cursor.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ManifestError(f"retraining cursor {path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise ManifestError(
            f"retraining cursor {path}: {error.error_count()} faults: correct it, or delete it to have every post fresh"
        ) from error
    if is_to_come(cursor.newest):
        logger.warning(
            "retraining cursor %s: %s is still to come, so a clock was wrong: every post counts as fresh",
            path,
            cursor.newest.isoformat(),
        )
        return None
    return cursor


def advance(path: Path, cursor: Cursor) -> None:
    """Move the cursor forward, in one step; never back, but from a time that is still to come."""
    held = read_cursor(path)
    if held is None or held.newest <= cursor.newest:
        write_whole(path, cursor.model_dump_json(indent=1) + "\n")


# --- what is there ----------------------------------------------------------------------------------------


def folder_of(source: str | Path) -> str:
    """The folder that images are named from."""
    return absolute(source) if _is_folder(source) else parent_of(source)


def _is_folder(source: str | Path) -> bool:
    return not str(source).lower().endswith(_SUFFIXES) if is_url(source) else Path(source).is_dir()


def read_posts(
    source: str | Path,
    columns: Collection[str] = (POST_ID, CREATED_AT),
    task: Task | None = None,
    max_reject_share: float = 0.0,
) -> list[Post]:
    """The good posts of a manifest, or of a folder's manifests by their names; a post of several is that of the last.

    A post whose time is still to come is left out, with a word: every later post would count as old after it.

    Args:
        columns: of a post and of `task`'s questions, that are read.
        max_reject_share: as `ingest.max_reject_share`, of all rows that were read.

    Raises:
        ManifestError: there is no manifest, or one that cannot be read; the times of most posts are still to come.
        RejectsError: too many posts are none: a cell is not what its column holds, or a post has no time.
    """
    now = datetime.now(UTC)

    def check(post: Post) -> None:
        if post[CREATED_AT] is None:
            raise ValueError(f"{CREATED_AT}: missing; what is fresh is told by it")

    row = row_of(task, columns)
    posts: dict[str, Post] = {}
    ahead: list[Post] = []
    rejects: list[Reject] = []
    n_rows = 0
    for path in manifests_of(source):
        found, broken = parse_posts(path, row, check, required=(POST_ID, CREATED_AT))
        n_rows += len(found) + len(broken)
        rejects += broken
        ahead += [post for post in found if is_to_come(post[CREATED_AT], now)]
        posts |= {post[POST_ID]: post for post in found if not is_to_come(post[CREATED_AT], now)}
    _tell_ahead(source, ahead, n_rows, now)
    refuse_too_many(source, rejects, n_rows, max_reject_share, none_left=not posts)
    for reject in rejects:
        logger.warning("manifest %s: row %s (%s) is left out: %s", *reject)
    return list(posts.values())


def _tell_ahead(source: str | Path, ahead: list[Post], n_rows: int, now: datetime) -> None:
    if not ahead:
        return
    manifest, row = ahead[0][ORIGIN]
    said = (
        f"posts {source}: of {len(ahead):,} of {n_rows:,} posts {CREATED_AT} is still to come, as of {manifest}:{row} "
        f"({plain(ahead[0][POST_ID])}), {ahead[0][CREATED_AT].isoformat()}"
    )
    if 2 * len(ahead) > n_rows:
        raise ManifestError(f"{said}: is the clock of this machine right? It says {now.isoformat(timespec='seconds')}")
    logger.warning("%s: left out; a clock was wrong: correct these times", said)


def manifests_of(source: str | Path, suffixes: tuple[str, ...] = _SUFFIXES) -> list[str]:
    """The manifests of a folder: its `.jsonl` and `.parquet` files, and each `.json` file of posts.

    What is left out is said, but for folders: hidden files (`._x.jsonl` is a companion that macOS makes of `x.jsonl`),
    and strangers.
    """
    if not _is_folder(source):
        return [str(source)]
    if is_url(source):
        from fsspec.core import url_to_fs

        files, folder = url_to_fs(str(source))
        inside = [files.unstrip_protocol(str(path)) for path in files.ls(folder, detail=False)]
    else:
        inside = [str(path) for path in Path(source).iterdir() if not path.is_dir()]
    named = [path for path in sorted(inside) if not Path(path).name.startswith(".") and path.lower().endswith(suffixes)]
    if strangers := sorted(Path(path).name for path in set(inside) - set(named)):
        logger.warning("%s: not read, no manifests by their names: %s", source, plain(", ".join(strangers)))
    found = [path for path in named if _holds_posts(path)]
    if not found:
        raise ManifestError(f"posts {source}: the folder holds no {', '.join(suffixes)}: put manifests there")
    return found


def _holds_posts(path: str) -> bool:
    """A stray `info.json` in a folder is none; any other suffix says what the file is."""
    if not path.lower().endswith(".json"):
        return True
    with opened(path, "manifest") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        holds = POST_ID in json_object(first.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        holds = False
    if not holds:
        logger.warning("%s: ignored, its first line is no post", plain(path))
    return holds


def read_labels(place: str | Path) -> dict[str, int]:
    """People's labels by post; the last of a post counts, and null is no label yet.

    Args:
        place: a file, or the URL of the store whose review desk has them.

    Raises:
        ManifestError: the file cannot be read, or a label is not 0, 1 or null.
        StoreError: the store cannot be read, or is of before the desk.
    """
    place = resolved(str(place), "retrain.labels")
    if is_store(place):
        return reviewed_labels(place)
    rows = checked_rows(Path(place), row_of(columns=(POST_ID, LABEL)), "labels", (POST_ID, LABEL))
    cells = (row.model_dump() for _, row in rows)
    return {row[POST_ID]: row[LABEL] for row in cells if row[LABEL] is not None}


class AskedPost(Asked):
    """A row of labels that may have come from a queue."""

    post_id: PostId


def read_chances(place: str | Path) -> dict[str, float]:
    """With what probability `agentps queue` drew the posts of the labels; empty where they are not its.

    A row without one, as a correction has it, leaves that of the post's other rows.

    Raises: as `read_labels`; and ManifestError, where two queues drew a post.
    """
    place = resolved(str(place), "retrain.labels")
    if is_store(place):
        return {}
    found: dict[str, tuple[int, float]] = {}
    for number, row in checked_rows(Path(place), AskedPost, "labels", (POST_ID,)):
        if (asked := row.inclusion_probability) is None:
            continue
        first, before = found.setdefault(row.post_id, (number, asked))
        if not math.isclose(before, asked, rel_tol=_ROUNDED):
            raise ManifestError(
                f"labels {place}:{number}: {PROBABILITY}: {asked:g}, and row {first} of the same post "
                f"({plain(row.post_id)}) has {before:g}: two queues drew it, so the second was made before the first "
                "was filled in, and what they tell cannot be joined: keep the rows of one of the two"
            )
    return {post_id: asked for post_id, (_, asked) in found.items()}


def tell_unweighed(place: str | None) -> None:
    """Say that labels count once each which a policy's draw chose, where they are those of the review desk."""
    if place is not None and is_store(resolved(place, "retrain.labels")):
        logger.warning(
            "labels of the review desk count once each on val and test, however likely people were to see the post: so "
            "the figures are of the posts that people look at; `agentps recalibrate --late` weighs them"
        )


def too_little(
    source: str | Path, cursor: Cursor | None, settings: RetrainSettings, max_reject_share: float = 0.0
) -> str | None:
    """Why there is nothing to do, in one line; None where there are enough fresh posts. Opens no image."""
    posts = read_posts(source, max_reject_share=max_reject_share)
    fresh = sum(cursor is None or post[CREATED_AT] > cursor.newest for post in posts)
    if fresh >= settings.min_fresh:
        return None
    since = f" newer than {cursor.newest.isoformat()}" if cursor else ""
    return (
        f"nothing to retrain on: {fresh} of {len(posts):,} posts are fresh{since}, retrain.min_fresh is "
        f"{settings.min_fresh}"
    )


# --- what is taken ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """rows: of the run's manifest, each with its split. since: fresh posts are newer; None: all are. newest: of all
    that are not ahead of the clock.
    """

    rows: list[Post]
    since: datetime | None
    newest: datetime
    n_fresh: int


def select(
    posts: list[Post],
    since: datetime | None,
    labels: Mapping[str, int],
    settings: RetrainSettings,
    ingest: IngestSettings,
    sides: Mapping[str, str] = MappingProxyType({}),
    chances: Mapping[str, float] = MappingProxyType({}),
) -> Selection:
    """The posts that are trained on, that pick thresholds, and that test.

    A post's side follows from its manifest's `split`, else from a hash of its id, so no post ever changes it. Tested
    are all posts whose manifest says `split: test` (the benchmark, which stays) and those of the test side of the
    newest `test_days`; older ones of the test side are left out, never trained on.

    Args:
        since: the retraining cursor, None before the first retraining.
        labels: people's later labels by post id; they replace the manifest's.
        sides: by post id, the splits of posts that are grouped by what they share (`ingest.group_by`).
        chances: by post id, with what probability people were asked for its later label (see `steps.survey.chance`).

    Raises:
        NoMatchError: there are labels, and none is of a post.
    """
    tell_unmatched(labels, {post[POST_ID] for post in posts}, "labels", "the posts")
    now = datetime.now(UTC)
    newest = max((post[CREATED_AT] for post in posts if post[CREATED_AT] <= now), default=now)
    longest = newest - datetime.min.replace(tzinfo=UTC)  # of posts whose clock says the year 1
    window, tested = (newest - min(timedelta(days=n), longest) for n in (settings.window_days, settings.test_days))
    drawn = bool(chances) or any(PROBABILITY in post for post in posts)
    kept: list[Post] = []
    older: list[Post] = []
    n_fresh = 0
    for post in posts:
        fresh = since is None or post[CREATED_AT] > since
        n_fresh += fresh
        split = post.get(SPLIT) or sides.get(post[POST_ID])
        split = split or split_of(post[POST_ID], ingest.val_share, ingest.test_share)
        label = labels.get(post[POST_ID], post.get(LABEL))
        row = post | {SPLIT: split, LABEL: label}
        if drawn:
            row[PROBABILITY] = chance(post[POST_ID], post.get(PROBABILITY), labels, chances) or 1.0
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
    kept.sort(key=lambda row: (row[CREATED_AT], row[POST_ID]))
    return Selection(rows=kept, since=since, newest=newest, n_fresh=n_fresh)


def _place(post_id: str) -> bytes:
    # not the hash that splits: its low end is all test
    return hashlib.sha256(f"replay:{post_id}".encode()).digest()


def columns_of(task: Task) -> tuple[str, ...]:
    return (*MANIFEST_COLUMNS, *task.question_ids)


class Run(Strict):
    """A retraining that was begun. The same posts are the same run, so a killed one is gone on with."""

    #: Of the selected posts, each with the file and row that it was read from.
    manifest: Path
    #: Of this manifest and its images, see `steps.ingest.posts`.
    fingerprint: str
    since: datetime | None
    newest: datetime
    #: The version that was champion when the retraining was begun: what is started from and compared with.
    champion: str | None


def begin(selection: Selection, root: str | Path, champion: str | None, folder: Path) -> Run:
    """Write the run's manifest below `folder`, once; of those of other runs the newest stay.

    Args:
        root: the folder that the rows' images are named from.
    """
    lines = [json.dumps(row | {CREATED_AT: row[CREATED_AT].isoformat()}, ensure_ascii=False) for row in selection.rows]
    text = "".join(f"{line}\n" for line in lines)
    digest = hashlib.sha256(f"{root}\0{selection.since}\0{text}".encode()).hexdigest()[:16]
    directory = folder / digest
    with disk_told(directory):
        directory.mkdir(parents=True, exist_ok=True)
    others = [path for path in folder.iterdir() if path.is_dir() and path != directory]
    for old in sorted(others, key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(old)
    kept = directory / "run.json"
    fingerprint = fingerprint_of(text.encode(), selection.rows, str(root))
    if not kept.exists():
        write_whole(directory / "posts.jsonl", text)
        made = Run(
            manifest=directory / "posts.jsonl",
            fingerprint=fingerprint,
            since=selection.since,
            newest=selection.newest,
            champion=champion,
        )
        write_whole(kept, made.model_dump_json(indent=1))
    try:
        run = Run.model_validate_json(kept.read_bytes())
    except ValidationError as error:
        raise ManifestError(f"{kept}: {error.error_count()} faults: remove it to begin this retraining anew") from error
    # images may have changed since: the champion is kept, their fingerprint is not
    return run.model_copy(update={"fingerprint": fingerprint})
