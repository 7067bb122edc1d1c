from __future__ import annotations

from pathlib import Path

import numpy as np

from model.data import Shards
from model.settings import BackboneSettings
from steps.evaluate.predictions import predict_splits
from steps.evaluate.report import labelled
from tests.support.tiny import TASK, train_settings, write_checkpoint


def test_val_and_test_are_answered_post_by_post_and_scored_by_the_calibration_of_val(
    tiny_backbone: BackboneSettings, tiny_shards: Shards, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_backbone, train_settings())
    val, test, calibration, info = predict_splits(checkpoint, tiny_shards.root)
    assert info.task == TASK
    for split, table, count in (("val", val, 16), ("test", test, 8)):
        assert table["post_id"].tolist() == [f"{split}-{i}" for i in range(count)]
        assert len(labelled(table, split, TASK, "agentps")) == count, "every column that a report needs"
        np.testing.assert_allclose(
            table["score"], 1 / (1 + np.exp(-(calibration.scale * table["logit"] + calibration.bias)))
        )
