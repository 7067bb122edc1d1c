"""LoRA on real pretrained weights of a language model; see benchmarks/language.py for how they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import language
from model.schema import SPLIT, TEST, TEXT, TITLE, TRAIN


def test_the_posts_that_are_measured_share_no_wording_with_those_that_are_trained_on(
    agentps_home: Path, tmp_path: Path
) -> None:
    posts = language.posts_of_two_kinds(tmp_path, 24, 24)
    train, test = (posts[posts[SPLIT] == split] for split in (TRAIN, TEST))
    assert (len(train), len(test)) == (24, 24)
    for column, question in zip((TITLE, TEXT), language.TEXT_QUESTIONS, strict=True):
        seen, asked = (set(language._wordings(part[column])) for part in (train, test))
        assert seen
        assert not seen & asked
        assert {*train[question]} == {*test[question]} == {0, 1}


@pytest.mark.weights
def test_lora_on_pretrained_weights_learns_the_text_questions_faster_than_on_random_ones(
    agentps_home: Path, tmp_path: Path
) -> None:
    """The benchmark's first seed."""
    if (missing := language.lacking()) is not None:
        pytest.skip(missing)
    arms = language.write_backbones(tmp_path)
    shards = language.write_texts(tmp_path, arms["pretrained"], language.TRAIN_POSTS, language.TEST_POSTS)
    pretrained, random = (language.curve(arms[arm], shards, 0, language.EPOCHS)[-1] for arm in language.ARMS)
    assert pretrained["loss"] < random["loss"] - 0.1
    assert pretrained["average_precision"] > random["average_precision"] + 0.1
