"""People's answers to a queue come back as gold: the process labels of a manifest."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.errors import ManifestError
from model.files import replacing
from model.post import columns_of, parse, post_id_of, row_of, shown
from model.schema import POST_ID
from model.task import Task
from steps.ingest.rows import is_csv, json_object, json_value, opened, read_rows, refuse_input
from steps.retrain.reviewed import reviewed_answers
from steps.retrain.stored import is_store
from steps.secrets import masked, resolved

#: post_id -> question id -> class index
Answers = dict[str, dict[str, int]]


def read_answers(place: str | Path, task: Task) -> Answers:
    """People's answers, of a filled CSV (JSON Lines and Parquet do, too), of Label Studio's JSON export, or of the
    store whose review desk has them, by its URL.

    Where several people answered a question of a post differently it is left out, as is one that nobody answered.

    Raises:
        ManifestError: the file cannot be read, holds no answer, or one that is no class of its question.
    """
    if is_store(str(place)):
        return _reviewed(str(place), task)
    path, row = Path(place), row_of(task, (POST_ID, *task.question_ids))
    if path.suffix == ".json":
        rows = _exported(path)
    else:
        numbered, columns = read_rows(path, columns_of(row), (POST_ID,), "answers", text=True)
        rows = iter(numbered)
        for column in columns:  # others are the queue's own
            if column not in task.question_ids and column.strip().lower() in task.question_ids:
                raise ManifestError(f"answers {path}: the column {column!r}: write {column.strip().lower()!r}")
    found: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for number, cells in rows:
        answers, faults = parse(row, cells, text=is_csv(path))
        if answers is None:
            raise ManifestError(f"answers {path}:{number}: post {shown(cells.get(POST_ID))}: {'; '.join(faults)}")
        given = answers.model_dump(by_alias=True)
        post_id = given.pop(POST_ID)
        for id_, answer in given.items():
            if answer is not None:
                found[post_id][id_].add(answer)
    if not found:
        raise ManifestError(f"answers {path}: no answer to any of {', '.join(task.question_ids)}: are these its names?")
    agreed = {post: {id_: min(said) for id_, said in given.items() if len(said) == 1} for post, given in found.items()}
    if not any(agreed.values()):
        raise ManifestError(f"answers {path}: people answered each question of each post differently: nothing is left")
    return {post: given for post, given in agreed.items() if given}


def _reviewed(url: str, task: Task) -> Answers:
    sizes = {question.id: len(question.classes) for question in task.questions}
    answers = reviewed_answers(resolved(url, "--answers"))
    for post_id, given in answers.items():
        for name, index in given.items():
            if not 0 <= index < sizes.get(name, 0):
                raise ManifestError(
                    f"answers of post {shown(post_id)}: {name} has no class {index} in task {task.name}: give the task "
                    "that the desk was started with"
                )
    if not answers:
        raise ManifestError(f"answers {masked(url)}: nobody at the desk has answered a question of a post yet")
    return answers


def _exported(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One row per choice that a person made; the number is that of the Label Studio task in the file."""
    try:
        with opened(path, "answers") as file:
            items = json_value(file.read())
        for number, item in enumerate(items, start=1):
            for annotation in item.get("annotations", []):
                for choice in [] if annotation.get("was_cancelled") else annotation["result"]:
                    if choice.get("type") == "choices":
                        for name in choice["value"]["choices"]:
                            yield number, {POST_ID: item["data"][POST_ID], choice["from_name"]: name}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(
            f"answers {path}: {error!r}; a filled queue (CSV) or Label Studio's JSON export is expected"
        ) from error


def add_gold(
    manifest: Path, answers: Mapping[str, Mapping[str, int]], task: Task, out: Path, *, others: bool = False
) -> int:
    """Write `manifest` with people's answers as its process labels; all else stays as it is, types included.

    A column that holds the names of classes gets names, any other one indices.

    Args:
        others: there may be answers to posts of other manifests, too: a store has those of all.

    Returns:
        The number of posts that got an answer.

    Raises:
        ManifestError: `out` is the manifest, lies in another folder (images are named relative to it) or has another
            suffix; a file cannot be read or written; or an answer's post is not in the manifest.
    """
    refuse_input(out, manifest)
    if out.resolve().parent != manifest.resolve().parent or out.suffix != manifest.suffix:
        raise ManifestError(
            f"{out}: the new manifest must lie in the folder of {manifest}, with the suffix {manifest.suffix}: "
            "its images are named from there"
        )
    rows, _ = read_rows(manifest, (POST_ID, *task.question_ids), (POST_ID,))
    ids = [post_id_of(cells.get(POST_ID)) for _, cells in rows]
    if (left := sorted(set(answers) - set(ids))) and not (others and len(left) < len(answers)):
        raise ManifestError(
            f"manifest {manifest}: {len(left)} answered posts are not in it, for example {left[0]!r}; "
            "give the manifest that the queue was made from"
        )
    given: list[dict[str, Any]] = [dict(answers.get(post_id or "", {})) for post_id in ids]
    for question in task.questions:
        if any(isinstance(cells.get(question.id), str) for _, cells in rows):
            for said in given:
                if question.id in said:
                    said[question.id] = question.classes[said[question.id]]
    write = _write_parquet if manifest.suffix == ".parquet" else _write_jsonl
    try:
        with replacing(out) as part:
            write(manifest, given, part)
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{out}: cannot be written: {error}") from error
    return len(answers) - len(left)


def _write_jsonl(manifest: Path, given: list[dict[str, Any]], out: Path) -> None:
    left = iter(given)
    with manifest.open("rb") as old, out.open("wb") as new:
        for line in old:
            said = next(left) if line.strip(b"\xef\xbb\xbf \t\r\n") else {}
            if said:
                row = json_object(line.removeprefix(b"\xef\xbb\xbf")) | said
                # half a character goes back as the escape that it was
                line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
            new.write(line)


def _write_parquet(manifest: Path, given: list[dict[str, Any]], out: Path) -> None:
    table = pq.ParquetFile(manifest).read()
    for id_ in dict.fromkeys(id_ for said in given for id_ in said):
        place = table.schema.get_field_index(id_)
        old = table.column(place).to_pylist() if place >= 0 else [None] * len(table)
        kind = table.schema.field(place).type if place >= 0 else pa.null()
        column = pa.array(
            [said.get(id_, cell) for said, cell in zip(given, old, strict=True)],
            pa.int8() if kind == pa.null() else kind,
        )
        table = table.append_column(id_, column) if place < 0 else table.set_column(place, id_, column)
    pq.write_table(table, out)
