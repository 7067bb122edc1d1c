from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from model.backbone import load_backbone, load_tokenizer
from model.data import FRAMES, Shards
from model.schema import CREATED_AT, IMAGES, LABEL, POST_ID, SPLIT, TEXT, TITLE
from model.settings import BackboneSettings
from steps.retrain.profile import CHARACTERS, FEATURES, N_IMAGES, profile
from tests.support.tiny import TASK


def test_a_profile_holds_the_training_posts_with_the_towers_mean_states(
    tiny_shards: Shards, tiny_backbone: BackboneSettings
) -> None:
    rows = tiny_shards.posts
    posts = rows[[POST_ID, SPLIT, LABEL]].assign(
        **{
            TITLE: "abc",
            TEXT: "defg",
            IMAGES: [["x", "y"]] * len(rows),
            CREATED_AT: pd.Timestamp("2026-03-01", tz="UTC"),
        }
    )
    labels = rows.loc[rows[SPLIT] == "train", [POST_ID, *TASK.question_ids]]
    found = profile(posts, labels, TASK, tiny_shards, tiny_backbone)
    assert sorted(found[POST_ID]) == sorted(labels[POST_ID])
    assert set(found[CHARACTERS]) == {7}
    assert set(found[N_IMAGES]) == {2}
    expected = labels.set_index(POST_ID).loc[found[POST_ID], "kind"]
    assert found["kind"].fillna(-1).tolist() == expected.fillna(-1).tolist()

    tower = load_backbone(tiny_backbone, load_tokenizer(tiny_backbone), torch.float32).vision_tower.eval()
    one = found.iloc[5]
    frames = sorted(set(rows.set_index(POST_ID).loc[one[POST_ID], FRAMES]))
    with torch.no_grad():
        states = tower(torch.from_numpy(tiny_shards.images(frames)).permute(0, 3, 1, 2) / 127.5 - 1).last_hidden_state
    np.testing.assert_allclose(one[FEATURES], states.mean((0, 1)).numpy(), atol=1e-5)
