"""What a training would refuse is told before an annotator is paid."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.errors import AgentPSError, ConfigError
from model.settings import BackboneSettings
from model.task import Task, load_task
from steps.fine_tune import ahead
from steps.settings import TrainingSettings, load_settings

#: The tiny backbone's own.
SEQUENCE = {"frames": 8, "image_size": 32, "max_text_tokens": 196, "max_tokens": 256}


def settings(backbone: str | Path, **options: Any) -> TrainingSettings:
    return load_settings({"preprocess": SEQUENCE, "backbone": {"name": str(backbone)}, **options})


def with_questions(asks: list[str]) -> Task:
    ucc = load_task("ucc")
    questions = [ucc.questions[0].model_copy(update={"id": f"q{n}", "ask": ask}) for n, ask in enumerate(asks)]
    return ucc.model_copy(update={"questions": tuple(questions)})


def test_a_backbone_that_fits_passes(tiny_backbone: BackboneSettings) -> None:
    ahead.check(settings(tiny_backbone.name), load_task("ucc"), here=True)


@pytest.mark.parametrize(
    ("asks", "message"),
    [
        (
            ["Is there a watermark in any of the pictures?"] * 30,
            r"its questions take \d+ of 256 tokens and leave 0 for",
        ),
        (["Any? " * 300], r"its questions take \d+ of 256 tokens and leave 0 for title and text; shorten"),
        (["Any <video>?"], r"holds the special token <video>: remove it"),
    ],
)
def test_odd_wordings_are_one_message_at_the_start(
    tiny_backbone: BackboneSettings, asks: list[str], message: str
) -> None:
    with pytest.raises(AgentPSError, match=message) as refused:
        ahead.check(settings(tiny_backbone.name), with_questions(asks), here=True)
    assert len(str(refused.value).splitlines()) == 1


def test_wordings_in_any_script_pass(tiny_backbone: BackboneSettings) -> None:
    asks = ["图片有水印吗?", "هل توجد علامة؟", "🌊?", "Ist das ‚Ä‘ dabei?", "ẍ́"]
    ahead.check(settings(tiny_backbone.name), with_questions(asks), here=True)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("tokenizer.json", r"no tokenizer\.json"),
        ("config.json", r"no config\.json"),
        ("model.safetensors", r"no model\.safetensors"),
    ],
)
def test_a_folder_that_is_no_whole_backbone_is_told(
    tiny_backbone: BackboneSettings, tmp_path: Path, lost: str, message: str
) -> None:
    folder = tmp_path / "backbone"
    shutil.copytree(tiny_backbone.name, folder)
    (folder / lost).unlink()
    with pytest.raises(AgentPSError, match=message):
        ahead.check(settings(folder), load_task("ucc"), here=True)
    with pytest.raises(ConfigError, match="no such directory"):
        ahead.check(settings(tmp_path / "nowhere"), load_task("ucc"), here=True)


def test_more_processes_than_the_machine_has_are_told_where_it_is_this_one(tiny_backbone: BackboneSettings) -> None:
    processes = 64 * (os.cpu_count() or 1)
    options = settings(tiny_backbone.name, fine_tune={"processes": processes, "batch": processes, "micro_batch": 1})
    with pytest.raises(ConfigError, match=rf"fine_tune\.processes {processes}: this machine has \d+ (core|GPU)"):
        ahead.check(options, load_task("ucc"), here=True)
    ahead.check(options, load_task("ucc"), here=False)


def test_where_nobody_is_paid_the_tiny_backbone_is_not_built_for_a_look(agentps_home: Path) -> None:
    ahead.check(load_settings({}), load_task("ucc"), here=True)
    assert list(agentps_home.iterdir()) == []
