"""A version of any family is scored by its own code, which is read from memory."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.settings import BackboneSettings, LoraSettings
from steps.register.own_code import MODEL
from steps.register.pyfunc import CODE, own_code
from tests.support import families
from tests.support.tiny import SEQUENCE, TASK, train_settings


@pytest.mark.parametrize("family", sorted(families.REAL))
def test_the_own_code_loads_the_network_that_was_saved(family: str, tmp_path: Path) -> None:
    backbone = BackboneSettings(name=str(families.write(family, tmp_path / "backbone")))
    train = train_settings(lora=LoraSettings(rank=2, alpha=4))
    model, tokenizer, _ = checkpoint.build(backbone, TASK, SEQUENCE, train)
    saved = tmp_path / "checkpoint"
    checkpoint.save(
        saved,
        model,
        tokenizer,
        task=TASK,
        sequence=SEQUENCE,
        train=train,
        backbone=backbone,
        embed_backbone=True,
        provenance={},
    )
    shutil.copytree(MODEL, saved / CODE, ignore=shutil.ignore_patterns("__pycache__"))
    own = import_module(f"{own_code(saved)}.checkpoint").load(saved)
    ours = checkpoint.load(saved)
    assert type(own.model).__module__ != type(ours.model).__module__
    assert type(own.model.family).__name__ == type(ours.model.family).__name__
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(own.model.tower_states(images), ours.model.tower_states(images))
