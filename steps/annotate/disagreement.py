"""The posts that people should look at first: where annotators disagree, as a table and as Label Studio tasks.

The ranking by a model's probabilities is the self-confidence of confident learning: the probability that
the model gives to the label under suspicion. Source: Northcutt et al., "Confident Learning", 2021.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import pandas as pd

from model.columns import answer_column, probability_column
from model.errors import AnnotationError
from model.files import write_whole
from model.schema import IMAGES, POST_ID, ROOT, TEXT, TITLE
from model.task import Question, Task
from steps.annotate.agreement import checked_labels
from steps.ingest.rows import csv_text
from steps.tables import NoMatchError, rows_of, tell_unmatched

#: Of a queue beside its posts' columns.
SCORE, DISPUTED = "score", "disputed"


def disagreements(tables: Mapping[str, pd.DataFrame], task: Task) -> pd.DataFrame:
    """Posts for which two annotators gave a question different classes, the most disputed first.

    Args:
        tables: label tables by the annotator's name, two or more.

    Returns:
        post_id; score, the share of pairs of annotators that agree in the post's most disputed question (0: none);
        disputed, the ids of the questions in which any differ, separated by blanks; and one column
        `<question>:<annotator>` each with the class's name or None. A missing answer is no disagreement.

    Raises:
        AnnotationError: a table holds a post twice, or a label that is no class of its question.
        NoMatchError: no post of a table is in any other, or no question of any has two answers.
    """
    if len(tables) < 2:
        raise ValueError(f"two or more label tables are needed, found {len(tables)}")
    by_post = {name: checked_labels(table, task, name) for name, table in tables.items()}
    for name, table in by_post.items():
        others = [other for other in by_post if other != name]
        known = {post for other in others for post in by_post[other].index}
        tell_unmatched(table.index, known, f"labels {name}", f"the posts of {', '.join(others)}")
    posts = list(dict.fromkeys(post for table in by_post.values() for post in table.index))
    columns: dict[str, Any] = {}
    agree_QN = []
    compared = 0
    for question in task.questions:
        classes = {name: _classes(table, question, posts) for name, table in by_post.items()}
        for name, found in classes.items():
            columns[f"{question.id}:{name}"] = _names(found, question)
        class_AN = np.stack(list(classes.values()))
        same_N, pairs_N = np.zeros(len(posts)), np.zeros(len(posts))
        for one in range(len(class_AN)):
            for other in range(one):
                both_N = (class_AN[one] >= 0) & (class_AN[other] >= 0)
                pairs_N += both_N
                same_N += both_N & (class_AN[one] == class_AN[other])
        compared += int(pairs_N.sum())
        agree_QN.append(np.divide(same_N, pairs_N, out=np.ones(len(posts)), where=pairs_N > 0))
    if task.questions and not compared:
        raise NoMatchError(
            f"labels {', '.join(tables)}: no post has two answers to a question of task {task.name}: nothing can be "
            "compared. Give labels of the same posts and questions"
        )
    return _ranked(posts, agree_QN, [agree < 1 for agree in agree_QN], columns, task)


def doubtful(
    predictions: pd.DataFrame, labels: pd.DataFrame, task: Task, *, name: str, annotator: str, below: float = 0.5
) -> pd.DataFrame:
    """Posts whose label a trained model doubts, by self-confidence: the least probable label first.

    Args:
        predictions: of evaluate (see `model.columns`).
        labels: the labels under suspicion.
        name, annotator: of the model and of the labels, for the columns.
        below: a label of at least this probability is not in doubt.

    Returns:
        As `disagreements`, with score the lowest probability of any of the post's labels. With more than two classes
        the model tells the probability of its own class only: another label's is at most what remains of 1.

    Raises:
        AnnotationError: as `disagreements`, or the predictions lack a question's columns.
        NoMatchError: no post is in both tables.
    """
    needed = [column(id_) for id_ in task.question_ids for column in (answer_column, probability_column)]
    absent = [column for column in needed if column not in predictions]
    if absent:
        raise AnnotationError(
            f"{name}: no column {absent[0]!r} (found {list(predictions)}); the predictions of evaluate are expected, "
            "of a variant that answers the intermediate questions; of an older AgentPS: run the pipeline again"
        )
    classes = {
        question.id: pd.Categorical(predictions[answer_column(question.id)], categories=question.classes).codes
        for question in task.questions
    }
    own = checked_labels(predictions[[POST_ID]].assign(**classes), task, name)
    model, given = predictions.set_index(POST_ID), checked_labels(labels, task, annotator)
    tell_unmatched(given.index, own.index, f"labels {annotator}", f"the predictions {name}")
    joined = [post for post in own.index if post in given.index]
    columns: dict[str, Any] = {}
    confidence_QN = []
    for question in task.questions:
        predicted = _classes(own, question, joined)
        probability = model.loc[joined, probability_column(question.id)].to_numpy(np.float64)
        label = _classes(given, question, joined)
        confidence = np.where(label == predicted, probability, 1 - probability)
        confidence_QN.append(np.where(label < 0, 1.0, confidence))
        columns[f"{question.id}:{name}"] = _names(predicted, question)
        columns[f"{question.id}:{annotator}"] = _names(label, question)
    return _ranked(joined, confidence_QN, [confidence < below for confidence in confidence_QN], columns, task)


def _classes(table: pd.DataFrame, question: Question, posts: list[str]) -> np.ndarray:
    """Class indices of the posts; -1 where there is none."""
    return table[question.id].reindex(posts).to_numpy(np.int64, na_value=-1)


def _names(classes: np.ndarray, question: Question) -> list[str | None]:
    return [None if index < 0 else question.classes[index] for index in classes]


def _ranked(
    posts: list[str], score_QN: list[np.ndarray], disputed_QN: list[np.ndarray], columns: dict[str, Any], task: Task
) -> pd.DataFrame:
    if not task.questions or not posts:
        return pd.DataFrame(columns=[POST_ID, SCORE, DISPUTED, *columns])
    disputed = np.stack(disputed_QN)
    count_N: np.ndarray = np.asarray(disputed.sum(axis=0))
    ids = [" ".join(id_ for id_, found in zip(task.question_ids, row, strict=True) if found) for row in disputed.T]
    table = pd.DataFrame({POST_ID: posts, SCORE: np.min(np.stack(score_QN), axis=0), DISPUTED: ids} | columns)
    order = np.lexsort((np.array(posts, dtype=str), -count_N, table[SCORE].to_numpy()))
    return table.iloc[order[count_N[order] > 0]].reset_index(drop=True)


# --- out to people


def write_csv(queue: pd.DataFrame, posts: pd.DataFrame, task: Task, path: Path) -> None:
    """The queue with the posts' own columns, and an empty column per question for people's answers."""
    own = rows_of(posts, queue[POST_ID].tolist(), "posts")
    table = queue.reset_index(drop=True).join(own[[TITLE, TEXT, IMAGES]])
    table[IMAGES] = [
        " ".join(os.path.join(root, name) for name in names) for root, names in zip(own[ROOT], own[IMAGES], strict=True)
    ]
    for question in task.questions:
        table[question.id] = ""
    write_whole(path, csv_text(table))


def write_label_studio(queue: pd.DataFrame, posts: pd.DataFrame, task: Task, path: Path, root: Path) -> None:
    """Label Studio tasks, and beside them the labeling interface (`.xml`).

    Images are named as Label Studio serves local files: `root` is to be its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
    """
    own = rows_of(posts, queue[POST_ID].tolist(), "posts").to_dict("records")
    opinions = [column for column in queue.columns if column not in (POST_ID, SCORE, DISPUTED)]
    tasks = []
    for row, post in zip(queue.to_dict("records"), own, strict=True):
        disputed = set(row[DISPUTED].split())
        said = [f"{name}: {row[name]}" for name in opinions if name.partition(":")[0] in disputed]
        paths = [os.path.relpath(os.path.join(post[ROOT], name), root) for name in post[IMAGES]]
        images = [f"/data/local-files/?d={quote(path)}" for path in paths]
        data = {POST_ID: row[POST_ID], TITLE: post[TITLE], TEXT: post[TEXT], IMAGES: images, "said": "\n".join(said)}
        tasks.append({"data": data})
    write_whole(path, json.dumps(tasks, ensure_ascii=False, indent=1))
    lines = ["<View>", f'  <Header value="${TITLE}"/>', f'  <Text name="post" value="${TEXT}"/>']
    lines += [f'  <Image name="album" valueList="${IMAGES}"/>', '  <Text name="said" value="$said"/>']
    for question in task.questions:
        lines.append(f"  <Header value={quoteattr(question.ask)}/>")
        lines.append(f'  <Choices name="{question.id}" toName="post" choice="single">')
        lines += [f"    <Choice value={quoteattr(name)}/>" for name in question.classes]
        lines.append("  </Choices>")
    write_whole(path.with_suffix(".xml"), "\n".join([*lines, "</View>", ""]))
