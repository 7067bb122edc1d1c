"""What a version was trained on, in numbers: what later posts are compared with. It travels with the version."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import torch

from model.backbone import load_backbone, load_tokenizer
from model.backbones import family_of
from model.data import FRAMES, Shards
from model.device import best_device
from model.schema import CREATED_AT, IMAGES, LABEL, POST_ID, PROBABILITY, SPLIT, TEXT, TITLE, TRAIN
from model.settings import BackboneSettings
from model.task import Task
from steps.tables import rows_of

CHARACTERS, N_IMAGES, FEATURES = "characters", "n_images", "features"
#: So many training posts stand for all: by a hash of their ids, so that the choice is the same everywhere.
PROFILED = 2_000
_CHUNK = 256


def profile(
    posts: pd.DataFrame, labels: pd.DataFrame, task: Task, shards: Shards, backbone: BackboneSettings
) -> pd.DataFrame:
    """One row a training post, `PROFILED` at most: post_id, created_at, characters (of title and text), n_images,
    label and one Int8 column per question (the annotator's), and features: the frozen tower's states, float32 (D,),
    mean over patches and over the distinct frames. Where posts were drawn for people, inclusion_probability.
    """
    train = posts[posts[SPLIT] == TRAIN]
    place = train[POST_ID].map(lambda post_id: hashlib.sha256(f"profile:{post_id}".encode()).hexdigest())
    train = train.loc[place.sort_values().index[:PROFILED]].sort_values(POST_ID)
    table = train[[POST_ID, CREATED_AT, LABEL, *({PROBABILITY} & {*train})]].reset_index(drop=True)
    table[CHARACTERS] = (train[TITLE].str.len() + train[TEXT].str.len()).to_numpy()
    table[N_IMAGES] = train[IMAGES].map(len).to_numpy()
    answers = rows_of(labels, table[POST_ID].tolist(), "labels")
    for question in task.question_ids:
        table[question] = answers[question].astype("Int8").array
    frames = rows_of(shards.posts, table[POST_ID].tolist(), "shards")[FRAMES].map(np.unique)
    table[FEATURES] = list(_features(list(frames), shards, backbone))
    return table


@torch.no_grad()
def _features(frames: list[np.ndarray], shards: Shards, backbone: BackboneSettings) -> np.ndarray:
    """float32 (len(frames), D)."""
    device = best_device()
    network = load_backbone(backbone, load_tokenizer(backbone), torch.float32)
    family = family_of(network.config)
    network.get_submodule(family.tower).to(device).eval()
    numbers = np.unique(np.concatenate(frames))
    chunks = (shards.images(numbers[start : start + _CHUNK]) for start in range(0, len(numbers), _CHUNK))
    pooled = [family.summary(network, family.normalize(torch.from_numpy(chunk).to(device))).cpu() for chunk in chunks]
    images = torch.cat(pooled).numpy()
    return np.stack([images[np.searchsorted(numbers, own)].mean(0) for own in frames])
