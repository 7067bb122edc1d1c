"""The model card, as a real MLflow keeps it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from model import metrics
from model.checkpoint_info import CheckpointInfo, read_info
from model.metrics import OperatingPoint
from model.settings import BackboneSettings
from model.task import Task
from steps.evaluate.report import EvalReport, Metric
from steps.register import registry
from steps.register.card import LONGEST, card
from tests.support.reports import made_up
from tests.support.tiny import TASK, train_settings, write_checkpoint, write_images

POINTS = {
    "p60": OperatingPoint(min_precision=0.6, threshold=0.5, recall=0.5, precision=0.66),
    "p80": OperatingPoint(min_precision=0.8, threshold=math.inf, recall=0, precision=None),
}
METRICS = {
    "average_precision": Metric(value=0.876, low=0.851, high=0.9),
    "recall_at_p60": Metric(value=0.71, low=0.65, high=0.77),
    metrics.served_name("p60"): Metric(value=0.5, low=0.41, high=0.59),
    "accuracy_bright": Metric(value=0.93),
}


def report(annotator: str = "openai:gpt-4o", confidence: float | None = 0.95) -> EvalReport:
    return made_up(
        annotator=annotator,
        variant="agentps_answers",
        n_posts=100,
        n_positive=40,
        n_val=150,
        metrics=METRICS,
        operating_points=POINTS,
        confidence=confidence,
        posts_needed={"p80": 4321},
        annotated_missing_share={"bright": 0.004, "calm": 0.031},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: BackboneSettings) -> Path:
    settings = train_settings(variant="agentps_answers")
    return write_checkpoint(tmp_path_factory.mktemp("card") / "checkpoint", tiny_backbone, settings)


@pytest.fixture(scope="module")
def info(trained: Path) -> CheckpointInfo:
    return read_info(trained)


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Posts of train and test, and predictions: all German posts that should be flagged are missed."""
    n = 100
    language = np.where(np.arange(n) < 60, "en", "de")
    label = np.arange(n) % 2
    score = np.where((label == 1) & (language == "en"), 0.9, 0.1)
    when = pd.Timestamp("2026-01-05", tz="UTC")
    test = pd.DataFrame({"post_id": [f"t{n}" for n in range(n)], "split": "test", "language": language, "label": label})
    train = pd.DataFrame({"post_id": [f"l{n}" for n in range(8)], "split": "train", "language": "en", "label": 0})
    train.loc[0, "label"] = 1
    posts = pd.concat([train, test], ignore_index=True).assign(
        created_at=when, title="a", text="b", images=[["1", "2"]] * (n + 8)
    )
    posts["label"] = posts["label"].astype("Int8")
    return posts, test[["post_id", "split", "label"]].astype({"label": "Int8"}).assign(score=score)


def test_the_card_says_what_is_decided_learned_promised_and_where_it_falls_short(info: CheckpointInfo) -> None:
    posts, predictions = tables()
    text = card(report(), predictions, TASK, info, posts)
    for line in (
        "# small, version 1 of the policy",
        "Is it good? Answers: bad, or **good** (flagged).",
        "3 intermediate questions: bright (Bright? no, yes), kind (Which kind of album is it? none, some, all), ",
        "8 posts of 2026-01-05 to 2026-01-05; people's decision for 8, 12.5 % of them good.",
        "Answers to the intermediate questions by the LLM `gpt-4o`.",
        "At most 3.1 % of a question's answers are missing (calm).",
        "with 95 % confidence (fitted on 150 posts of val)",
        "| 60% | 0.5000 | 50.0 % [41.0 %, 59.0 %] | 66.0 % |",
        "| 80% | flags nothing: not promised; about 4,321 posts of val would do | | |",
        "- average precision: 87.6 % [85.1 %, 90.0 %]",
        "Guessing has an average precision of 40.0 %",
        "- recall at 60 % precision: 71.0 % [65.0 %, 77.0 %]",
        "bright 93.0 %",
        # 0 of 20: Clopper-Pearson's upper end is 1 - 0.025 ** (1 / 20) = 16.8 %
        "- language de: recall 0.0 % [0.0 %, 16.8 %] of 20 posts, below 50.0 %",
        "languages (known: de, en)",
        'mlflow models serve -m "$(agentps fetch VERSION)"',
    ):
        assert line in text
    assert "language en:" not in text


@pytest.mark.parametrize(
    ("annotator", "expected"),
    [("human", "by people."), ("simulated:gpt-4o", "a **simulated** annotator"), ("openai:gpt-4o", "the LLM `gpt-4o`")],
)
def test_the_card_names_who_labelled(info: CheckpointInfo, annotator: str, expected: str) -> None:
    text = card(report(annotator), tables()[1], TASK, info, None)
    assert expected in text
    assert ("**Real posts.**" in text) == annotator.startswith("simulated")


def test_the_card_says_that_people_s_answers_corrected_the_annotator_s(info: CheckpointInfo) -> None:
    train = info.train.model_copy(update={"labels": "relabelled"})
    text = card(report(), tables()[1], TASK, info.model_copy(update={"train": train}), None)
    assert "by the LLM `gpt-4o`; people's answers to some training posts corrected them (`relabelled`)." in text
    assert "corrected" not in card(report(), tables()[1], TASK, info, None)


def test_a_report_of_before_promises_promises_nothing_in_its_card(info: CheckpointInfo) -> None:
    assert "no confidence: each threshold is the best on val" in card(
        report(confidence=None), tables()[1], TASK, info, None
    )


def test_a_card_of_any_policy_fits_into_mlflow_s_databases(info: CheckpointInfo) -> None:
    asked = TASK.questions[0]
    questions = tuple(asked.model_copy(update={"id": f"q{n}", "ask": "is it so? " * 400}) for n in range(400))
    task: Task = TASK.model_copy(update={"questions": questions})
    point = OperatingPoint(min_precision=0.5, threshold=0.5, recall=0.5, precision=0.6)
    many = report().model_copy(update={"operating_points": {f"p{n}": point for n in range(1, 99)}})
    text = card(many, tables()[1], task, info, None)
    assert len(text) <= LONGEST
    assert "and 388 more" in text
    assert "agentps fetch" in text, "the end is there too"


def test_mlflow_shows_the_card_as_the_version_s_description(
    tracking: Path, trained: Path, tmp_path: Path, info: CheckpointInfo
) -> None:
    posts, predictions = tables()
    example = pd.DataFrame({"title": ["a"], "text": [""], "images": [[str(p) for p in write_images(tmp_path, 1)]]})
    version, _ = registry.register(
        trained, report(), predictions, TASK, example, name="agentps-small", tags={}, posts=posts
    )
    described = MlflowClient().get_model_version("agentps-small", version.version).description
    assert described == card(report(), predictions, TASK, info, posts)
    MlflowClient().copy_model_version(f"models:/agentps-small/{version.version}", "production")
    assert MlflowClient().get_model_version("production", "1").description == described


def test_the_card_counts_posts_that_were_drawn_for_people_as_those_that_they_stand_for(info: CheckpointInfo) -> None:
    """One positive training post was asked of in any case, seven others with 1 in 2: 1 of 15. Of the flagged English
    posts those that are right were asked of in any case, five wrong ones stand for 50 each.
    """
    posts, predictions = tables()
    posts["inclusion_probability"] = np.where(posts["label"] == 1, 1.0, 0.5)
    wrong = predictions.index[(predictions["label"] == 0)][:5]
    predictions.loc[wrong, "score"] = 0.9
    plain = card(report(), predictions, TASK, info, posts.drop(columns="inclusion_probability"))
    assert "language en: precision" not in plain, "30 of 35 labels are right"
    predictions["inclusion_probability"] = 1.0
    predictions.loc[wrong, "inclusion_probability"] = 0.02
    text = card(report(), predictions, TASK, info, posts)
    assert "people's decision for 8; of all that they were drawn from, 6.7 % are good." in text
    assert "- language en: precision 10.7 % [" in text, "30 of 280"
