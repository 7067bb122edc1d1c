"""Title and text as tokens: the same function in preprocessing and in serving."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

from .errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Closes every intermediate question; its hidden state is the answer (paper 2.1).
ANS_TOKEN = "<ans>"


def ans_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of `<ans>`.

    Raises:
        PromptError: the tokenizer has no such token.
    """
    found = tokenizer.get_vocab().get(ANS_TOKEN)
    if found is None:
        raise PromptError(f"the tokenizer has no token {ANS_TOKEN}: load it with model.backbone.load_tokenizer")
    return found


#: Characters that are tokenized first, for each token that is wanted; of a longer text more, until it is enough.
_PER_TOKEN = 32
#: Words at the end of a cut text that the rest could change: letters that go on, marks that belong to a letter.
_UNSURE = 4


def encode_post_text(tokenizer: PreTrainedTokenizerBase, title: str, text: str, max_tokens: int) -> list[int]:
    """Token ids of title and text, cut on the right after `max_tokens` (paper 3.1.2: 196).

    Special tokens written in a post are read as plain characters: a title that says `<ans>` or
    `<video>` adds no answer position and no frame.

    Of a long text only so many characters are tokenized as decide: a word (the piece within which a tokenizer joins
    characters) is the same whatever follows it, but for the last few. So the result is that of the whole text.
    """
    whole, length = f"{title}\n{text}\n", _PER_TOKEN * max_tokens
    while tokenizer.is_fast and length < len(whole):
        found = tokenizer(whole[:length], add_special_tokens=False, split_special_tokens=True)
        words = found.word_ids()
        if len(words) > max_tokens and words[max_tokens - 1] + _UNSURE < words[-1]:
            return list(found["input_ids"][:max_tokens])
        length *= 8
    return list(tokenizer.encode(whole, add_special_tokens=False, split_special_tokens=True)[:max_tokens])


def known_share(tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """The share of a text's characters, blanks aside, that its tokens give back, and no others; 1 where it has none.

    A character that the vocabulary lacks becomes the unknown token, or nothing at all; a damaged tokenizer deletes any,
    or makes one token of any word. Case, accents and forms of one character, which many give up, are no loss.
    """
    wanted = _plain(text)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    read = _plain(str(tokenizer.decode([token for token in ids if token != tokenizer.unk_token_id])))
    return (wanted & read).total() / max(wanted.total(), read.total()) if wanted else 1.0


def _plain(text: str) -> Counter[str]:
    """The characters of a text without blanks, case, accents and format marks."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return Counter(c for c in folded if not c.isspace() and unicodedata.category(c) not in ("Mn", "Cf"))
