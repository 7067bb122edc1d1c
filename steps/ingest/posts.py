"""Read a manifest and its images: the posts that can be used, and a reason for every other one.

A fault of the file (no file, bad JSON on a line, a missing column) stops the run. A fault of one
post goes to the rejects table; the run stops when too many are there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import re
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from model import schema
from model.errors import ImageError, ManifestError, plain
from model.images import MOST_PATH
from model.post import Row, columns_of, parse, post_id_of, row_of, shown
from model.schema import PROBABILITY
from model.settings import PostLimits
from model.task import Task
from model.video import FRAMES
from steps.ingest.groups import grouped, split_of
from steps.ingest.pdq import Hash
from steps.ingest.pictures import Clip, Picture, compared, frames_mark, hash_images, read_videos, with_frames
from steps.ingest.rows import absolute, is_url, opened, parent_of, read_rows
from steps.settings import IngestSettings
from steps.survey import Asked

logger = logging.getLogger(__name__)

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
#: Rejects named in an error's message.
_SHOWN = 5
#: Of a post that is not in a table yet, and a column of the manifests that retraining writes: the file and the row that
#: the post was read from.
ORIGIN = "_origin"

#: A post's cells by column, as `model.post` has checked them, and its ORIGIN.
Post = dict[str, Any]


class Reject(NamedTuple):
    """row: 1-based line or row number in the manifest. post_id: None where there is none."""

    manifest: str
    row: int
    post_id: str | None
    reason: str


class RejectsError(ManifestError):
    """Too many posts were rejected; `rejects` is the whole table."""

    def __init__(self, message: str, rejects: pd.DataFrame) -> None:
        super().__init__(message)
        self.rejects = rejects


@dataclass(frozen=True)
class IngestResult:
    """What a manifest held.

    posts: one row per usable post: post_id, created_at (datetime64[us, UTC], NaT where absent), title,
        text, images (names relative to root), root (an absolute local folder, or an fsspec URL), image_sha256,
        label, one Int8 column per question, split; language where the manifest has it; and where it has videos, video
        and video_sha256: the images of such a post end with the frames of its video, and root is where these lie. Where
        posts were drawn for people, inclusion_probability (float64, NaN where there is no label).
    rejects: one row for every other one: the fields of `Reject`.
    counts: rows, posts, rejected, images, files (distinct), labelled, train, val, test; and with `group_by` groups (of
        two or more posts), largest_group, posts_across (of groups that lie in more than one split).
    """

    posts: pd.DataFrame
    rejects: pd.DataFrame
    counts: dict[str, int]


def read_manifest(
    path: str | Path,
    task: Task,
    settings: IngestSettings,
    *,
    root: str | Path | None = None,
    workers: int | None = None,
) -> IngestResult:
    """Read the posts of a JSON Lines or Parquet manifest and decode every image once.

    Args:
        path: of a local file, or an fsspec URL.
        root: of a manifest that retraining wrote: the folder that its images are named from.
        workers: processes that decode images, each of which holds one at a time; default: one per core.

    Raises:
        ManifestError: the file as a whole cannot be used; names file, line, remedy.
        RejectsError: every post, or a larger share than `settings.max_reject_share`, is rejected.
    """
    folder = parent_of(path) if root is None else absolute(root)
    named = partial(_check_post, name_of=namer(folder), limits=settings.post_limits)
    found, rejects = parse_posts(path, row_of(task), named, chosen=root is not None)
    n_rows = len(found) + len(rejects)
    usable, broken, hashes = _with_hashes(found, folder, settings, workers)
    rejects += broken
    refuse_too_many(path, rejects, n_rows, settings.max_reject_share, none_left=not usable)
    groups = _split(usable, hashes, settings, folder)
    table = _table(usable, task)
    counts = {
        "rows": n_rows,
        "posts": len(table),
        "rejected": len(rejects),
        "images": int(table[schema.IMAGES].map(len).sum()),
        "files": len({name for names in table[schema.IMAGES] for name in names}),
        "labelled": int(table[schema.LABEL].notna().sum()),
        **{split: int((table[schema.SPLIT] == split).sum()) for split in schema.SPLITS},
        **groups,
    }
    return IngestResult(posts=table, rejects=_rejects_table(rejects), counts=counts)


def parse_posts(
    path: str | Path,
    row: type[Row],
    check: Callable[[Post], None],
    *,
    required: Collection[str] = schema.REQUIRED_COLUMNS,
    chosen: bool = False,
) -> tuple[list[Post], list[Reject]]:
    """The good posts of a manifest and why each other one is none; no image is opened.

    Args:
        row: the columns that are read (see `model.post.row_of`).
        check: what else a post must be: it raises a ValueError, or completes the post.
        chosen: the manifest is one that retraining wrote: its column ORIGIN is read.

    Raises:
        ManifestError: as `read_rows`; or of some labels, and not of all, it is said with what probability people were
            asked of the post.
    """
    columns = columns_of(row)
    own = [*([ORIGIN] if chosen else ()), *([PROBABILITY] if schema.LABEL in columns else ())]
    rows, in_file = read_rows(path, [*columns, *own], required)
    unknown = [name for name in in_file if name not in (*schema.MANIFEST_COLUMNS, *columns, ORIGIN, PROBABILITY)]
    if unknown and schema.IMAGES in columns:  # else a part of the posts is read, to count them
        logger.warning(
            "manifest %s: ignoring columns that are neither a post's nor a question's: %.500s", path, unknown
        )
    posts: list[Post] = []
    rejects: list[Reject] = []
    first_row: dict[str, int] = {}
    for number, cells in rows:
        manifest, row_there = cells.pop(ORIGIN, (str(path), number))
        parsed, faults = parse(row, cells)
        asked, wrong = parse(Asked, cells)
        faults += wrong
        post_id = post_id_of(cells.get(schema.POST_ID))
        if parsed is not None:
            post = parsed.model_dump(by_alias=True) | {ORIGIN: (manifest, row_there)}
            if asked is not None and asked.inclusion_probability is not None:
                post[PROBABILITY] = asked.inclusion_probability
            try:
                check(post)
            except ValueError as error:
                faults.append(str(error))
        if post_id is not None and first_row.setdefault(post_id, number) != number:
            faults.append(f"{schema.POST_ID}: {shown(post_id)} is already the post of row {first_row[post_id]}")
        if faults:
            rejects.append(Reject(manifest, row_there, post_id, "; ".join(faults)))
        else:
            posts.append(post)
    _refuse_half_drawn(path, posts)
    return posts, rejects


def _refuse_half_drawn(path: str | Path, posts: Sequence[Post]) -> None:
    labelled = [post for post in posts if post.get(schema.LABEL) is not None]
    lacking = [post for post in labelled if PROBABILITY not in post]
    if not lacking or len(lacking) == len(labelled):
        return
    raise ManifestError(
        f"manifest {path}: {PROBABILITY}: {len(lacking):,} of the {len(labelled):,} posts with a label have none, as "
        f"row {lacking[0][ORIGIN][1]} ({plain(lacking[0][schema.POST_ID])}): write 1 where a post had its label before "
        "the others were drawn; else its probability, or remove the label"
    )


def refuse_too_many(path: str | Path, rejects: list[Reject], n_rows: int, max_share: float, *, none_left: bool) -> None:
    """Raises: RejectsError where the rejects are a larger share of the rows than `max_share`, or no post is left."""
    if not none_left and len(rejects) <= max_share * n_rows:
        return
    rejects = sorted(rejects)
    first = "; ".join(
        f"{'' if r.manifest == str(path) else f'{r.manifest}:'}row {r.row} ({r.post_id or 'no id'}): {r.reason:.500}"
        for r in rejects[:_SHOWN]
    )
    more = f"; and {len(rejects) - _SHOWN} more" if len(rejects) > _SHOWN else ""
    message = (
        f"manifest {path}: {len(rejects)} of {n_rows} posts are rejected, {max_share:.1%} at most may be: "
        f"{first}{more}. Correct these rows, or raise ingest.max_reject_share"
    )
    raise RejectsError(message, _rejects_table(rejects))


def manifest_fingerprint(path: str | Path) -> str:
    """A cache key that changes when the manifest or one of its images does; no image is opened.

    Covers the manifest's bytes, and the size and modification time of every file that it names.

    Raises:
        ManifestError: as `read_manifest`, for faults of the file as a whole.
    """
    rows = read_rows(path, (*schema.REQUIRED_COLUMNS, schema.VIDEO), schema.REQUIRED_COLUMNS)[0]
    with opened(path, "manifest") as file:
        return fingerprint_of(file.read(), [cells for _, cells in rows], parent_of(path))


def fingerprint_of(manifest: bytes, posts: Sequence[Mapping[str, Any]], root: str) -> str:
    """The same of a manifest's bytes and of its posts' files under `root`; a missing file counts as missing."""
    state = _url_states(root) if is_url(root) else partial(_state, root)
    digest = hashlib.sha256(hashlib.sha256(manifest).digest())
    for name in dict.fromkeys(name for post in posts for name in _files_of(post)):
        digest.update(json.dumps([name, state(name)]).encode())
    if any(isinstance(post.get(schema.VIDEO), str) for post in posts):
        digest.update(frames_mark().encode())
    return digest.hexdigest()


def _files_of(post: Mapping[str, Any]) -> list[str]:
    images = post.get(schema.IMAGES)
    return [
        name
        for name in [*(images if isinstance(images, list) else ()), post.get(schema.VIDEO)]
        if isinstance(name, str)
    ]


def _state(root: str, name: str) -> list[int] | None:
    try:
        status = os.stat(os.path.join(root, name))
        return [status.st_size, status.st_mtime_ns]
    except (OSError, ValueError):  # ValueError: a NUL character in the name
        return None


def _url_states(root: str) -> Callable[[str], str | None]:
    """All that the file system tells of each file, in one listing: an object store is slow for single files."""
    from fsspec.core import url_to_fs

    files, folder = url_to_fs(root)
    found = {path: str(info) for path, info in files.find(folder, detail=True).items()}
    return lambda name: found.get(f"{folder.rstrip('/')}/{posixpath.normpath(name)}")


# --- images -----------------------------------------------------------------------------------


def namer(root: str) -> Callable[[str], str]:
    """Makes the name of an image below `root` of what the manifest says; whether it exists is not asked."""
    if is_url(root):
        return _remote_name
    return partial(_local_name, prefix=os.path.join(root, ""), real_folder=cache(os.path.realpath))


def _check_post(post: Post, name_of: Callable[[str], str], limits: PostLimits) -> None:
    names, video = post[schema.IMAGES], post[schema.VIDEO]
    if faults := limits.faults(post[schema.TITLE], post[schema.TEXT], len(names) + FRAMES * bool(video)):
        raise ValueError("; ".join(faults))
    post[schema.IMAGES] = [name_of(name) for name in names]
    if video:
        post[schema.VIDEO] = name_of(video)


def _refuse_no_name(name: str) -> None:
    if len(name) > MOST_PATH:
        raise ValueError(f"images: {shown(name)}: {len(name):,} characters; a path has at most {MOST_PATH:,}")
    if _URL.match(name):
        raise ValueError(f"images: {shown(name)} is a URL; only files in the manifest's folder are read")


def _outside(name: str) -> ValueError:
    return ValueError(f"images: {shown(name)} lies outside the manifest's folder; move it there")


def _local_name(name: str, prefix: str, real_folder: Callable[[str], str]) -> str:
    """Links are resolved."""
    _refuse_no_name(name)
    path = _real_path(prefix + name if not os.path.isabs(name) else name, real_folder)
    if not path.startswith(prefix) and path + os.sep != prefix:
        raise _outside(name)
    return path[len(prefix) :] or os.curdir


def _remote_name(name: str) -> str:
    _refuse_no_name(name)
    if posixpath.isabs(name) or ".." in name.split("/"):
        raise _outside(name)
    return posixpath.normpath(name)


def _real_path(path: str, real_folder: Callable[[str], str]) -> str:
    """As `os.path.realpath`, which looks at every folder above each file; `real_folder` remembers them."""
    folder, name = os.path.split(path)
    if name in ("", os.curdir, os.pardir):
        return os.path.realpath(path)
    path = os.path.join(real_folder(folder), name)
    try:
        is_link = stat.S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        is_link = False
    return os.path.realpath(path) if is_link else path


def _with_hashes(
    posts: list[Post], root: str, settings: IngestSettings, workers: int | None
) -> tuple[list[Post], list[Reject], dict[str, Hash]]:
    """The posts whose files can be read, with the hashes of these; and by those the perceptual ones."""
    images = hash_images((name for post in posts for name in post[schema.IMAGES]), root, settings, workers)
    videos = read_videos((post[schema.VIDEO] for post in posts if post[schema.VIDEO]), root, settings, workers)
    usable, rejects = [], []
    for post in posts:
        found: dict[str, Picture | Clip | ImageError] = {
            f"image {plain(name)}": images[name] for name in post[schema.IMAGES]
        }
        if post[schema.VIDEO]:
            found[f"video {plain(post[schema.VIDEO])}"] = videos[post[schema.VIDEO]]
        faults = [f"{name}: {error}" for name, error in found.items() if isinstance(error, ImageError)]
        if faults:
            manifest, row = post[ORIGIN]
            rejects.append(Reject(manifest, row, post[schema.POST_ID], "; ".join(faults)))
        else:
            hashes = [getattr(images[name], "sha256", "") for name in post[schema.IMAGES]]
            clip = videos.get(post[schema.VIDEO])
            usable.append(with_frames(post | {schema.IMAGE_SHA256: hashes}, clip, root, settings))
    alike = {one.sha256: one.alike for one in images.values() if isinstance(one, Picture) and one.alike is not None}
    for clip in videos.values():
        alike |= clip.alike if isinstance(clip, Clip) else {}
    return usable, rejects, alike


def _split(posts: list[Post], hashes: Mapping[str, Hash], settings: IngestSettings, root: str) -> dict[str, int]:
    """Give each post its split; returns counts of the groups, where there are any."""
    if not settings.group_by:
        for post in posts:
            post[schema.SPLIT] = post[schema.SPLIT] or split_of(
                post[schema.POST_ID], settings.val_share, settings.test_share
            )
        return {}
    found = grouped(posts, [compared(post, hashes) for post in posts], hashes, settings, root)
    for post, split in zip(posts, found.splits, strict=True):
        post[schema.SPLIT] = split
    return {"groups": found.groups, "largest_group": found.largest, "posts_across": found.across}


def group_splits(posts: Sequence[Post], root: str, settings: IngestSettings) -> dict[str, str]:
    """By the ids of posts whose images were not read yet, the splits that ingest will give them with `group_by`.

    A post that ingest will reject has none.
    """
    named, usable = partial(_check_post, name_of=namer(root), limits=settings.post_limits), []
    for post in map(dict, posts):
        with suppress(ValueError):
            named(post)
            usable.append(post)
    usable, _, hashes = _with_hashes(usable, root, settings, None)
    _split(usable, hashes, settings, root)
    return {post[schema.POST_ID]: post[schema.SPLIT] for post in usable}


# --- tables -----------------------------------------------------------------------------------


def _table(posts: Sequence[Post], task: Task) -> pd.DataFrame:
    dtypes = {
        schema.POST_ID: "str",
        schema.CREATED_AT: "datetime64[us, UTC]",
        schema.TITLE: "str",
        schema.TEXT: "str",
        schema.IMAGES: "object",
        schema.ROOT: "str",
        schema.IMAGE_SHA256: "object",
        schema.LABEL: "Int8",
        **dict.fromkeys(task.question_ids, "Int8"),
        schema.SPLIT: "str",
    }
    if any(post[schema.LANGUAGE] is not None for post in posts):
        dtypes[schema.LANGUAGE] = "str"
    if any(post[schema.VIDEO] is not None for post in posts):
        dtypes |= {schema.VIDEO: "str", schema.VIDEO_SHA256: "str"}
    if any(PROBABILITY in post and post[schema.LABEL] is not None for post in posts):
        dtypes[PROBABILITY] = "float64"
    cells = {name: [post[name] if name != PROBABILITY else post.get(name) for post in posts] for name in dtypes}
    return pd.DataFrame({name: pd.Series(cells[name], dtype=dtype) for name, dtype in dtypes.items()})


def _rejects_table(rejects: list[Reject]) -> pd.DataFrame:
    table = pd.DataFrame(sorted(rejects), columns=list(Reject._fields), dtype="object")
    return table.astype({"manifest": "str", "row": "int64", "reason": "str"})
