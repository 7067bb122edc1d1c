from __future__ import annotations

from typing import Any

import pytest

from model.errors import ConfigError
from steps.settings import TrainingSettings, load_settings
from steps.study.settings import StudyRunSettings, load_study_settings


def test_a_study_is_laid_over_the_training_options() -> None:
    study, training = load_study_settings({}), load_settings({})
    assert study.fine_tune == training.fine_tune
    assert study.sample.train == training.sample.train == study.study.train_posts[-1]
    assert study.sample.gold_share == 1.0, "people's labels are compared with the annotator's"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"study": {"seed": [0]}}, "study.seed: unknown key"),
        ({"study": {"seeds": []}}, "study.seeds:"),
        ({"study": {"tables": ["table1"]}}, "study.tables.0:"),
        ({"study": {"train_posts": [200, 100]}}, "study.train_posts: numbers of posts, distinct, ascending"),
        ({"study": {"accuracies": [1.0]}}, "study.accuracies: shares between 0 and 1"),
        ({"study": {"variant": "vanilla"}}, "study.variant: vanilla answers no questions"),
        ({"study": {"methods": ["forward"]}}, "study.methods.0:"),
        ({"posts": "mine.jsonl"}, "study.output: docs holds the embedded sample's results"),
    ],
)
def test_an_option_of_the_study_that_cannot_be_is_named(parameters: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_study_settings(parameters)
    assert expected in str(error.value)


def test_what_a_cell_or_no_step_of_the_study_sets_is_no_option_of_the_study() -> None:
    """Each cell has its own variant and seed; nothing is registered, promoted or retrained."""
    assert TrainingSettings.names() - StudyRunSettings.names() == {"variant", "seed", "register", "promote", "retrain"}
    assert StudyRunSettings.names() - TrainingSettings.names() == {"study"}
