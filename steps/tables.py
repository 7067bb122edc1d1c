"""Joins by `post_id` that lose nothing without a word."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import pandas as pd

from model.errors import DataError
from model.schema import POST_ID

logger = logging.getLogger(__name__)

#: Ids named in a message.
_SHOWN = 3


class NoMatchError(DataError):
    """Two tables have no post in common."""


def rows_of(table: pd.DataFrame, post_ids: Sequence[str], what: str) -> pd.DataFrame:
    """The rows of these posts, in the order of `post_ids`, which may hold a post more than once; indexed from 0.

    Args:
        what: `table` is, for the message.

    Raises:
        DataError: a post has no row, or more than one.
    """
    index = pd.Index(table[POST_ID])
    if not index.is_unique:
        raise DataError(f"{what}: posts with more than one row: {_some(index[index.duplicated()].unique())}")
    places = index.get_indexer(pd.Index(post_ids))
    if (places < 0).any():
        missing = [post_id for post_id, place in zip(post_ids, places, strict=True) if place < 0]
        raise DataError(
            f"{what}: {len(missing):,} of {len(post_ids):,} posts have no row: {_some(missing)}. "
            "Were the tables made from the same posts?"
        )
    return table.iloc[places].reset_index(drop=True)


def tell_unmatched(post_ids: Collection[str], known: Collection[str], what: str, where: str) -> None:
    """Say how many of `post_ids` are not among `known`: a join leaves them out.

    Args:
        what: has the ids, `where`: has the known ones; for the message.

    Raises:
        NoMatchError: there are ids, and not one of them is known.
    """
    wanted = set(post_ids)
    unmatched = sorted(wanted - set(known))
    if wanted and len(unmatched) == len(wanted):
        raise NoMatchError(
            f"{what}: none of its {len(unmatched):,} posts is among {where}: found {_some(unmatched)}; "
            f"known are {_some(sorted(known)) or 'none'}. Give tables of the same posts"
        )
    if unmatched:
        counts = f"{len(unmatched):,} of its {len(wanted):,} posts are left out"
        logger.warning("%s: %s, not among %s: %s", what, counts, where, _some(unmatched))


def _some(post_ids: Collection[str]) -> str:
    more = ", …" if len(post_ids) > _SHOWN else ""
    return ", ".join(repr(post_id) for post_id in list(post_ids)[:_SHOWN]) + more
