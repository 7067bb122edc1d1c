"""Every YAML under configs/ loads through the code that reads it in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

from model.task import TASKS_DIR, load_task
from pipelines.config import read_run_file
from scoring.settings import (
    SCORING_CONFIG,
    SERVICE_CONFIG,
    STREAM_CONFIG,
    ScoringRunSettings,
    ScoringSettings,
    ServiceRunSettings,
    ServiceSettings,
    StreamRunSettings,
    StreamSettings,
)
from steps.annotate.prices import PRICES, load_prices
from steps.paths import STUDY_CONFIG
from steps.settings import TrainingSettings, load_options, load_settings
from steps.study.settings import StudyRunSettings, StudySettings

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
TASK_FILES = [path for path in FILES if path.is_relative_to(TASKS_DIR)]
RUN_FILES = [path for path in FILES if path not in (*TASK_FILES, PRICES)]
STUDY_FILES = [path for path in RUN_FILES if path.stem.startswith("study")]


def relative(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def test_the_scan_finds_the_configs() -> None:
    assert len(FILES) >= 3
    assert TASK_FILES
    assert CONFIGS / "default.yaml" in RUN_FILES
    assert not list(CONFIGS.rglob("*.yml")), "one suffix, so that the tests see every file"


@pytest.mark.parametrize("path", TASK_FILES, ids=relative)
def test_every_task_loads_under_its_file_name(path: Path) -> None:
    task = load_task(path)
    assert task.name == path.stem
    assert load_task(path.stem) == task


def test_the_price_table_knows_the_default_model() -> None:
    assert load_settings({}).annotate.model in load_prices(PRICES)


def settings_of(path: Path) -> TrainingSettings:
    kind: type[TrainingSettings] = StudyRunSettings if path in STUDY_FILES else TrainingSettings
    if path == SCORING_CONFIG:
        kind = ScoringRunSettings
    if path == SERVICE_CONFIG:
        kind = ServiceRunSettings
    if path == STREAM_CONFIG:
        kind = StreamRunSettings
    return load_options(kind, read_run_file(path, kind.names()).options, relative(path))


def test_no_option_of_ours_has_the_name_of_one_of_zenmls() -> None:
    """Both live at the top of one file."""
    kinds = (TrainingSettings, StudyRunSettings, ScoringRunSettings, ServiceRunSettings, StreamRunSettings)
    names = {name for kind in kinds for name in kind.names()}
    assert names.isdisjoint(PipelineRunConfiguration.model_fields)


@pytest.mark.parametrize("path", RUN_FILES, ids=relative)
def test_every_run_config_holds_known_options_only(path: Path) -> None:
    settings_of(path)


@pytest.mark.parametrize("path", RUN_FILES, ids=relative)
def test_every_run_config_is_valid_for_zenml(path: Path) -> None:
    PipelineRunConfiguration.from_yaml(str(path))


@pytest.mark.parametrize("path", RUN_FILES, ids=relative)
def test_every_run_config_names_a_task_that_loads(path: Path) -> None:
    load_task(settings_of(path).task)


def test_the_default_config_lists_every_option() -> None:
    """What is not there would have a default that nobody can look up."""
    listed = yaml.safe_load((CONFIGS / "default.yaml").read_text(encoding="utf-8"))
    assert set(listed) == TrainingSettings.names()


def test_scoring_lists_every_option_of_its_own() -> None:
    listed = yaml.safe_load(SCORING_CONFIG.read_text(encoding="utf-8"))["scoring"]
    assert set(listed) == set(ScoringSettings.model_fields)


def test_the_service_lists_every_option_of_its_own() -> None:
    listed = yaml.safe_load(SERVICE_CONFIG.read_text(encoding="utf-8"))["service"]
    assert set(listed) == set(ServiceSettings.model_fields)


def test_the_stream_lists_every_option_of_its_own() -> None:
    listed = yaml.safe_load(STREAM_CONFIG.read_text(encoding="utf-8"))["stream"]
    assert set(listed) == set(StreamSettings.model_fields)


def test_the_study_lists_every_option_of_its_own() -> None:
    assert STUDY_CONFIG in STUDY_FILES
    listed = yaml.safe_load(STUDY_CONFIG.read_text(encoding="utf-8"))["study"]
    assert set(listed) == set(StudySettings.model_fields)
