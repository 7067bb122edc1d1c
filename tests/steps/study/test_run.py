"""Cells trained for real on 48 posts: what is finished is not trained again, what it depends on is in its key."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from model.agentps import AgentPS
from model.checkpoint import trainable_state
from model.data import Shards
from model.errors import DataError
from model.schema import POST_ID, SPLIT, TRAIN
from model.settings import BackboneSettings
from model.task import load_task
from steps import recipe
from steps.fine_tune.backbone import fingerprint
from steps.paths import REPOSITORY
from steps.study import train
from steps.study.cells import ANNOTATOR, NONE, PEOPLE, Cell, cell_of, cells_of_tables, only
from steps.study.records import add_record, read_records
from steps.study.run import Study, cell_key
from steps.study.settings import load_study_settings
from steps.study.train import Inputs, _chosen, train_cell
from tests.support.study import inputs_of
from tests.support.tiny import TASK, train_settings, write_posts


def annotators_labels(shards: Shards) -> pd.DataFrame:
    train = shards.posts[shards.posts[SPLIT] == TRAIN]
    return train[[POST_ID, *TASK.question_ids]].assign(bright=pd.array([1] * len(train), dtype="Int8"))


@pytest.fixture
def inputs(tiny_shards: Shards, tiny_backbone: BackboneSettings, tmp_path: Path) -> Inputs:
    annotators_labels(tiny_shards).to_parquet(tmp_path / "labels.parquet", index=False)
    return inputs_of(tiny_shards, tiny_backbone, tmp_path, train=train_settings(epochs=1))


def study(inputs: Inputs, **changes: Any) -> Study:
    return Study(inputs.model_copy(update=changes), inputs.work.parent / "records.jsonl")


def test_a_finished_cell_is_not_trained_again_and_a_killed_study_trains_the_rest(inputs: Inputs) -> None:
    cells = [cell_of(TASK, "vanilla", 24, NONE), cell_of(TASK, "agentps", 48, PEOPLE)]
    runner = study(inputs)
    assert runner.run(cells[:1], workers=1) == 1
    first = runner.record(cells[0])
    assert first is not None
    assert runner.run([*cells, *cells], workers=1) == 1
    assert study(inputs).run(cells, workers=1) == 0, "also from the records alone"
    assert runner.record(cells[0]) == first
    second = runner.record(cells[1])
    assert second is not None
    assert {"average_precision", "f1", "recall_at_p80", "accuracy_kind"} <= second.metrics.keys()
    assert len(second.ranks) == 8, "one per labelled test post"
    assert not list(inputs.work.glob("*/")), "finished trainings leave no checkpoints"


def test_the_second_training_of_relabelled_begins_with_the_weights_that_the_first_left(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, begun, told = [], [], []

    def fit(network: AgentPS, *arguments: Any, **options: Any) -> Any:
        told.append(options["begun"])
        begun.append({name: weight.clone() for name, weight in trainable_state(network).items()})
        result = train_fit(network, *arguments, **options)
        trained.append({name: weight.clone() for name, weight in trainable_state(network).items()})
        return result

    train_fit = train.fit
    monkeypatch.setattr(train, "fit", fit)
    train_cell(cell_of(TASK, "agentps_answers", 48, ANNOTATOR, method="relabelled"), "key", inputs, inputs.work)
    first, second, last = begun
    assert told == [False, True, False]
    assert all(torch.equal(second[name], weight) for name, weight in trained[0].items())
    assert all(torch.equal(last[name], weight) for name, weight in first.items()), "the third begins from nothing"


@pytest.mark.parametrize("method", ["gold", "weighted", "dropped", "relabelled"])
def test_every_method_trains(inputs: Inputs, method: Any) -> None:
    cell = cell_of(TASK, "agentps_answers", 48, ANNOTATOR, method=method)
    record = train_cell(cell, "key", inputs, inputs.work)
    right = record.provenance["annotator_right"]
    # `bright` is 1 for every post, right in two of three; people's own labels of half of the posts mend a part
    if method in ("gold", "weighted"):
        assert 0.75 < right["bright"] < 1
    if method == "dropped":
        assert right["bright"] == 1


def test_a_made_up_annotator_is_as_right_as_its_name_says(inputs: Inputs) -> None:
    record = train_cell(cell_of(TASK, "multitask", 48, "symmetric-60"), "key", inputs, inputs.work)
    assert np.mean(list(record.provenance["annotator_right"].values())) == pytest.approx(0.6, abs=0.15)


def test_a_cell_of_one_question_answers_it_alone(inputs: Inputs) -> None:
    record = train_cell(only(cell_of(TASK, "agentps", 48, PEOPLE), "kind"), "key", inputs, inputs.work)
    assert [name for name in record.metrics if name.startswith("accuracy_")] == ["accuracy_kind"]


def test_the_key_changes_with_what_the_cell_depends_on_and_with_nothing_else(
    inputs: Inputs,
    tiny_shards: Shards,
    tiny_backbone: BackboneSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    people, annotated = cell_of(TASK, "agentps", 48, PEOPLE), cell_of(TASK, "agentps", 48, ANNOTATOR)
    gold = annotated.model_copy(update={"method": "gold"})
    of_people, of_annotator = study(inputs).key(people), study(inputs).key(annotated)
    assert len({study(inputs).key(cell) for cell in (people, annotated, gold, people.beside(1))}) == 4

    other = tmp_path / "other.parquet"
    annotators_labels(tiny_shards).assign(calm=pd.array([0] * 48, dtype="Int8")).to_parquet(other, index=False)
    relabelled = study(inputs, labels=other)
    assert relabelled.key(people) == of_people, "people's labels are not the annotator's"
    assert relabelled.key(annotated) != of_annotator

    assert study(inputs, gold_share=0.2).key(annotated) == of_annotator
    assert study(inputs, gold_share=0.2).key(gold) != study(inputs).key(gold)
    assert study(inputs, work=tmp_path / "elsewhere").key(people) == of_people
    assert study(inputs, train=train_settings(epochs=1, seed=9, variant="vanilla")).key(people) == of_people
    more = write_posts(tmp_path / "more", tiny_backbone, train=49)
    pictures = write_posts(tmp_path / "pictures", tiny_backbone, image_seed=9)
    for changes in (
        {"train": train_settings(epochs=2)},
        {"backbone_id": "another"},
        {"task": TASK.model_copy(update={"version": 2})},
        {"shards": more.root},
        {"shards": pictures.root},
    ):
        assert study(inputs, **changes).key(people) != of_people, changes
    monkeypatch.setattr(recipe, "TRAINING", recipe.TRAINING + 1)
    assert study(inputs).key(people) != of_people


#: What the pipeline makes of the embedded sample: its posts in shards, by `configs/*.yaml`; their images; the labels of
#: the simulated annotator.
POSTS = {
    "study": "66ca8d6066dcf84b746445ce5c31bdba5a52f25f869d42812a7db9cd9034727a",
    "study-once": "97bdb06893d69092ef660e7b50865e8b09428e398d91aab5545e491a49d82bfd",
    "study-pooled": "66ca8d6066dcf84b746445ce5c31bdba5a52f25f869d42812a7db9cd9034727a",
}
IMAGES = "6007ffa0897ddbc8b95debd0de9339d8eb758c7dbc54e8302d650c6f33acd080"
LABELS = "b011d28e771072a4184601462f6f61901e5605d82e1b71c6af8f961f6bc700d8"


@pytest.mark.parametrize("config", POSTS)
def test_every_cell_of_a_committed_study_has_its_record(config: str, tmp_path: Path) -> None:
    """So `make study` has nothing to train, as long as posts and labels are these."""
    settings = load_study_settings(yaml.safe_load((REPOSITORY / "configs" / f"{config}.yaml").read_text("utf-8")))
    task = load_task(settings.task)
    inputs = Inputs(
        shards=tmp_path, labels=tmp_path, task=task, train=settings.fine_tune, backbone=settings.backbone,
        backbone_id=fingerprint(settings.backbone), evaluate=settings.evaluate, gold_share=settings.study.gold_share,
        work=tmp_path,
    )  # fmt: skip
    shards = {"posts": POSTS[config], "images": IMAGES, "sequence": recipe.options(settings.preprocess)}
    records = read_records(REPOSITORY / settings.study.output / "records.jsonl")
    cells = {cell for of_table in cells_of_tables(settings.study, task).values() for cell in of_table}
    assert {cell_key(cell, inputs, shards, LABELS): cell for cell in cells} == {
        key: record.cell for key, record in records.items()
    }


def test_a_smaller_part_of_the_training_posts_lies_within_a_larger_one(tiny_shards: Shards) -> None:
    posts = tiny_shards.posts
    small, large = (_chosen(posts, count) for count in (10, 30))
    is_train = (posts[SPLIT] == TRAIN).to_numpy()
    assert small[is_train].sum() == 10
    assert large[is_train].sum() == 30
    assert (large | ~small).all()
    assert small[~is_train].all(), "val and test stay whole"


def test_more_posts_than_there_are_is_an_error(inputs: Inputs) -> None:
    with pytest.raises(DataError, match=r"study\.train_posts: 49 posts, train has 48"):
        study(inputs).run([cell_of(TASK, "vanilla", 49, NONE)], workers=1)


def test_records_read_back_as_they_were_written_beside_those_of_others(inputs: Inputs) -> None:
    cell = Cell(variant="siglip", seed=3, train_posts=16, labels=NONE, questions=())
    record = train_cell(cell, "k", inputs, inputs.work)
    path, lock = inputs.work / "records.jsonl", inputs.work / "lock"
    other = record.model_copy(update={"key": "a"})
    with ThreadPoolExecutor(8) as pool:  # each waits for the others' turn
        list(pool.map(lambda one: add_record(path, one, lock), [record, other] * 8))
    assert list(read_records(path).items()) == [("a", other), ("k", record)]


def test_a_damaged_line_of_the_records_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("<<<<<<< HEAD\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"records\.jsonl, line 1: not a study's record .* from git again"):
        read_records(path)
