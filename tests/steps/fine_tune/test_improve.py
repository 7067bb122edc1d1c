"""The methods of the study as a part of a training, on 48 posts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from model.checkpoint_info import read_info
from model.data import Shards
from model.errors import ConfigError, DataError
from model.schema import LABEL_SOURCE, MISSING_REASON, POST_ID, SPLIT, TRAIN
from model.settings import BackboneSettings, LabelMethod
from model.task import load_task
from steps import recipe
from steps.fine_tune import improve, launch
from steps.fine_tune.ahead import check_labels
from steps.fine_tune.improve import improved
from steps.fine_tune.launch import TrainingJob, job_directory, run
from steps.settings import load_settings
from steps.study.cells import ANNOTATOR, Cell
from steps.study.train import _labels
from tests.support.study import inputs_of
from tests.support.tiny import TASK, train_settings, write_posts

IDS = list(TASK.question_ids)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: BackboneSettings) -> Shards:
    """People labelled the first 24 of the training posts."""
    root = tmp_path_factory.mktemp("improve")
    made = write_posts(root, tiny_backbone)
    posts = made.posts.copy()
    train = posts.index[posts[SPLIT] == TRAIN]
    posts.loc[train[24:], IDS] = pd.NA
    posts.to_parquet(root / "posts.parquet", index=False)
    return Shards(root)


def labels_of(shards: Shards) -> pd.DataFrame:
    """The annotator's: `bright` is always 1, `kind` is missing for every third post."""
    train = shards.posts[shards.posts[SPLIT] == TRAIN].reset_index(drop=True)
    table = pd.DataFrame({POST_ID: train[POST_ID]}).assign(**{id_: pd.array([1] * len(train), "Int8") for id_ in IDS})
    table.loc[::2, "calm"] = 0
    table.loc[::3, "kind"] = pd.NA
    return table.assign(**{LABEL_SOURCE: "openai:gpt-4o", MISSING_REASON: None})


def job_of(shards: Shards, backbone: BackboneSettings, method: LabelMethod, **changes: Any) -> TrainingJob:
    values: dict[str, Any] = {
        "task": TASK,
        "train": train_settings(variant="agentps_answers", epochs=1, labels=method),
        "backbone": backbone,
        "resolved_backbone": backbone,
        "shards": shards.root,
        "provenance": {},
    }
    return TrainingJob(**values | changes)


@pytest.mark.parametrize("method", ["gold", "weighted", "dropped", "relabelled"])
def test_a_training_learns_from_the_labels_that_the_study_trains_the_method_on(
    shards: Shards, tiny_backbone: BackboneSettings, tmp_path: Path, method: LabelMethod
) -> None:
    annotated = labels_of(shards)
    made, weights, changed = improved(job_of(shards, tiny_backbone, method), annotated, tmp_path / "fine_tune")
    assert made[POST_ID].tolist() == annotated[POST_ID].tolist()
    assert set(made[LABEL_SOURCE]) == {"openai:gpt-4o"}

    annotated.to_parquet(tmp_path / "labels.parquet", index=False)
    train = train_settings(variant="agentps_answers", epochs=1)
    inputs = inputs_of(shards, tiny_backbone, tmp_path, train=train).model_copy(update={"gold_share": 1.0})
    cell = Cell(
        variant="agentps_answers", seed=0, train_posts=48, labels=ANNOTATOR, method=method, questions=tuple(IDS)
    )
    people = shards.posts.loc[shards.posts[SPLIT] == TRAIN, [POST_ID, *IDS]].reset_index(drop=True)
    expected, task = _labels(cell, people, TASK, train, shards, inputs, tmp_path / "cell")
    pd.testing.assert_frame_equal(made[[POST_ID, *IDS]], expected[[POST_ID, *IDS]], check_dtype=False)
    assert weights == {question.id: question.weight for question in task.questions}
    assert (weights != {question.id: question.weight for question in TASK.questions}) == (method == "weighted")
    given = people["bright"].notna()
    assert (made.loc[given.to_numpy(), "bright"] == people.loc[given, "bright"]).all(), "people's label wins"
    assert changed["bright"] > 0


def test_the_trainings_of_a_method_are_kept_and_not_done_again(
    shards: Shards, tiny_backbone: BackboneSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(shards, tiny_backbone, "relabelled")
    starts, told = [], []
    fit = launch.fit
    monkeypatch.setattr(launch, "fit", lambda *given, **by: (told.append(by["begun"]), fit(*given, **by))[1])

    def spied(begun: TrainingJob, *arguments: Any) -> Any:
        directory, result = run(begun, *arguments)
        starts.append((begun.start, directory))
        return directory, result

    monkeypatch.setattr(improve, "run", spied)
    first = improved(job, labels_of(shards), tmp_path)
    (none, first_directory), (start, _) = starts
    assert none is None
    assert start == first_directory, "the second training goes on from the first"
    assert told == [False, True]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/trainer/checkpoint-*/trainer_state.json")}
    assert len({path.parents[2] for path in kept}) == 2, "two trainings, each with its folder"
    second = improved(job, labels_of(shards), tmp_path)
    pd.testing.assert_frame_equal(first[0], second[0])
    again = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/trainer/checkpoint-*/trainer_state.json")}
    assert again == kept


def test_weights_of_questions_change_what_is_learned_and_not_the_task(
    shards: Shards, tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    labels = labels_of(shards)
    plain, other = (
        run(job_of(shards, tiny_backbone, "weighted", weights=weights), labels, tmp_path)
        for weights in (None, {"bright": 0.0, "kind": 0.0, "calm": 0.1})
    )
    assert plain[0] != other[0]
    assert [row.get("loss") for row in plain[1].history] != [row.get("loss") for row in other[1].history]
    info = read_info(other[0])
    assert info.task == TASK
    assert info.train.labels == "weighted"


def test_plain_labels_and_no_weights_change_no_finished_training_s_name(
    shards: Shards, tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    job, labels = job_of(shards, tiny_backbone, "plain"), labels_of(shards)
    named = recipe.key(
        recipe.TRAINING,
        task=recipe.options(TASK),
        train={name: value for name, value in recipe.options(job.train).items() if name != "labels"},
        backbone=job_directory_backbone(tiny_backbone),
        start=None,
        shards=recipe.shards_digest(Shards(shards.root), TASK),
        labels=recipe.table_digest(labels),
    )
    assert job_directory(job, labels, tmp_path).name == named, "as before there were the two options"
    weights = dict.fromkeys(IDS, 1.0)
    names = {
        job_directory(other, labels, tmp_path).name
        for other in (job, job.model_copy(update={"weights": weights}), job_of(shards, tiny_backbone, "gold"))
    }
    assert len(names) == 3


def job_directory_backbone(backbone: BackboneSettings) -> str:
    from steps.fine_tune.backbone import fingerprint

    return fingerprint(backbone)


def test_a_question_without_people_s_labels_ends_a_method_with_what_to_do(
    tiny_shards: Shards, tiny_backbone: BackboneSettings, tmp_path: Path
) -> None:
    root = tmp_path / "shards"
    made = write_posts(root, tiny_backbone)
    made.posts.assign(calm=pd.array([None] * len(made.posts), dtype="Int8")).to_parquet(root / "posts.parquet")
    found = Shards(root)
    with pytest.raises(DataError, match=r"gold: no training post has people's label for calm: .*set it to plain"):
        improved(job_of(found, tiny_backbone, "gold"), labels_of(found), tmp_path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"annotator": "human"}, "people's labels are all there is"),
        ({"variant": "vanilla"}, "the variant vanilla learns no process labels"),
    ],
)
def test_a_method_that_has_nothing_to_work_on_is_told_before_anything_is_paid(
    options: dict[str, Any], expected: str
) -> None:
    task = load_task("ucc")
    settings = load_settings({"fine_tune": {"labels": "gold"}, **options})
    with pytest.raises(ConfigError, match=rf"fine_tune\.labels gold: {expected}.*: set it to plain"):
        check_labels(settings, task)
    check_labels(load_settings(options), task)


def test_relabelling_a_task_of_too_many_combinations_is_told_before_anything_is_paid() -> None:
    task = load_task("ucc")
    questions = tuple(task.questions[0].model_copy(update={"id": f"q{n}"}) for n in range(14))
    many = task.model_copy(update={"questions": questions})
    with pytest.raises(ConfigError, match="every combination of answers, and the task ucc has 16,384; at most 10,000"):
        check_labels(load_settings({"fine_tune": {"labels": "relabelled"}}), many)
    check_labels(load_settings({"fine_tune": {"labels": "gold"}}), many)
