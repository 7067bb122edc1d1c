"""Posts in a language that the backbone's vocabulary cannot write: the model would read nothing of their text."""

from __future__ import annotations

import pandas as pd
from transformers import PreTrainedTokenizerBase

from model.errors import DataError
from model.prompt import MIN_KNOWN_SHARE
from model.schema import POST_ID, TEXT, TITLE
from model.text import known_share

#: Posts named in a message.
_SHOWN = 5


def unread(posts: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The line that says which posts' title and text are mostly lost; None where none is.

    Raises:
        DataError: those of all posts that have any are.
    """
    texts = zip(posts[TITLE].fillna(""), posts[TEXT].fillna(""), strict=True)
    words = pd.Series([f"{title}\n{text}" for title, text in texts], index=posts.index, dtype=object)
    characters: set[str] = set().union(*words)
    if known_share(tokenizer, " ".join(3 * c for c in sorted(characters))) == 1:  # at a word's start, and in it
        return None
    written = words[words.str.strip() != ""]
    known = written.map(lambda text: known_share(tokenizer, text))
    lost = posts.loc[known.index[known < MIN_KNOWN_SHARE], POST_ID].tolist()
    if not lost:
        return None
    line = (
        f"{len(lost):,} of {len(written):,} posts have a title and text of whose characters the tokenizer of "
        f"{tokenizer.name_or_path} knows less than half, so that the model cannot read them: "
        f"{', '.join(lost[:_SHOWN])}{', …' if len(lost) > _SHOWN else ''}"
    )
    if len(lost) == len(written):
        raise DataError(f"{line}: take a backbone whose vocabulary writes the language of the posts")
    return line
