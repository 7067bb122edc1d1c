"""Every YAML under configs/ loads through the code that reads it in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

from model.task import TASKS_DIR, load_task
from steps.settings import load_settings

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
TASK_FILES = [path for path in FILES if path.is_relative_to(TASKS_DIR)]
RUN_FILES = [path for path in FILES if path not in TASK_FILES]


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


@pytest.mark.parametrize("path", RUN_FILES, ids=relative)
def test_every_run_config_loads(path: Path) -> None:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    load_settings(raw.get("parameters") or {}, source=relative(path))


@pytest.mark.parametrize("path", RUN_FILES, ids=relative)
def test_zenml_knows_every_top_level_key(path: Path) -> None:
    """ZenML ignores an unknown top-level key in silence."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(raw) <= set(PipelineRunConfiguration.model_fields)


@pytest.mark.parametrize("path", RUN_FILES, ids=relative)
def test_every_run_config_names_a_task_that_loads(path: Path) -> None:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    load_task(load_settings(raw.get("parameters") or {}, source=relative(path)).task)
