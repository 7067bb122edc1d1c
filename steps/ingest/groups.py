"""Posts that share a picture or a text, put into one split: what a model has seen in training would be no test.

A split is remembered under `home()`: a post that was in a split stays in it, whatever arrives later.
"""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from model.errors import ManifestError, plain
from model.files import write_whole
from model.schema import POST_ID, SPLIT, TEST, TEXT, TITLE, TRAIN, VAL
from steps.ingest.pdq import LEAST_QUALITY, Hash, near_pairs
from steps.locks import locked
from steps.paths import home
from steps.settings import IngestSettings

logger = logging.getLogger(__name__)

#: What posts may share.
IMAGE, TEXTS = "image", "text"
#: A group of more than this share of the posts is told: one picture is in very many posts, or near ones form a chain.
_LARGE = 0.1
#: Groups named in a message.
_SHOWN = 5
_Splits = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class Grouped:
    """splits: of each post, in order. groups: of two or more posts. largest: posts of the largest one. across: posts
    of groups that lie in more than one split.
    """

    splits: list[str]
    groups: int
    largest: int
    across: int


def split_of(post_id: str, val_share: float, test_share: float) -> str:
    """The split of a post that names none: by a hash of its id alone, so it stays as posts arrive."""
    place = int.from_bytes(hashlib.sha256(post_id.encode()).digest()[:8]) / 2**64
    if place < test_share:
        return TEST
    return VAL if place < test_share + val_share else TRAIN


def grouped(
    posts: Sequence[Mapping[str, Any]],
    pictures: Sequence[Sequence[str]],
    hashes: Mapping[str, Hash],
    settings: IngestSettings,
    root: str,
) -> Grouped:
    """The split of every post, by the groups of `settings.group_by`, and remembered for the next time.

    A post whose manifest names its split has that one, a post that was in a split before stays there. All others of a
    group go where its first post of these is, or, where there is none, where the hash of its first post's id says.

    Args:
        posts: with their `split`, None where the manifest names none.
        pictures: of each post, the sha256 of its pictures' files.
        hashes: of each picture.
        root: the folder of the manifest: what is remembered, is for the posts of one folder.

    Raises:
        ManifestError: what was remembered cannot be read.
    """
    group_of = _components(len(posts), _contents(posts, pictures, hashes, settings))
    kept = _memory(settings, root)
    with locked(kept.with_suffix(".lock"), f"the splits {kept}, which another run makes"):
        remembered = _read(kept)
        settled = [post[SPLIT] or remembered.get(post[POST_ID]) for post in posts]
        members: dict[int, list[int]] = {}
        for place, group in enumerate(group_of.tolist()):
            members.setdefault(group, []).append(place)
        splits = [""] * len(posts)
        across: list[list[int]] = []
        for places in members.values():
            first = next((settled[place] for place in places if settled[place]), None)
            common = first or split_of(posts[places[0]][POST_ID], settings.val_share, settings.test_share)
            for place in places:
                splits[place] = settled[place] or common
            if len({splits[place] for place in places}) > 1:
                across.append(places)
        now = {post[POST_ID]: split for post, split in zip(posts, splits, strict=True)}
        if (wanted := remembered | now) != remembered:
            write_whole(kept, json.dumps(wanted, ensure_ascii=False, indent=0) + "\n")
    _tell(posts, splits, across, settings)
    largest = max(map(len, members.values()), default=0)
    if largest > max(2, _LARGE * len(posts)):
        _tell_large(posts, max(members.values(), key=len), settings)
    return Grouped(
        splits, sum(len(places) > 1 for places in members.values()), largest, sum(len(places) for places in across)
    )


def _contents(
    posts: Sequence[Mapping[str, Any]],
    pictures: Sequence[Sequence[str]],
    hashes: Mapping[str, Hash],
    settings: IngestSettings,
) -> list[tuple[int, int]]:
    """(post, number of a content): posts with a number in common belong together."""
    numbers: dict[Any, int] = {}
    shared: list[tuple[int, int]] = []
    near = _near(hashes) if IMAGE in settings.group_by else {}
    for place, (post, names) in enumerate(zip(posts, pictures, strict=True)):
        found: list[Any] = [near.get(name, name) for name in names] if IMAGE in settings.group_by else []
        if TEXTS in settings.group_by and (words := _words(post)):
            found.append(words)
        shared += [(place, numbers.setdefault(content, len(numbers))) for content in dict.fromkeys(found)]
    return shared


def _words(post: Mapping[str, Any]) -> tuple[str, str] | None:
    """Title and text, but for capitals, blanks and forms of one character; None where either is empty: a title alone
    is in many posts.
    """
    if not post[TITLE] or not post[TEXT]:
        return None
    title, text = (" ".join(unicodedata.normalize("NFKC", post[name]).casefold().split()) for name in (TITLE, TEXT))
    return title, text


def _near(hashes: Mapping[str, Hash]) -> dict[str, int]:
    """A number for each picture that tells enough; those of near ones, or of a chain of near ones, are equal."""
    telling = {name: found.bits for name, found in hashes.items() if found.quality >= LEAST_QUALITY}
    if not telling:
        return {}
    distinct, number = np.unique(
        np.frombuffer(b"".join(telling.values()), dtype=np.uint8).reshape(-1, 32), axis=0, return_inverse=True
    )
    alike = _joined(len(distinct), near_pairs(distinct))
    return dict(zip(telling, alike[number.ravel()].tolist(), strict=True))


def _components(n_posts: int, shared: Sequence[tuple[int, int]]) -> np.ndarray:
    """The number of each post's group."""
    pairs = np.array(shared, dtype=np.int64).reshape(-1, 2)
    pairs[:, 1] += n_posts
    return _joined(int(pairs.max(initial=n_posts - 1)) + 1, pairs)[:n_posts]


def _joined(n: int, pairs: np.ndarray) -> np.ndarray:
    """Of n nodes the number of the part that each belongs to, by the edges between them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    parts: np.ndarray = connected_components(edges, directed=False)[1]
    return parts


# --- what is remembered --------------------------------------------------------------------------------------


def _memory(settings: IngestSettings, root: str) -> Path:
    parts = [root, sorted(settings.group_by), settings.val_share, settings.test_share]
    return home() / "splits" / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> dict[str, str]:
    try:
        return _Splits.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise ManifestError(
            f"splits {path}: cannot be read ({error}): restore it, or delete it to split all posts anew"
        ) from error


# --- what is told --------------------------------------------------------------------------------------------


def _named(posts: Sequence[Mapping[str, Any]], splits: Sequence[str], places: Sequence[int]) -> str:
    first = {splits[place]: place for place in reversed(places)}
    return ", ".join(f"{posts[place][POST_ID]} ({split})" for split, place in sorted(first.items()))


def _tell(
    posts: Sequence[Mapping[str, Any]], splits: Sequence[str], across: Sequence[Sequence[int]], settings: IngestSettings
) -> None:
    if across:
        more = f"; and {len(across) - _SHOWN:,} more" if len(across) > _SHOWN else ""
        logger.warning(
            "ingest.group_by %s: %s groups of %s posts lie in more than one split, because posts that arrived later "
            "share something with posts of both, or because the manifest says so: %s%s. No post was moved. Leave the "
            "posts out that join them, or give all of a group one `split` in the manifest",
            list(settings.group_by),
            f"{len(across):,}",
            f"{sum(map(len, across)):,}",
            plain("; ".join(_named(posts, splits, places) for places in across[:_SHOWN])),
            more,
        )


def _tell_large(posts: Sequence[Mapping[str, Any]], places: Sequence[int], settings: IngestSettings) -> None:
    logger.warning(
        "ingest.group_by %s: %s of %s posts are one group, from %s on: does one picture or text, such as a logo, stand "
        "in very many posts? They are all in one split",
        list(settings.group_by),
        f"{len(places):,}",
        f"{len(posts):,}",
        plain(", ".join(posts[place][POST_ID] for place in places[:3])),
    )
