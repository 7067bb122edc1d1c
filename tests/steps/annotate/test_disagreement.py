"""The queue of disputed posts goes out to people."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from model.errors import AnnotationError
from steps.annotate.disagreement import disagreements, doubtful, write_csv, write_label_studio
from steps.annotate.gold import read_answers
from steps.tables import NoMatchError
from tests.support.tasks import QUEUE as TASK


def labels(**columns: list[Any]) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    table = pd.DataFrame({"post_id": [f"p{number}" for number in range(n)]})
    return table.assign(**{name: pd.array(values, dtype="Int8") for name, values in columns.items()})


def posts(n: int, folder: Path) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "post_id": [f"p{number}" for number in range(n)],
            "title": ["=cmd()\rp9,1,2", 'a,b\n"c"', *["t"] * n][:n],
            "text": "x",
            "images": [[f"images/{number} 1.jpg"] for number in range(n)],
            "root": str(folder),
        }
    )


def test_posts_are_ranked_by_how_few_pairs_of_annotators_agree() -> None:
    three = {
        "one": labels(ugc=[0, 1, 1, None], kind=[0, 0, 2, 1]),
        "two": labels(ugc=[0, 1, 1, 1], kind=[0, 1, 2, 1]),
        "three": labels(ugc=[0, 0, 1, 0], kind=[0, 2, 2, 1]),
    }
    found = disagreements(three, TASK)
    # p1: ugc 1 of 3 pairs, kind none; p3: one of ugc's two answers each; p0 and p2 agree
    assert found["post_id"].tolist() == ["p1", "p3"]
    assert found["score"].tolist() == [0.0, 0.0]
    assert found["disputed"].tolist() == ["ugc kind", "ugc"]
    assert found.loc[0, "kind:three"] == "c"
    assert pd.isna(found.loc[1, "ugc:one"])


def test_a_post_of_one_table_only_and_a_question_without_a_column_dispute_nothing() -> None:
    found = disagreements({"one": labels(ugc=[0, 1]), "two": labels(ugc=[0])}, TASK)
    assert found.empty


def test_tables_that_have_nothing_in_common_are_an_error_and_not_no_disagreement() -> None:
    """Two tables of other posts said that nothing is disputed."""
    ours, theirs = labels(ugc=[0, 1], kind=[0, 1]), labels(ugc=[1, 0], kind=[0, 1])
    others = theirs.assign(post_id=["x0", "x1"])
    with pytest.raises(
        NoMatchError, match="labels one: none of its 2 posts is among the posts of two: found 'p0', 'p1'"
    ):
        disagreements({"one": ours, "two": others}, TASK)
    with pytest.raises(NoMatchError, match="labels two: none of its 2 posts is among the posts of one, three"):
        disagreements({"one": ours, "two": others, "three": theirs}, TASK)
    with pytest.raises(NoMatchError, match="labels one, two: no post has two answers to a question of task"):
        disagreements({"one": ours.drop(columns="kind"), "two": theirs.drop(columns="ugc")}, TASK)


def test_a_model_doubts_the_labels_that_it_finds_least_probable() -> None:
    predictions = pd.DataFrame(
        {
            "post_id": ["p0", "p1", "p2"],
            "answer_ugc": ["yes", "no", "yes"],
            "probability_ugc": [0.9, 0.8, 0.6],
            "answer_kind": ["c", "a", "b"],
            "probability_kind": [0.7, 0.8, 0.5],
        }
    )
    given = labels(ugc=[0, 1, None], kind=[2, 0, 0])
    found = doubtful(predictions, given, TASK, name="model", annotator="llm")
    # self-confidence of ugc .1, .2, none; of kind .7, .8, at most .5
    assert found["post_id"].tolist() == ["p0", "p1"]
    np.testing.assert_allclose(found["score"], [0.1, 0.2])
    assert found["ugc:model"].tolist() == ["yes", "no"]
    assert found["ugc:llm"].tolist() == ["no", "yes"]
    assert doubtful(predictions, given, TASK, name="m", annotator="l", below=0.6)["post_id"].tolist() == [
        "p0",
        "p1",
        "p2",
    ]


def queue() -> pd.DataFrame:
    return disagreements({"one": labels(ugc=[0, 1], kind=[0, 0]), "two": labels(ugc=[1, 1], kind=[0, 2])}, TASK)


def test_a_filled_csv_comes_back_as_gold_and_runs_no_formula(tmp_path: Path) -> None:
    path = tmp_path / "queue.csv"
    write_csv(queue(), posts(2, tmp_path), TASK, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["title"] for row in rows} == {"'=cmd()\rp9,1,2", 'a,b\n"c"'}
    assert all(row["ugc"] == row["kind"] == "" for row in rows)
    for row in rows:
        row |= {"ugc": "yes", "kind": "1"} if row["post_id"] == "p0" else {"kind": " c "}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert read_answers(path, TASK) == {"p0": {"ugc": 1, "kind": 1}, "p1": {"kind": 2}}


def test_label_studio_tasks_name_the_images_below_the_root_and_the_interface_is_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "queue.json"
    write_label_studio(queue(), posts(2, tmp_path), TASK, path, tmp_path)
    tasks = json.loads(path.read_text())
    data = {task["data"]["post_id"]: task["data"] for task in tasks}
    assert data["p0"]["images"] == ["/data/local-files/?d=images/0%201.jpg"]
    assert data["p0"]["said"] == "ugc:one: no\nugc:two: yes"
    view = ElementTree.fromstring(path.with_suffix(".xml").read_text())
    choices = {found.get("name"): [choice.get("value") for choice in found] for found in view.iter("Choices")}
    assert choices == {"ugc": ["no", "yes"], "kind": ["a", "b", "c"]}
    assert 'Own "photo" & <text>?' in [header.get("value") for header in view.iter("Header")]


def test_tables_of_another_form_are_named() -> None:
    good = labels(ugc=[0, 1], kind=[0, 2])
    predictions = good.assign(
        answer_ugc=["no", "yes"], probability_ugc=0.9, answer_kind=["a", "c"], probability_kind=0.9
    )
    for wrong, message in (
        (good.assign(ugc=["yes", "no"]), "one: question ugc: .*whole numbers are expected"),
        (good.assign(kind=[0, 3]), "one: row 2, post 'p1', question kind: 3 is no class index of 0 to 2"),
        (good.assign(post_id="p0"), "one: row 2, post 'p0', stands there twice"),
    ):
        with pytest.raises(AnnotationError, match=message):
            disagreements({"one": wrong, "two": good}, TASK)
        with pytest.raises(AnnotationError, match=message):
            doubtful(predictions, wrong, TASK, name="model", annotator="one")
    old = good.assign(class_ugc=[0, 1], answer_ugc=[0.1, 0.9], class_kind=[0, 2], answer_kind=[0.9, 0.9])
    for lacking, column in ((predictions.drop(columns="answer_kind"), "answer_kind"), (old, "probability_ugc")):
        with pytest.raises(AnnotationError, match=rf"model: no column '{column}' \(found .*run the pipeline again"):
            doubtful(lacking, good, TASK, name="model", annotator="one")
