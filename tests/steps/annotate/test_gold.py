"""People's answers come back as gold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import ManifestError
from steps.annotate.gold import add_gold, read_answers
from tests.support.tasks import QUEUE as TASK


def test_label_studios_export_comes_back_without_what_people_disagree_on(tmp_path: Path) -> None:
    def said(**answers: str) -> dict[str, Any]:
        return {"result": [{"type": "choices", "from_name": q, "value": {"choices": [a]}} for q, a in answers.items()]}

    export = [
        {"data": {"post_id": "p0"}, "annotations": [said(ugc="yes", kind="a"), said(ugc="yes", kind="b")]},
        {"data": {"post_id": "p1"}, "annotations": [said(ugc="no"), said(ugc="yes") | {"was_cancelled": True}]},
        {"data": {"post_id": "p2"}, "annotations": []},
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(export))
    assert read_answers(path, TASK) == {"p0": {"ugc": 1}, "p1": {"ugc": 0}}


@pytest.mark.parametrize("text", ['[{"data": {}}', '{"a": 1}', '[{"data": {}, "annotations": [{}]}]'])
def test_another_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "export.json"
    path.write_text(text)
    with pytest.raises(ManifestError, match=r"export\.json.*Label Studio"):
        read_answers(path, TASK)


@pytest.mark.parametrize(("suffix", "text"), [(".jsonl", "[1]\n"), (".jsonl", "{\n"), (".parquet", "x")])
def test_a_manifest_of_another_form_is_named(suffix: str, text: str, tmp_path: Path) -> None:
    manifest = tmp_path / f"posts{suffix}"
    manifest.write_text(text)
    with pytest.raises(ManifestError, match=f"manifest {manifest}.*"):
        add_gold(manifest, {"p0": {"ugc": 1}}, TASK, tmp_path / f"new{suffix}")
    assert not (tmp_path / f"new{suffix}").exists()


def test_an_answer_of_no_class_is_named(tmp_path: Path) -> None:
    path = tmp_path / "queue.csv"
    path.write_text("post_id,ugc\np0,maybe\n")
    with pytest.raises(
        ManifestError,
        match=r"queue\.csv:2: post 'p0': ugc: 'maybe'; a class index 0 to 1, one of",
    ):
        read_answers(path, TASK)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_people_s_answers_go_into_the_manifest_and_all_else_stays(suffix: str, tmp_path: Path) -> None:
    rows = [
        {"post_id": "p0", "images": ["a.jpg"], "title": "line\u2028end", "kind": 2, "extra": 7},
        {"post_id": "p1", "images": ["b.jpg"], "title": "t", "ugc": 1, "extra": 8},
    ]
    manifest, out = tmp_path / f"posts{suffix}", tmp_path / f"new{suffix}"
    if suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(manifest)
    else:
        manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert add_gold(manifest, {"p0": {"ugc": 1, "kind": 0}}, TASK, out) == 1
    table = pd.read_parquet(out) if suffix == ".parquet" else pd.read_json(out, lines=True)
    assert table["ugc"].tolist() == [1, 1]
    assert table["kind"].iloc[0] == 0
    assert pd.isna(table["kind"].iloc[1])
    assert table["extra"].tolist() == [7, 8]
    assert table["title"].iloc[0] == "line\u2028end"


def test_an_unknown_post_and_another_folder_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    manifest = tmp_path / "posts.jsonl"
    manifest.write_text('{"post_id": "p0", "images": ["a.jpg"]}\n')
    before = manifest.read_bytes()
    with pytest.raises(ManifestError, match="1 answered posts are not in it, for example 'p9'"):
        add_gold(manifest, {"p9": {"ugc": 1}}, TASK, tmp_path / "new.jsonl")
    (tmp_path / "again.jsonl").symlink_to(manifest)
    (tmp_path / "twin.jsonl").hardlink_to(manifest)
    for name in ("posts.jsonl", "again.jsonl", "twin.jsonl"):
        with pytest.raises(ManifestError, match=rf"{name}: is the file .*posts\.jsonl, which is read"):
            add_gold(manifest, {"p0": {"ugc": 1}}, TASK, tmp_path / name)
    with pytest.raises(ManifestError, match="must lie in the folder"):
        add_gold(manifest, {"p0": {"ugc": 1}}, TASK, tmp_path / "sub" / "posts.jsonl")
    assert manifest.read_bytes() == before


def test_answers_by_number_and_in_every_format_of_rows_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("post_id,ugc,kind\n1000,yes, 2 \n1001,,\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"post_id": 1000, "ugc": 1, "kind": "c"}\n', encoding="utf-8")
    pd.DataFrame({"post_id": [1000], "ugc": ["yes"], "kind": [2]}).to_parquet(tmp_path / "a.parquet")
    choices = [
        {"type": "choices", "from_name": q, "value": {"choices": [a]}} for q, a in (("ugc", "yes"), ("kind", "c"))
    ]
    export = [{"data": {"post_id": 1000}, "annotations": [{"result": choices}]}]
    (tmp_path / "a.json").write_text(json.dumps(export), encoding="utf-8")
    for suffix in ("csv", "jsonl", "parquet", "json"):
        assert read_answers(tmp_path / f"a.{suffix}", TASK) == {"1000": {"ugc": 1, "kind": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("post_id,ugc,ugc\np0,yes,no\n", r"the column 'ugc' stands there 2 times \(columns 2, 3\)"),
        ("id,ugc\np0,yes\n", r"no column 'post_id' \(found id, ugc\)"),
        ("post_id,sort\np0,yes\n", "no answer to any of ugc, kind"),
        ("post_id,ugc\np0,\n", "no answer to any of ugc, kind"),
        ("post_id,ugc\np0,yes,no\n", r"answers.*a\.csv:2: 3 cells for 2 columns"),
        ("post_id,kind\np0,3\n", r"post 'p0': kind: '3'; a class index 0 to 2"),
        ("post_id,ugc\n,yes\n", r"a\.csv:2: post None: post_id: missing"),
        ('post_id,ugc\n"p0,yes\n', "cannot be read as CSV"),
        ("post_id,title,ugc\np0,a\rb,yes\n", "cannot be read as CSV: new-line character seen in unquoted field"),
    ],
)
def test_a_csv_that_is_no_queue_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(ManifestError, match=message):
        read_answers(path, TASK)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_answers_are_read_whatever_ends_the_lines(end: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = ["post_id,title,ugc", 'p0,"a\rb\nc\r\nd",yes', "p1,t,no", "-p2,,", "'=p3,'=x,yes", ""]
    path.write_text(end.join(lines), encoding="utf-8", newline="")
    assert read_answers(path, TASK) == {"p0": {"ugc": 1}, "p1": {"ugc": 0}, "=p3": {"ugc": 1}}


def test_a_parquet_manifest_keeps_its_columns_their_types_and_the_names_of_classes(tmp_path: Path) -> None:
    kinds = {
        "post_id": pa.int64(),
        "images": pa.list_(pa.string()),
        "kind": pa.string(),
        "created_at": pa.timestamp("ms", tz="UTC"),
        "likes": pa.int32(),
    }
    rows = [
        {"post_id": 1, "images": ["a.jpg"], "kind": "b", "created_at": 0, "likes": 3},
        {"post_id": 2, "images": ["b.jpg"], "kind": None, "created_at": 1, "likes": None},
    ]
    old = pa.Table.from_pylist(rows, pa.schema(kinds))
    manifest, out = tmp_path / "posts.parquet", tmp_path / "gold.parquet"
    pq.write_table(old, manifest)
    assert add_gold(manifest, {"1": {"kind": 0, "ugc": 1}, "2": {"kind": 2}}, TASK, out) == 2
    new = pq.read_table(out)
    assert new.select(list(kinds)).schema == old.schema
    assert new["kind"].to_pylist() == ["a", "c"]
    assert new["ugc"].to_pylist() == [1, None]
    assert new.drop(["kind", "ugc"]) == old.drop(["kind"])


def test_names_stay_names_and_half_a_character_stays_what_it_was(tmp_path: Path) -> None:
    manifest = tmp_path / "posts.jsonl"
    manifest.write_text(
        '{"post_id": 7, "title": "\\ud83d", "kind": "b"}\n\n{"post_id": "8", "n": 1.50}\n', encoding="utf-8"
    )
    assert add_gold(manifest, {"7": {"kind": 2}}, TASK, tmp_path / "new.jsonl") == 1
    first, blank, last = (tmp_path / "new.jsonl").read_text(encoding="utf-8").splitlines()
    assert first == '{"post_id": 7, "title": "\\ud83d", "kind": "c"}'
    assert (blank, last) == ("", '{"post_id": "8", "n": 1.50}')


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "post_id,ugc, Kind\np0,yes,a\n", "the column ' Kind': write 'kind'"),
        ("a.csv", "post_id,ugc\np0,yes\np0,no\n", "answered each question of each post differently"),
        ("a.json", '[{"data": {"post_id": "p0", "post_id": "p1"}, "annotations": []}]', "'post_id' stands there more"),
    ],
)
def test_no_answer_is_lost_without_a_word(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_answers(path, TASK)
