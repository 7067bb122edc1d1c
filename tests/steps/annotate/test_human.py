"""People's labels have the form of the annotator's."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from model.task import load_task
from steps.annotate.human import human_labels

IDS = load_task("ucc").question_ids


def posts() -> pd.DataFrame:
    table = pd.DataFrame({"post_id": ["a", "b", "c", "d"], "split": ["train", "test", "train", "train"]})
    for id_ in IDS:
        table[id_] = pd.array([1, 1, None, None], dtype="Int8")
    table.loc[3, "ugc"] = 0
    return table


def test_labels_are_taken_in_order_with_a_reason_only_where_all_are_missing() -> None:
    labels = human_labels(posts(), load_task("ucc"), ("train", "val"))
    assert list(labels.columns) == ["post_id", *IDS, "label_source", "missing_reason"]
    assert labels["post_id"].tolist() == ["a", "c", "d"]
    assert labels["label_source"].unique().tolist() == ["human"]
    assert labels["missing_reason"].tolist() == [None, "not labelled", None]
    assert labels["ugc"].tolist() == [1, pd.NA, 0]
    assert all(str(labels[id_].dtype) == "Int8" for id_ in IDS)


def test_a_manifest_without_process_labels_gives_missing_ones() -> None:
    labels = human_labels(posts()[["post_id", "split"]], load_task("ucc"), ("test",))
    assert labels[list(IDS)].isna().all(axis=None)
    assert labels["missing_reason"].tolist() == ["not labelled"]


def test_a_task_without_questions_has_nothing_missing() -> None:
    task = load_task("ucc").model_copy(update={"questions": ()})
    labels = human_labels(posts(), task, ("train",))
    assert list(labels.columns) == ["post_id", "label_source", "missing_reason"]
    assert labels["missing_reason"].tolist() == [None, None, None]


def test_labels_are_the_same_after_a_parquet_round_trip(tmp_path: Path) -> None:
    posts().to_parquet(tmp_path / "posts.parquet")
    again = human_labels(pd.read_parquet(tmp_path / "posts.parquet"), load_task("ucc"), ("train",))
    pd.testing.assert_frame_equal(again, human_labels(posts(), load_task("ucc"), ("train",)), check_dtype=False)
