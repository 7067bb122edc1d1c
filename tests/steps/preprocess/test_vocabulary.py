from __future__ import annotations

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from model.backbone import load_tokenizer
from model.errors import DataError
from model.settings import BackboneSettings
from steps.preprocess.vocabulary import unread


def posts(*titles: str) -> pd.DataFrame:
    ids = [f"post-{n}" for n in range(len(titles))]
    return pd.DataFrame({"post_id": ids, "title": titles, "text": ["" for _ in titles]})


@pytest.fixture(scope="module")
def english() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "walk": 2, "here": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[UNK]")


def test_posts_in_a_language_that_the_vocabulary_lacks_are_named(english: PreTrainedTokenizerFast) -> None:
    line = unread(posts("a walk", "今天天气很好", "walk 今", "", "прогулка"), english)
    assert line is not None
    assert line.startswith("2 of 4 posts have a title and text of whose characters the tokenizer of ")
    assert line.endswith(": post-1, post-4")


def test_nothing_is_said_of_posts_that_can_be_read(
    english: PreTrainedTokenizerFast, tiny_backbone: BackboneSettings
) -> None:
    assert unread(posts("a walk", "here a walk", ""), english) is None
    assert unread(posts("今天天气很好", "прогулка", "🌊", ""), load_tokenizer(tiny_backbone)) is None
    assert unread(posts(), english) is None


def test_where_no_post_can_be_read_the_run_ends(english: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"2 of 2 posts .*: post-0, post-1: take a backbone whose vocabulary"):
        unread(posts("今天天气很好", "прогулка"), english)
