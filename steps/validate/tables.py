"""The tables that the rules read: posts and labels, with derived columns for what spans several rows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from model import schema
from model.task import Task
from model.video import FRAMES

# Derived columns.
ROW = "row"  # 1-based place in the table
N_IMAGES = "n_images"
CHARACTERS = "characters"
IMAGE_SHARED = "image_shared_with"  # a post of another split that holds the same image; null: none
TEXT_SHARED = "text_shared_with"  # the same for title and text
NEWEST_TRAIN = "newest_train_post"
UNKNOWN = "unknown_post"


def prepare_posts(posts: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The columns that the suite reads, the derived ones with them, row for row."""
    kept = [schema.POST_ID, schema.TITLE, schema.SPLIT, schema.LABEL, schema.CREATED_AT, *task.question_ids]
    posts = posts.reset_index(drop=True)
    table = posts[kept].copy()
    table[ROW] = range(1, len(table) + 1)
    table[N_IMAGES] = posts[schema.IMAGES].map(_length)
    table[CHARACTERS] = posts[schema.TITLE].map(_length) + posts[schema.TEXT].map(_length)
    images = _files(posts).explode().dropna()
    table[IMAGE_SHARED] = _shared_across_splits(images, posts)
    both = (posts[schema.TITLE].map(_length) > 0) & (posts[schema.TEXT].map(_length) > 0)
    words = posts[both].groupby([schema.TITLE, schema.TEXT], sort=False).ngroup()
    table[TEXT_SHARED] = _shared_across_splits(words, posts)
    table[NEWEST_TRAIN] = posts.loc[posts[schema.SPLIT] == schema.TRAIN, schema.CREATED_AT].max()
    return table


def _files(posts: pd.DataFrame) -> pd.Series:
    """The hashes of each post's images, and of its video in place of its frames: many videos begin black."""
    if schema.VIDEO_SHA256 not in posts:
        return posts[schema.IMAGE_SHA256]
    pairs = zip(posts[schema.IMAGE_SHA256], posts[schema.VIDEO_SHA256], strict=True)
    files = [[*own[:-FRAMES], video] if isinstance(video, str) else own for own, video in pairs]
    return pd.Series(files, index=posts.index, dtype=object)


def prepare_labels(labels: pd.DataFrame, posts: pd.DataFrame, task: Task) -> pd.DataFrame:
    table = labels[[schema.POST_ID, *task.question_ids]].reset_index(drop=True)
    table[ROW] = range(1, len(table) + 1)
    known = posts.dropna(subset=[schema.POST_ID]).drop_duplicates(schema.POST_ID).set_index(schema.POST_ID)
    for column in (schema.TITLE, schema.SPLIT):
        table[column] = table[schema.POST_ID].map(known[column])
    table[UNKNOWN] = table[schema.POST_ID].where(~table[schema.POST_ID].isin(known.index))
    return table


def _length(value: Any) -> int:
    """The length of a string, list or array; 0 for null."""
    return len(value) if hasattr(value, "__len__") else 0


def _shared_across_splits(contents: pd.Series, posts: pd.DataFrame) -> pd.Series:
    """For each post that shares a content with a post of another split, that post in words; else null.

    Args:
        contents: what is compared, indexed by the post's place in `posts`; a post may occur often.
    """
    uses = pd.DataFrame({"content": contents, "split": posts[schema.SPLIT].reindex(contents.index)})
    uses = uses.rename_axis("place").reset_index()
    first = uses.drop_duplicates(["content", "split"])
    shared = first[first.duplicated("content", keep=False)]
    pairs = uses.merge(shared, on="content", suffixes=("", "_other"))
    pairs = pairs[pairs["split"] != pairs["split_other"]].drop_duplicates("place").set_index("place")
    other_id = posts[schema.POST_ID].reindex(pairs["place_other"]).to_numpy()
    words = [f"{split} post {post_id}" for split, post_id in zip(pairs["split_other"], other_id, strict=True)]
    return pd.Series(words, index=pairs.index, dtype="str").reindex(posts.index)


def split_counts(posts: pd.DataFrame, labels: pd.DataFrame) -> list[dict[str, Any]]:
    counts = []
    for split in schema.SPLITS:
        own = posts[posts[schema.SPLIT] == split]
        times = own[schema.CREATED_AT].dropna()
        counts.append(
            {
                "split": split,
                "posts": len(own),
                "images": int(own[N_IMAGES].sum()),
                "labelled": int(own[schema.LABEL].notna().sum()),
                "positives": int((own[schema.LABEL] == 1).sum()),
                "annotated": int((labels[schema.SPLIT] == split).sum()),
                "oldest": times.min().isoformat() if len(times) else None,
                "newest": times.max().isoformat() if len(times) else None,
            }
        )
    return counts
