"""The posts that people should look at first: where annotators disagree, as a table and as Label Studio tasks.

The ranking by a model's probabilities is the self-confidence of confident learning: the probability that
the model gives to the label under suspicion. Source: Northcutt et al., "Confident Learning", 2021.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import pandas as pd

from model.columns import answer_column, probability_column
from model.errors import AnnotationError, ManifestError
from model.schema import IMAGES, POST_ID, TEXT, TITLE
from model.task import Question, Task
from steps.annotate.agreement import checked_labels

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
    """
    if len(tables) < 2:
        raise ValueError(f"two or more label tables are needed, found {len(tables)}")
    by_post = {name: checked_labels(table, task, name) for name, table in tables.items()}
    posts = list(dict.fromkeys(post for table in by_post.values() for post in table.index))
    columns: dict[str, Any] = {}
    agree_QN = []
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
        agree_QN.append(np.divide(same_N, pairs_N, out=np.ones(len(posts)), where=pairs_N > 0))
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
    """The queue with the posts' own columns, and an empty column a question for people's answers."""
    table = queue.merge(posts[[POST_ID, TITLE, TEXT, IMAGES]], on=POST_ID, how="left")
    for column in (TITLE, TEXT):  # people's own words: a spreadsheet would run one that begins as a formula
        table[column] = ["'" + text if text[:1] in ("=", "+", "-", "@", "\t") else text for text in table[column]]
    table[IMAGES] = [" ".join(paths) for paths in table[IMAGES]]
    for question in task.questions:
        table[question.id] = ""
    table.to_csv(path, index=False, quoting=csv.QUOTE_MINIMAL)


def write_label_studio(queue: pd.DataFrame, posts: pd.DataFrame, task: Task, path: Path, root: Path) -> None:
    """Label Studio tasks, and beside them the labeling interface (`.xml`).

    Images are named as Label Studio serves local files: `root` is to be its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
    """
    by_id = posts.set_index(POST_ID)
    opinions = [column for column in queue.columns if column not in (POST_ID, SCORE, DISPUTED)]
    tasks = []
    for row in queue.to_dict("records"):
        post = by_id.loc[row[POST_ID]]
        disputed = set(row[DISPUTED].split())
        said = [f"{name}: {row[name]}" for name in opinions if name.partition(":")[0] in disputed]
        images = [f"/data/local-files/?d={quote(os.path.relpath(image, root))}" for image in post[IMAGES]]
        data = {POST_ID: row[POST_ID], TITLE: post[TITLE], TEXT: post[TEXT], IMAGES: images, "said": "\n".join(said)}
        tasks.append({"data": data})
    path.write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")
    lines = ["<View>", f'  <Header value="${TITLE}"/>', f'  <Text name="post" value="${TEXT}"/>']
    lines += [f'  <Image name="album" valueList="${IMAGES}"/>', '  <Text name="said" value="$said"/>']
    for question in task.questions:
        lines.append(f"  <Header value={quoteattr(question.ask)}/>")
        lines.append(f'  <Choices name="{question.id}" toName="post" choice="single">')
        lines += [f"    <Choice value={quoteattr(name)}/>" for name in question.classes]
        lines.append("  </Choices>")
    path.with_suffix(".xml").write_text("\n".join([*lines, "</View>", ""]), encoding="utf-8")


# --- back as gold


def read_answers(path: Path, task: Task) -> dict[str, dict[str, int]]:
    """People's answers: post_id -> question id -> class index, of a filled CSV or of Label Studio's JSON export.

    Where several people answered a question of a post differently it is left out, as is one that nobody answered.

    Raises:
        ManifestError: the file cannot be read, or holds an answer that is no class of its question.
    """
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    try:
        if path.suffix == ".json":
            for item in json.loads(path.read_text(encoding="utf-8")):
                for annotation in item.get("annotations", []):
                    for choice in [] if annotation.get("was_cancelled") else annotation["result"]:
                        if choice.get("type") == "choices":
                            found[item["data"][POST_ID]][choice["from_name"]].update(choice["value"]["choices"])
        else:
            for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")):
                for id_ in task.question_ids:
                    if (row.get(id_) or "").strip():
                        found[row[POST_ID]][id_].add(row[id_].strip())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(
            f"answers {path}: {error!r}; a filled queue (CSV) or Label Studio's JSON export is expected"
        ) from error
    answers: dict[str, dict[str, int]] = {}
    for post, by_question in found.items():
        for question in task.questions:
            given = by_question.get(question.id, set())
            indices = {_index(path, post, question, answer) for answer in given}
            if len(indices) == 1:
                answers.setdefault(post, {})[question.id] = indices.pop()
    return answers


def _index(path: Path, post: str, question: Question, answer: str) -> int:
    if answer in question.classes:
        return question.classes.index(answer)
    if answer.isdecimal() and int(answer) < len(question.classes):
        return int(answer)
    raise ManifestError(
        f"answers {path}: post {post}, question {question.id}: {answer!r} is none of {', '.join(question.classes)}"
    )


def add_gold(manifest: Path, answers: Mapping[str, Mapping[str, int]], out: Path) -> int:
    """Write `manifest` with people's answers as its process labels; all else stays as it is.

    Returns:
        The number of posts that got an answer.

    Raises:
        ManifestError: `out` lies in another folder (images are named relative to it) or has another suffix, a file
            cannot be read or written, or an answer's post is not in the manifest.
    """
    if out.resolve().parent != manifest.resolve().parent or out.suffix != manifest.suffix:
        raise ManifestError(
            f"{out}: the new manifest must lie in the folder of {manifest}, with the suffix {manifest.suffix}: "
            "its images are named from there"
        )
    left = set(answers)
    try:
        if manifest.suffix == ".parquet":
            table = pd.read_parquet(manifest)
            left -= set(table[POST_ID])
            for id_ in dict.fromkeys(id_ for given in answers.values() for id_ in given):
                old = table[id_] if id_ in table else pd.Series(None, index=table.index, dtype=object)
                new = [answers.get(post, {}).get(id_, cell) for post, cell in zip(table[POST_ID], old, strict=True)]
                table[id_] = pd.array([None if pd.isna(cell) else cell for cell in new], dtype="Int64")
        else:
            lines = []
            for line in manifest.read_text(encoding="utf-8-sig").split("\n"):  # a title may hold other line ends
                row: dict[str, Any] = json.loads(line) if line.strip() else {}
                post = str(row.get(POST_ID))
                left.discard(post)
                lines.append(json.dumps(row | dict(answers[post]), ensure_ascii=False) if post in answers else line)
        if left:
            raise ManifestError(
                f"manifest {manifest}: {len(left)} answered posts are not in it, for example {sorted(left)[0]!r}; "
                "give the manifest that the queue was made from"
            )
        if manifest.suffix == ".parquet":
            table.to_parquet(out)
        else:
            out.write_text("\n".join(lines), encoding="utf-8")
    except (OSError, ValueError, KeyError, AttributeError) as error:  # no JSON or Parquet, or rows of another form
        raise ManifestError(f"manifest {manifest}: {error!r}; a manifest that ingest reads is expected") from error
    return len(answers)
