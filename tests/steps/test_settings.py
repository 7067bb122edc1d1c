from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from model.errors import ConfigError
from model.task import load_task
from steps.paths import REPOSITORY, home, ledger_url
from steps.settings import TrainingSettings, load_settings


def test_the_default_config_is_complete() -> None:
    settings = load_settings({})
    assert (settings.posts, settings.task, settings.annotator) == ("sample", "ucc", "simulated")


def test_the_annotator_is_the_simulated_one_for_the_sample_and_people_for_a_manifest() -> None:
    assert load_settings({"posts": "sample"}).annotate.annotator == "simulated"
    assert load_settings({"posts": "mine.jsonl"}).annotate.annotator == "human"
    assert load_settings({"posts": "mine.jsonl", "annotator": "openai"}).annotate.annotator == "openai"


def test_a_parameter_is_laid_over_its_default_key_by_key() -> None:
    default = load_settings({})
    settings = load_settings({"fine_tune": {"epochs": default.fine_tune.epochs + 1}})
    assert settings.fine_tune.epochs == default.fine_tune.epochs + 1
    assert settings.fine_tune.batch == default.fine_tune.batch


def test_changing_one_section_leaves_the_others_equal() -> None:
    """Each step receives its own section: what is equal stays cached."""
    default, settings = load_settings({}), load_settings({"fine_tune": {"epochs": 9}})
    assert settings.fine_tune != default.fine_tune
    for section in TrainingSettings.model_fields.keys() - {"fine_tune"}:
        assert getattr(settings, section) == getattr(default, section)


def test_a_parameter_of_none_counts_as_not_set() -> None:
    assert load_settings({"posts": None, "fine_tune": None}) == load_settings({})


def test_the_short_forms_reach_the_sections_that_read_them() -> None:
    settings = load_settings({"annotator": "human", "variant": "vanilla", "seed": 5})
    assert settings.annotate.annotator == "human"
    assert (settings.fine_tune.variant, settings.fine_tune.seed) == ("vanilla", 5)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"post": "x.jsonl"}, "post: unknown key"),
        ({"fine_tune": {"epoch": 3}}, "fine_tune.epoch: unknown key"),
        ({"fine_tune": {"lora": {"rank": 8, "alpha": 16, "r": 8}}}, "fine_tune.lora.r: unknown key"),
        ({"fine_tune": {"lora": {"rank": 8}}}, "fine_tune.lora.alpha: is missing"),
        ({"fine_tune": {"epochs": 0}}, "fine_tune.epochs:"),
        ({"fine_tune": {"batch": 10, "micro_batch": 4}}, "batch 10 is not a multiple of micro_batch 4 x processes 1"),
        ({"fine_tune": {"seed": 3}}, "fine_tune.seed: set `seed` at the top instead"),
        ({"annotate": {"annotator": "human"}}, "annotate.annotator: set `annotator` at the top instead"),
        ({"fine_tune": {"variant": "vanilla"}}, "fine_tune.variant: set `variant` at the top instead"),
        ({"variant": "agent"}, "variant:"),
        ({"annotator": "gpt"}, "annotator:"),
        ({"annotate": {"splits": ["train", "dev"]}}, "'dev' is not one of train, val, test"),
        ({"annotate": {"max_cost": 0}}, "annotate.max_cost"),
        ({"annotate": {"ask": "one by one"}}, "annotate.ask"),
        ({"annotate": {"format": "json"}}, "annotate.format"),
        ({"annotate": {"mode": "later"}}, "annotate.mode"),
        ({"annotate": {"request_fields": {"model": "x"}}}, "'model' is not to be set here; set annotate.model"),
        ({"annotate": {"request_fields": {"n": 2}}}, "'n' is not to be set here"),
        ({"annotate": {"request_fields": {"seed": math.nan}}}, "not finite"),
        ({"annotate": {"request_fields": {"max_tokens": None}}}, "max_completion_tokens must bound what"),
        ({"annotate": {"request_fields": {"max_completion_tokens": "64"}}}, "'64' is no number of tokens"),
        ({"annotate": {"min_agreement": 1.2}}, "1.2 is no kappa"),
        ({"annotate": {"min_agreement": {"ugc": -3}}}, "-3.0 is no kappa"),
        ({"annotate": {"on_low_agreement": "stop"}}, "annotate.on_low_agreement"),
        ({"annotate": {"mode": "batch"}}, "the simulated annotator takes `ask: together`,"),
        ({"validate": {"min_posts": {"dev": 1}}}, "one number for each of train, val, test"),
        ({"evaluate": {"precisions": [80, 60]}}, "ascending"),
        ({"evaluate": {"precisions": []}}, "precisions in percent"),
        ({"evaluate": {"precisions": [0.6]}}, "evaluate.precisions"),
        ({"preprocess": {"max_text_tokens": 256, "max_tokens": 256}}, "leaves no room for questions"),
        ({"backbone": {"name": "tiny", "revision": "abc"}}, "the tiny backbone has no revision"),
        ({"ingest": {"max_reject_share": 1.5}}, "ingest.max_reject_share:"),
        ({"ingest": {"val_share": 0.5, "test_share": 0.5}}, "leave nothing to train on"),
        ({"promote": {"max_calibration_error": 0}}, "promote.max_calibration_error:"),
        ({"promote": {"bootstrap": 99}}, "promote.bootstrap:"),
        ({"promote": {"stale_days": -1}}, "promote.stale_days:"),
        ({"promote": {"stale_tolerance": -0.1}}, "promote.stale_tolerance:"),
        ({"promote": {"max_slice_drop": -0.1}}, "promote.max_slice_drop:"),
        ({"promote": {"min_slice_positives": 0}}, "promote.min_slice_positives:"),
        ({"promote": {"metric": "calibration_error"}}, "promote.metric 'calibration_error' is not one of"),
        ({"promote": {"floors": {"recall_at_p81": 0.5}}}, "promote.floors: 'recall_at_p81' is not one of"),
        ({"notify": {"webhook": "hooks.example.org/x"}}, "notify.webhook:"),
        ({"notify": {"command": "mail 'me"}}, "notify.command: No closing quotation"),
        ({"notify": {"command": " "}}, "notify.command: a command of at least one word"),
        ({"notify": {"mail": "me"}}, "notify.mail: unknown key"),
        ({"ingest": 3}, "ingest:"),
        ({"seed": -1}, "seed:"),
        ({"seed": 2**32}, "seed: Input should be less than or equal to 4294967295"),
        ({"seed": 0.5}, "seed:"),
        ({"seed": True}, "seed: true or false is not expected here"),
        ({"sample": {"seed": 2**64}}, "sample.seed:"),
        ({"posts": ""}, "posts:"),
        ({"posts": "a\0b"}, "posts: a NUL character"),
        ({"backbone": {"name": "\ud800"}}, "backbone.name: a NUL character, or half of a surrogate pair"),
        ({"evaluate": {"bootstrap": 2**64}}, "evaluate.bootstrap:"),
        ({"promote": {"bootstrap": 2**64}}, "promote.bootstrap:"),
        ({"fine_tune": {"head_hidden": 2**64}}, "fine_tune.head_hidden:"),
        ({"annotate": {"timeout": 1e300}}, "annotate.timeout:"),
        ({"ingest": {"max_image_bytes": 2**64}}, "ingest.max_image_bytes:"),
        ({"retrain": {"replay": 1e300}}, "retrain.replay:"),
        ({"task": ""}, "task:"),
        ({"backbone": {"name": ""}}, "backbone.name:"),
        ({"annotate": {"model": ""}}, "annotate.model:"),
        ({"annotate": {"splits": []}}, "annotate.splits: each split once, and train among them"),
        ({"annotate": {"splits": ["test"]}}, "annotate.splits: each split once, and train among them"),
        ({"annotate": {"splits": ["train", "train"]}}, "annotate.splits: each split once"),
        ({"annotate": {"timeout": math.inf}}, "annotate.timeout:"),
        ({"annotate": {"max_cost": math.nan}}, "annotate.max_cost:"),
        ({"annotate": {"max_cost": True}}, "annotate.max_cost: true or false"),
        ({"annotate": {"min_agreement": {"ugc": True}}}, "annotate.min_agreement: true or false"),
        ({"validate": {"min_posts": {"train": -1}}}, "train: -1 is no number of posts"),
        ({"validate": {"min_posts": {"train": True}}}, "validate.min_posts: true or false"),
        ({"validate": {"positive_share": [0.9, 0.1]}}, "the least and the most share"),
        ({"validate": {"positive_share": [0.1, 7]}}, "the least and the most share"),
        ({"validate": {"positive_share": [0.1, math.nan]}}, "validate.positive_share"),
        ({"evaluate": {"precisions": [60, 60]}}, "ascending"),
        ({"evaluate": {"precisions": [True, 60]}}, "evaluate.precisions: true or false"),
        ({"evaluate": {"bootstrap": True}}, "evaluate.bootstrap: true or false"),
        ({"fine_tune": {"learning_rate": math.inf}}, "fine_tune.learning_rate:"),
        ({"fine_tune": {"learning_rate": ".inf"}}, "fine_tune.learning_rate:"),
        ({"fine_tune": {"weight_decay": math.nan}}, "fine_tune.weight_decay:"),
        ({"fine_tune": {"batch": 0}}, "fine_tune.batch:"),
        ({"fine_tune": {"micro_batch": 0}}, "fine_tune.micro_batch:"),
        ({"fine_tune": {"epochs": True}}, "fine_tune.epochs: true or false"),
        ({"fine_tune": {"lora": {"rank": True, "alpha": 1}}}, "fine_tune.lora.rank: true or false"),
        ({"promote": {"floor": 1.5}}, "promote.floor:"),
        ({"promote": {"floor": math.nan}}, "promote.floor:"),
        ({"promote": {"floors": {"f1": 2}}}, "promote.floors.f1:"),
        ({"promote": {"floors": {"f1": True}}}, "promote.floors: true or false"),
        ({"promote": {"stale_days": 1e9}}, "promote.stale_days:"),
        (
            {"promote": {"floors": {"accuracy_ugc": 0.5}}, "variant": "vanilla"},
            "the variant vanilla answers no questions",
        ),
        ({"retrain": {"window_days": 1e9}}, "retrain.window_days:"),
        ({"retrain": {"live_days": math.inf}}, "retrain.live_days:"),
    ],
)
def test_a_wrong_option_is_named_with_its_source(parameters: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(parameters, source="mine.yaml")
    assert str(error.value).startswith("mine.yaml: ")
    assert expected in str(error.value)


def test_what_yaml_reads_as_text_is_a_number_where_one_is_expected_and_a_switch_stays_one() -> None:
    settings = load_settings({"fine_tune": {"learning_rate": "1e-4", "gradient_checkpointing": True}})
    assert (settings.fine_tune.learning_rate, settings.fine_tune.gradient_checkpointing) == (1e-4, True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"annotate": {"min_agreement": {"ugc": 0.5, "uggc": 0.5}}},
            "annotate.min_agreement: uggc: the task ucc has no",
        ),
        ({"promote": {"floors": {"accuracy_blur": 0.5}}}, "promote.floors: accuracy_blur: the task ucc has no such"),
    ],
)
def test_an_option_for_a_question_that_the_task_does_not_have_is_told_before_anything_is_asked(
    options: dict[str, Any], expected: str
) -> None:
    load_settings({}).check_task(load_task("ucc"))
    with pytest.raises(ConfigError, match=expected):
        load_settings(options).check_task(load_task("ucc"))


def test_the_ledger_is_a_file_under_home_until_a_database_is_named(agentps_home: Path) -> None:
    assert ledger_url(load_settings({}).annotate.ledger) == f"sqlite:///{agentps_home}/annotations.db"
    assert ledger_url("postgresql://db/agentps") == "postgresql://db/agentps"


def test_every_wrong_option_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"fine_tune\.epochs.*fine_tune\.epoch: "):
        load_settings({"fine_tune": {"epochs": 0, "epoch": 3}})


def test_home_is_agentps_home_where_it_is_set(agentps_home: Path) -> None:
    assert home() == agentps_home


@pytest.mark.parametrize("value", [None, ""])
def test_home_is_in_the_repository_otherwise(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("AGENTPS_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("AGENTPS_HOME", value)
    assert home() == REPOSITORY / ".agentps"


def test_a_relative_home_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTPS_HOME", "here")
    assert home() == tmp_path.resolve() / "here"
