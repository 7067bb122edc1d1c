"""The commands of annotation, from a manifest to labels, pages and a queue, against a real port."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from cli.main import main
from model.task import load_task
from steps.annotate.ledger import Ledger
from steps.paths import ledger_url
from tests.support.annotator import COUNTS, Answer, Server, completion, make_posts, reply
from tests.support.disk import files_end_at

REPOSITORY = Path(__file__).resolve().parents[2]


Run = Callable[..., Result]


@pytest.fixture
def run(agentps_home: Path, manifest: Path) -> Run:
    def invoke(command: str, *arguments: Any, exit_code: int = 0) -> Result:
        given = [command, "--posts", str(manifest), "--task", "ucc", *map(str, arguments)]
        result = CliRunner().invoke(main, given, catch_exceptions=False)
        assert result.exit_code == exit_code, result.output
        return result

    return invoke


def test_plan_tells_what_it_would_cost_and_sends_nothing(run: Run, server: Server) -> None:
    lines = run("plan").output
    assert "posts              12\n" in lines
    assert "distinct images    24\n" in lines
    assert "to ask           12\n" in lines
    assert "expected, $" in lines
    assert server.requests == []
    assert "prices             of May 2026 (" in lines
    unpriced = run("plan", "--set", "model=unheard-of").output
    assert "no price expected" in unpriced
    assert "'unheard-of' is not in" in unpriced


def test_plan_tells_what_went_missing_and_what_a_changed_option_would_ask_again(
    run: Run, agentps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(lambda number, body: reply(completion("0,1", finish_reason="length"))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        stopped = run("annotate", "--out", tmp_path / "labels.parquet", exit_code=1).output
    assert "12 of 12 posts have no answer (cut at max_tokens: 12)" in stopped
    lines = run("plan").output
    assert "0 answered, 12 without an answer\n" in lines
    assert 'given up       12 cut at max_tokens, with {"max_tokens": 64, "temperature": 0}\n' in lines
    assert "to ask           0\n" in lines
    lines = run("plan", "--set", "max_tokens=500").output
    assert "to ask           12\n" in lines
    assert 'once more      12 cut at max_tokens, with {"max_tokens": 64, "temperature": 0}\n' in lines
    assert re.search(r"of that {8}\$0\.\d+ for these\n", lines)


def test_annotate_writes_labels_and_a_page_and_the_second_time_asks_nothing(
    run: Run, server: Server, tmp_path: Path
) -> None:
    out, page = tmp_path / "labels.parquet", tmp_path / "report.html"
    first = run("annotate", "--out", out, "--page", page)
    cost = 12 * (100 * 2.5 + 10 * 10) / 1e6
    assert f"asked 12, from the ledger 0, without an answer 0; spent ${cost:.4f}" in first.output
    labels = pd.read_parquet(out)
    assert labels["post_id"].tolist() == [f"train{number}" for number in range(12)]
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert "Agreement with people" in text
    assert "src=" not in text
    assert "12 answered" in run("plan").output
    assert "asked 0, from the ledger 12" in run("annotate", "--out", out).output
    assert len(server.requests) == 12


def test_the_recorded_cost_of_a_run_with_a_cap_of_a_dollar_is_a_dollar_at_most_and_the_next_goes_on(
    agentps_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = make_posts(tmp_path, 40).assign(images=lambda table: [[Path(p).name for p in row] for row in table.images])
    manifest, out = tmp_path / "posts.parquet", tmp_path / "labels.parquet"
    posts.drop(columns="image_sha256").to_parquet(manifest)
    dear = completion() | {"usage": {"prompt_tokens": 700, "completion_tokens": 4000}}
    cost = (700 * 2.5 + 4000 * 10) / 1e6  # of gpt-4o: $0.04175, so that 23 posts are $0.96 and 24 are $1.002
    command = ["annotate", "--posts", str(manifest), "--task", "ucc", "--out", str(out), "--set", "max_tokens=4000"]
    with Server(lambda number, body: reply(dear)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        stopped = CliRunner().invoke(main, [*command, "--set", "max_cost=1.00"], catch_exceptions=False)
        assert stopped.exit_code == 1
        assert "annotate.max_cost $1.00 leaves no room for another request" in stopped.output
        with Ledger(ledger_url(None)) as ledger:
            assert ledger.spent() == pytest.approx(23 * cost)
            assert ledger.spent() <= 1.0
        assert len(server.requests) == 23
        again = CliRunner().invoke(main, command, catch_exceptions=False)
        assert "asked 17, from the ledger 23" in again.output
    assert len(pd.read_parquet(out)) == 40


def test_agreement_prints_the_table_and_what_changed_since(run: Run, server: Server, tmp_path: Path) -> None:
    old, new, page = tmp_path / "old.parquet", tmp_path / "new.parquet", tmp_path / "agreement.html"
    run("annotate", "--out", new)
    labels = pd.read_parquet(new)
    labels.assign(ugc=1 - labels["ugc"]).to_parquet(old)
    output = run("agreement", "--labels", new, "--against", old, "--out", page).output
    # of 0,1,2,1,2: watermark 0, ugc 1 of 2 -> yes; gold: ugc yes; watermark 0, 1, 0, 1
    ugc = next(line.split() for line in output.splitlines() if line.strip().startswith("ugc"))
    assert ugc[1] == "1.000"
    watermark = next(line.split() for line in output.splitlines() if line.strip().startswith("watermark"))
    assert watermark[1] == "0.500"
    assert "What changed since" in page.read_text()


def test_queue_and_gold_are_a_round_trip(run: Run, server: Server, manifest: Path, tmp_path: Path) -> None:
    one, two, queue = tmp_path / "one.parquet", tmp_path / "two.parquet", tmp_path / "queue.csv"
    run("annotate", "--out", one)
    labels = pd.read_parquet(one)
    labels.loc[2:3, "ugc"] = 1 - labels.loc[2:3, "ugc"]
    labels.to_parquet(two)
    assert "2 of 12 posts are disputed" in run("queue", "--labels", one, "--labels", two, "--out", queue).output
    table = pd.read_csv(queue, dtype=str)
    assert sorted(table["post_id"]) == ["train2", "train3"]
    table.assign(ugc="no").to_csv(queue, index=False)
    new = tmp_path / "with-gold.jsonl"
    assert "2 posts have people's answers" in run("gold", "--answers", queue, "--out", new).output
    rows = {row["post_id"]: row for row in map(json.loads, new.read_text().splitlines())}
    assert (rows["train2"]["ugc"], rows["train3"]["ugc"], rows["train0"]["ugc"]) == (0, 0, 1)
    assert json.loads(queue.with_suffix(".json").read_text())[0]["data"]["post_id"] in ("train2", "train3")


def test_nothing_that_is_read_is_written_over(run: Run, manifest: Path, tmp_path: Path) -> None:
    labels, csv = tmp_path / "labels.parquet", tmp_path / "answers.csv"
    pd.DataFrame({"post_id": ["train0"], "ugc": [1]}).to_parquet(labels)
    csv.write_text("post_id,ugc\ntrain0,yes\n")
    (tmp_path / "link.csv").symlink_to(csv)
    (tmp_path / "queue.json").hardlink_to(manifest)  # as where the manifest's name is that of a file beside the queue
    before = {path: path.read_bytes() for path in (manifest, labels, csv)}
    for arguments in (
        ("annotate", "--out", manifest),
        ("annotate", "--out", tmp_path / "new.parquet", "--page", manifest),
        ("gold", "--answers", csv, "--out", manifest),
        ("gold", "--answers", csv, "--out", tmp_path / "link.csv"),
        ("agreement", "--labels", labels, "--out", labels),
        ("queue", "--labels", labels, "--predictions", labels, "--out", tmp_path / "queue.csv"),
    ):
        assert "which is read: give another name" in run(*arguments, exit_code=1).output, arguments
        assert {path: path.read_bytes() for path in before} == before


def test_trial_compares_wordings_on_the_gold_posts(
    run: Run, server: Server, agentps_home: Path, manifest: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text((REPOSITORY / "configs" / "tasks" / "ucc.yaml").read_text().replace("Count the number", "Count"))
    page = tmp_path / "trial.html"
    output = run("trial", "--task", other, "--out", page).output
    assert len(server.requests) == 2 * 4
    assert "all posts $" in output
    assert str(other) in page.read_text()
    assert load_task(other).annotation_fingerprint != load_task("ucc").annotation_fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "max_cost"), "KEY=VALUE is expected"),
        (("--set", "max_cost=-1"), "annotate.max_cost"),
        (("--set", "speed=9"), "annotate.speed: unknown key"),
        (("--set", "mode=[}"), "cannot be read as YAML"),
    ],
)
def test_a_wrong_option_is_one_message(run: Run, arguments: tuple[str, ...], message: str) -> None:
    output = run("plan", *arguments, exit_code=1).output
    assert message in output
    assert output.startswith("Error: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1\n", "a mapping of options was expected"), ("annotate: [1]\n", "annotate: "), ("{", "cannot be read")],
)
def test_a_config_of_another_form_is_one_message(run: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    output = run("plan", "--config", tmp_path / "config.yaml", exit_code=1).output
    assert output.startswith(f"Error: config {tmp_path / 'config.yaml'}: {message}")


def test_where_the_labels_cannot_be_written_nothing_is_asked(run: Run, server: Server, tmp_path: Path) -> None:
    assert "is not there" in run("annotate", "--out", tmp_path / "no" / "labels.parquet", exit_code=2).output
    assert "is a directory" in run("annotate", "--out", tmp_path, exit_code=2).output
    assert server.requests == []


def test_labels_of_another_form_are_one_message(run: Run, tmp_path: Path) -> None:
    labels = tmp_path / "labels.parquet"
    pd.DataFrame({"post_id": ["train0"], "ugc": ["yes"]}).to_parquet(labels)
    assert "whole numbers are expected" in run("agreement", "--labels", labels, exit_code=1).output


def test_a_floor_that_is_fatal_ends_the_command_without_labels_but_with_the_page(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def behave(number: int, body: Any) -> Answer:
        return reply(completion(COUNTS))

    out, page = tmp_path / "labels.parquet", tmp_path / "report.html"
    with Server(behave) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        floor = ("--set", "min_agreement={watermark: 0.5}", "--set", "on_low_agreement=fail")
        stopped = run("annotate", "--out", out, "--page", page, *floor, exit_code=1)
    assert "not good enough to train on: question watermark" in stopped.output
    assert not out.exists()
    assert "Below the floor" in page.read_text()


def test_labels_of_other_posts_are_refused_and_those_of_a_part_said(
    run: Run, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, queue = tmp_path / "one.parquet", tmp_path / "two.parquet", tmp_path / "queue.csv"
    run("annotate", "--out", one)
    labels = pd.read_parquet(one)
    labels.assign(post_id=[f"x{k}" for k in range(12)]).to_parquet(two)
    for command in (("queue", "--labels", one, "--labels", two, "--out", queue), ("agreement", "--labels", two)):
        assert "none of its 12 posts is among the posts of" in run(*command, exit_code=1).output
    assert not queue.exists()
    labels.assign(post_id=[*labels["post_id"][:11], "x"], ugc=1 - labels["ugc"]).to_parquet(two)
    run("queue", "--labels", one, "--labels", two, "--out", queue)
    assert "labels two: 1 of its 12 posts are left out" in caplog.text
    assert len(pd.read_csv(queue)) == 11
    labels.drop(columns="post_id").to_parquet(two)
    assert "no column 'post_id' (found watermark, " in run("agreement", "--labels", two, exit_code=1).output


def test_on_a_full_disk_the_queue_and_the_pages_stay_what_they_were(
    run: Run, labels: pd.DataFrame, tmp_path: Path
) -> None:
    one, two, out = tmp_path / "one.parquet", tmp_path / "two.parquet", tmp_path / "queue.csv"
    labels.to_parquet(one)
    labels.assign(ugc=0).to_parquet(two)
    out.write_text("old")
    page = out.with_name("page.html")
    for command, file in (("queue", out), ("agreement", page)):
        given = ("--labels", one, "--labels", two) if command == "queue" else ("--labels", one)
        with files_end_at(100):
            result = run(command, *given, "--out", file, exit_code=1)
        assert f"Error: {file}: cannot be written: File too large; " in result.output
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("queue", "page"))] == ["queue.csv"]


@pytest.fixture
def labels(manifest: Path) -> pd.DataFrame:
    """Of the twelve posts, as an annotator of the task `ucc` gives them."""
    ids = [json.loads(line)["post_id"] for line in manifest.read_text().splitlines()]
    return pd.DataFrame({"post_id": ids, **{id_: pd.array([1] * 12, "Int8") for id_ in load_task("ucc").question_ids}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.assign(post_id="x" + table["post_id"]), "none of its 12 posts is among"),
        (lambda table: table.head(0), "it holds no rows"),
        (lambda table: table[["post_id"]].assign(other=1), r"no column for any of .* \(found "),
    ],
)
@pytest.mark.parametrize("role", ["--labels", "--against"])
def test_a_table_that_has_nothing_to_compare_is_an_error(
    role: str,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    message: str,
    labels: pd.DataFrame,
    tmp_path: Path,
    run: Run,
) -> None:
    labels.to_parquet(tmp_path / "right.parquet")
    change(labels).to_parquet(tmp_path / "wrong.parquet")
    given = ["--labels", tmp_path / "right.parquet", "--against", tmp_path / "right.parquet"]
    run("agreement", *given)
    given[given.index(role) + 1] = tmp_path / "wrong.parquet"
    assert re.search(message, run("agreement", *given, exit_code=1).output)
