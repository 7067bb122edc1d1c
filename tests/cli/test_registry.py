"""The commands against a real MLflow and a real ZenML of their own, with versions of a tiny checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from sqlalchemy import insert
from zenml.client import Client

from cli.main import COMMANDS, main
from model.metrics import Calibration
from model.scorer import Scorer
from model.settings import BackboneSettings
from scoring.policy import Policy
from scoring.store import Store
from steps.evaluate.report import EvalReport, build_report
from steps.paths import REPOSITORY, store_url
from steps.promote.gate import Decision
from steps.register import history, registry
from steps.register.compare import Version, compare
from steps.retrain.reviewed import LABELS
from steps.settings import load_settings
from tests.support.tiny import SEQUENCE, TASK, train_settings, write_checkpoint, write_images

NAME = "agentps-small"


def predictions(skill: float) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 400
    label = rng.random(n) < 0.4
    score = 1 / (1 + np.exp(-(skill * label + rng.normal(size=n) - skill / 2)))
    questions = {q: pd.array(label.astype(int), dtype="Int8") for q in TASK.question_ids}
    answers = {f"answer_{q.id}": np.array(q.classes)[label.astype(int)] for q in TASK.questions}
    answers |= {f"probability_{q}": 1.0 for q in TASK.question_ids}
    return pd.DataFrame(
        {
            "post_id": [f"p{i}" for i in range(n)],
            "split": np.where(np.arange(n) % 2, "val", "test"),
            "label": pd.array(label.astype(int), dtype="Int8"),
            "logit": np.log(score / (1 - score)),
            "score": score,
            **questions,
            **answers,
        }
    )


def report(table: pd.DataFrame) -> EvalReport:
    return build_report(
        table[table["split"] == "val"],
        table[table["split"] == "test"],
        TASK,
        load_settings({"evaluate": {"bootstrap": 20}}).evaluate,
        variant="agentps",
        seed=0,
        backbone="tiny",
        annotator="human",
        annotated_missing_share=dict.fromkeys(TASK.question_ids, 0.0),
        calibration=Calibration(),
    )


Add = Callable[..., registry.RegisteredVersion]


@pytest.fixture
def add(tracking: Path, own_zenml: Client, agentps_home: Path, tiny_backbone: BackboneSettings) -> Add:
    """Registers a version of some skill and, with `verdict`, lets the gate say that."""
    images = [str(path) for path in write_images(tracking, 2)]
    example = pd.DataFrame({"title": ["a"], "text": ["b"], "images": [images]})

    def call(skill: float, verdict: str | None = None, seed: int = 0) -> registry.RegisteredVersion:
        checkpoint = write_checkpoint(tracking / f"checkpoint-{skill}", tiny_backbone, train_settings(seed=seed))
        table = predictions(skill)
        version, _ = registry.register(checkpoint, report(table), table, TASK, example, name=NAME, tags={})
        history.challenge(version)
        if verdict is not None:
            history.settle(version, lambda state: Decision(verdict=verdict, reason=f"skill {skill}"))
        return version

    return call


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(json.loads(TASK.model_dump_json())), encoding="utf-8")
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "task": str(tmp_path / "task.yaml"),
                "posts": str(tmp_path / "posts.jsonl"),
                "preprocess": SEQUENCE.model_dump(),
                "promote": {"target": "production", "bootstrap": 100, "floor": 0.0},
            }
        )
    )
    return str(path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_the_path_of_two_versions_by_hand(add: Add, config: str, own_zenml: Client) -> None:
    add(1.0, "promoted")
    before = datetime.now(UTC)
    add(2.0, "needs a person", seed=1)
    add(0.5, "kept", seed=2)

    refused = call("promote", "3", "--because", "I want it", "-c", config)
    assert refused.exit_code == 1
    assert "Error: model agentps-small version 3: the gate said 'kept' (skill 0.5)" in refused.output
    assert call("promote", "2", "-c", config).exit_code == 2, "--because is required"

    done = call("promote", "2", "--because", "the slice is no longer shown", "-c", config)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("agentps-small: challenger 3, champion 2, previous 1\n")
    assert own_zenml.get_model_version(NAME, "production").name == "mlflow-2"
    assert registry.get("production", "1").source == f"models:/{NAME}/2", "the copy for production"

    back = call("rollback", "--because", "it flags holidays", "-c", config)
    assert back.exit_code == 0, back.output
    assert back.stdout.endswith("agentps-small: challenger 3, champion 1, previous 2\n")
    assert own_zenml.get_model_version(NAME, "production").name == "mlflow-1"

    told = call("history", "-c", config).output
    assert "1  20" in told
    assert (
        "promoted (gate): champion - > 1\n      skill 1.0\n      models:/agentps-small/1/artifacts/checkpoint/" in told
    )
    assert "): previous - > 1, champion 1 > 2\n      the slice is no longer shown\n" in told
    assert "): previous 1 > 2, champion 2 > 1\n      it flags holidays\n" in told
    on = before.strftime("%Y-%m-%dT%H:%M:%S")
    assert call("history", "--on", on, "-c", config).output.splitlines()[-1] in ("1", "none")  # within the same second
    assert call("history", "--on", "2020-01-01", "-c", config).output == "none\n"

    fetched = call("fetch", "-c", config)
    assert fetched.exit_code == 0, fetched.output
    folder = Path(fetched.stdout.splitlines()[-1])
    assert folder == registry.fetch(registry.get(NAME, "1")).parent.parent
    (folder / "pyfunc.py").write_text("")
    assert "pyfunc.py has sha256" in call("fetch", "1", "-c", config).output
    assert call("fetch", "2", "-c", config).exit_code == 0


def test_compare_prints_both_reports_and_which_differences_are_significant(add: Add, config: str) -> None:
    add(1.0), add(3.0, seed=1)
    shown = call("compare", "2", "1", "-c", config)
    assert shown.exit_code == 0, shown.output
    lines = {line.split()[0]: line for line in shown.output.splitlines()}
    head = next(line for line in shown.output.splitlines() if "version 2" in line)
    assert "difference on 200 common test posts" in head
    expected = [registry.report_of(registry.get(NAME, v)).metrics["roc_auc"].value for v in ("2", "1")]
    assert f"{expected[0]:.4f}" in lines["roc_auc"]
    assert f"{expected[1]:.4f}" in lines["roc_auc"]
    assert f"{expected[0] - expected[1]:+.4f} [+0." in lines["roc_auc"]
    assert lines["roc_auc"].endswith("*")
    tie = {line.split()[0]: line for line in call("compare", "1", "1", "-c", config).output.splitlines()}
    assert tie["roc_auc"].endswith("+0.0000 [+0.0000, +0.0000]")
    missing = call("compare", "1", "9", "-c", config)
    assert missing.exit_code == 1
    assert "model agentps-small: no version 9" in missing.output


def posts(folder: Path, n: int, checkpoint: Path) -> None:
    """A manifest whose labels follow the checkpoint's ranking, but not its level: three of ten are positive."""
    images = write_images(folder, 5)
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "post_id": [f"q{i}" for i in range(n)],
            "title": [" ".join(rng.choice(["a", "walk", "sea", "light", "#tag"], 1 + i % 5)) for i in range(n)],
            "text": "",
            "images": [[images[i % 5].name, images[(i * 3) % 5].name] for i in range(n)],
            "split": ["val" if i % 2 else "test" for i in range(n)],
        }
        | {q: rng.integers(2, size=n) for q in TASK.question_ids}
    )
    full = rows.assign(images=[[str(folder / name) for name in album] for album in rows["images"]])
    ranks = Scorer.from_directory(checkpoint, image_root="/").score(full)["score"].rank(pct=True)
    rows["label"] = (rng.random(n) < 0.6 * ranks).astype(int)
    rows.to_json(folder / "posts.jsonl", orient="records", lines=True)


def test_recalibrate_makes_a_version_of_the_same_weights_that_goes_through_the_gate(
    add: Add, config: str, tmp_path: Path
) -> None:
    nothing = call("recalibrate", "-c", config)
    assert nothing.exit_code == 1
    assert "no champion yet: run the pipeline first" in nothing.output
    first = add(1.0, "promoted")
    posts(tmp_path, 400, registry.fetch(first))
    mlflow.end_run()  # the command opens its own, as outside of a step
    mlflow.create_experiment("agentps_training", artifact_location=(tmp_path / "artifacts").as_uri())
    done = call("recalibrate", "-c", config)
    assert done.exit_code == 0, done.output
    second = registry.get(NAME, "2")
    weights = [registry.fetch(version) / "trained.safetensors" for version in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert registry.report_of(second).calibration != registry.report_of(first).calibration
    tags = registry.tags_of(second)
    assert tags["agentps.recalibrated_from"] == "1"
    # The untrained network's level is far from three of ten.
    assert tags[history.VERDICT] == "promoted", tags[history.REASON]
    assert f"agentps-small version 2: promoted: {tags[history.REASON]}" in done.output
    assert tags[history.REASON].startswith("brier_skill +")
    assert history.sync(NAME).aliases == {"champion": "2", "previous": "1", "challenger": "2"}


def test_recalibrate_takes_a_filled_in_queue_for_the_posts_that_it_was_drawn_from(
    add: Add, config: str, tmp_path: Path
) -> None:
    """Of the posts with high scores people were asked in any case, of one in five others."""
    first = add(1.0, "promoted")
    posts(tmp_path, 1200, registry.fetch(first))
    rows = pd.read_json(tmp_path / "posts.jsonl", lines=True)
    full = rows.assign(images=[[str(tmp_path / name) for name in album] for album in rows["images"]])
    found = Scorer.from_directory(registry.fetch(first), image_root="/").score(full)["score"]
    rng = np.random.default_rng(0)
    rows["label"] = (rng.random(1200) < found.rank(pct=True) ** 2).astype(int)
    often = found.rank(pct=True) > 0.5
    asked = often | (rng.random(1200) < 0.2)
    queue = rows[asked].assign(inclusion_probability=np.where(often[asked], 1.0, 0.2))
    queue.to_json(tmp_path / "posts.jsonl", orient="records", lines=True)
    mlflow.end_run()
    mlflow.create_experiment("agentps_training", artifact_location=(tmp_path / "artifacts").as_uri())
    done = call("recalibrate", "-c", config)
    assert done.exit_code == 0, done.output
    second = registry.get(NAME, "2")
    level = Scorer.from_directory(registry.fetch(second), image_root="/").score(full)["score"].mean()
    assert level == pytest.approx(rows["label"].mean(), abs=0.04)
    assert queue["label"].mean() > rows["label"].mean() + 0.06, "unlike those asked of"
    assert registry.report_of(second).stand_for == pytest.approx(600, rel=0.2), "the test posts"
    queue.loc[queue.index[::2], "inclusion_probability"] = None
    queue.to_json(tmp_path / "posts.jsonl", orient="records", lines=True)
    refused = call("recalibrate", "-c", config)
    assert refused.exit_code == 1
    assert "posts with a label have none, as row 1 (" in refused.output


def test_compare_weighs_common_posts_as_they_were_drawn() -> None:
    tables = {skill: predictions(skill) for skill in (1.0, 2.0)}
    chance = np.where(np.arange(400) % 3 == 0, 0.1, 1.0)
    drawn = {skill: table.assign(inclusion_probability=chance) for skill, table in tables.items()}
    # of one version all posts of test had labels, of the other these were drawn
    made = [Version("a", report(tables[1.0]), tables[1.0]), Version("b", report(drawn[2.0]), drawn[2.0])]
    line = next(line for line in compare(*made, n=20).splitlines() if line.startswith("roc_auc"))
    values = [report(drawn[skill]).metrics["roc_auc"].value for skill in (1.0, 2.0)]
    assert f"  {(values[0] or 0) - (values[1] or 0):+.4f} [" in line


def fallen(add: Add, config: str, tmp_path: Path) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Twelve days of 100 scored and labelled posts: six on which all that was flagged was right, then six on which half
    of it was. Returns post_id, label, score; and the days.
    """
    first = add(1.0, "promoted")
    posts(tmp_path, 1200, registry.fetch(first))
    rows = pd.read_json(tmp_path / "posts.jsonl", lines=True).drop(columns="split")
    full = rows.assign(images=[[str(tmp_path / name) for name in album] for album in rows["images"]])
    full.to_json(tmp_path / "full.jsonl", orient="records", lines=True)
    found = Scorer.from_directory(registry.fetch(first), image_root="/").score(full)["score"]
    flagged, day = found.rank(pct=True) > 0.5, np.arange(1200) // 100
    right = np.where(day < 6, flagged, np.random.default_rng(0).random(1200) < found.rank(pct=True) ** 3)
    created = [f"2026-03-{one + 1:02}T00:00:00+00:00" for one in day]
    rows.assign(created_at=created).drop(columns="label").to_json(
        tmp_path / "posts.jsonl", orient="records", lines=True
    )
    scores = rows[["post_id"]].assign(score=found, decision=flagged, model_version="1", scored_at=created)
    scores.to_json(tmp_path / "scores.jsonl", orient="records", lines=True)
    options = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    options["retrain"] = {"scores": str(tmp_path / "scores.jsonl"), "labels": str(tmp_path / "labels.csv")}
    Path(config).write_text(yaml.safe_dump(options), encoding="utf-8")
    mlflow.end_run()
    mlflow.create_experiment("agentps_training", artifact_location=(tmp_path / "artifacts").as_uri())
    return rows[["post_id"]].assign(label=right.astype(int), score=found), day


def test_recalibrate_late_fits_to_what_was_labelled_since_the_precision_fell(
    add: Add, config: str, tmp_path: Path
) -> None:
    labels, _ = fallen(add, config, tmp_path)
    labels[["post_id", "label"]].to_csv(tmp_path / "labels.csv", index=False)
    done = call("recalibrate", "--late", "-c", config)
    assert done.exit_code == 0, done.output
    made = registry.report_of(registry.get(NAME, "2"))
    assert made.n_val + made.n_posts == 600, "of the six days since"
    assert 0.2 < made.n_posts / 600 < 0.4
    tags = registry.tags_of(registry.get(NAME, "2"))
    assert tags["agentps.recalibrated_from"] == "1"
    assert "which people's late labels speak against" in tags[history.REASON]


def test_recalibrate_late_takes_each_label_of_a_queue_for_the_posts_that_it_stands_for(
    add: Add, config: str, tmp_path: Path
) -> None:
    """Of each flagged post people were asked, of one in five others: none is thrown away, and figures are of all."""
    labels, day = fallen(add, config, tmp_path)
    often = labels["score"].rank(pct=True) > 0.5
    asked = often | (np.arange(len(labels)) % 5 == 0)
    queue = labels[asked].assign(inclusion_probability=np.where(often[asked], 1.0, 0.2)).drop(columns="score")
    queue.to_csv(tmp_path / "labels.csv", index=False)
    done = call("recalibrate", "--late", "-c", config)
    assert done.exit_code == 0, done.output
    second = registry.get(NAME, "2")
    made = registry.report_of(second)
    assert made.n_val + made.n_posts == int((asked & (day >= 6)).sum())
    # the calibration's scores are those of all posts: more than half of them were never flagged
    logit = Scorer.from_directory(registry.fetch(second), image_root="/")
    scored = logit.score(pd.read_json(tmp_path / "full.jsonl", lines=True))["score"]
    assert scored[day >= 6].mean() == pytest.approx(labels["label"][day >= 6].mean(), abs=0.05)
    assert labels["label"][asked & (day >= 6)].mean() > labels["label"][day >= 6].mean() + 0.06, "unlike those asked of"


def test_queue_asks_of_posts_that_may_be_flagged_and_writes_down_with_what_probability(
    add: Add, config: str, tmp_path: Path
) -> None:
    first = add(1.0, "promoted")
    posts(tmp_path, 300, registry.fetch(first))
    rows = pd.read_json(tmp_path / "posts.jsonl", lines=True)
    rows.loc[20:, "label"] = None
    rows.to_json(tmp_path / "posts.jsonl", orient="records", lines=True)
    rng = np.random.default_rng(0)
    score = rng.random(300)
    scored = pd.concat(
        rows[["post_id"]].assign(score=score, decision=score > least, model_version=version)
        for version, least in (("1", 0.8), ("0", 0.7))
    ).assign(scored_at="2026-03-01T00:00:00Z")
    scored.to_json(tmp_path / "scores.jsonl", orient="records", lines=True)
    out = tmp_path / "queue.csv"
    given = ("--posts", tmp_path / "posts.jsonl", "--task", tmp_path / "task.yaml", "--out", out, "-c", config)
    done = call("queue", "--budget", "60", "--scores", str(tmp_path / "scores.jsonl"), *map(str, given))
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out)
    assert len(table) == 60
    assert not set(table["post_id"]) & set(rows["post_id"][:20]), "these have labels"
    assert table["label"].isna().all()
    assert set(TASK.question_ids) <= set(table.columns)
    own = score[table["post_id"].str[1:].astype(int)]
    assert table["score"].tolist() == pytest.approx(own)
    assert (own > 0.65).mean() > 0.6, "of all posts a third may be flagged"
    differ = table["reasons"].str.contains("versions differ")
    assert (differ == ((own > 0.7) & (own <= 0.8))).all()
    assert table.loc[differ, "inclusion_probability"].min() > table.loc[~differ, "inclusion_probability"].max()
    # each stands for as many posts as it says: of 280
    assert (1 / table["inclusion_probability"]).sum() == pytest.approx(280, rel=0.4)
    too_many = call("queue", "--budget", "281", "--scores", str(tmp_path / "scores.jsonl"), *map(str, given))
    assert "Error: budget 281: between 1 and 280, the posts that can be asked of, is expected" in too_many.output
    # filled in, it is a table of labels
    table.assign(label=1).to_csv(out, index=False)
    told = call("live", "--scores", str(tmp_path / "scores.jsonl"), "--labels", str(out), "-c", config)
    assert "live precision 100.0% (from " in told.output
    # whom the desk's people labelled is not asked of either, and measures the champion
    flagged = rows["post_id"][int(np.flatnonzero(score[20:] > 0.8)[0]) + 20]
    url = f"sqlite:///{tmp_path / 'desk.db'}"
    label = {"model_name": NAME, "post_id": flagged, "state": "done", "first_by": "ann", "label": 0, "answers": {}}
    with Store.open(url) as store:
        store.do(lambda c: c.execute(insert(LABELS).values(label | {"at": datetime.now(UTC)})), writes=True)
    options = yaml.safe_load(Path(config).read_text(encoding="utf-8")) | {"retrain": {"labels": url}}
    Path(config).write_text(yaml.safe_dump(options), encoding="utf-8")
    too_many = call("queue", "--budget", "280", "--scores", str(tmp_path / "scores.jsonl"), *map(str, given))
    assert "Error: budget 280: between 1 and 279, the posts that can be asked of, is expected" in too_many.output
    told = call("live", "--scores", str(tmp_path / "scores.jsonl"), "-c", config)
    assert "live precision 0.0% (0 of 1)" in told.output, told.output


def test_live_tells_of_a_champion_below_its_promise(add: Add, config: str, tmp_path: Path) -> None:
    scores, labels, inbox = (tmp_path / name for name in ("scores.jsonl", "labels.jsonl", "inbox"))
    options = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    options |= {"notify": {"command": f"tee {inbox}"}, "retrain": {"scores": str(scores)}}
    Path(config).write_text(yaml.safe_dump(options), encoding="utf-8")
    given = ("live", "--labels", str(labels), "-c", config)
    refused = call("live", "-c", config)
    assert (refused.exit_code, "give --labels, or set retrain.labels" in refused.output) == (1, True)
    assert "no champion yet" in call(*given).output
    add(1.0, "promoted")
    row = {"score": 0.9, "decision": True, "model_version": "1", "scored_at": "2026-03-01T00:00:00Z"}
    scores.write_text("".join(json.dumps(row | {"post_id": str(n)}) + "\n" for n in range(20)), encoding="utf-8")

    def label(right: int) -> None:
        rows = [json.dumps({"post_id": str(n), "label": int(n < right)}) + "\n" for n in range(20)]
        labels.write_text("".join(rows), encoding="utf-8")

    label(right=13)
    fine = call(*given)
    assert (fine.exit_code, inbox.exists()) == (0, False), fine.output
    assert "live precision 65.0% (13 of 20)" in fine.output
    label(right=12)
    alarm = call(*given)
    assert alarm.exit_code == 1
    assert inbox.read_text(encoding="utf-8").endswith(alarm.stdout), "the same line, after the machine's name"
    assert "BELOW the target of 80%" in alarm.stdout


def test_new_posts_are_scored_once_and_their_late_labels_tell_the_live_precision(
    add: Add, config: str, tmp_path: Path
) -> None:
    images = [path.name for path in write_images(tmp_path, 3)]
    rows = [{"post_id": f"n{k}", "title": f"post {k}", "text": "", "images": images[: 1 + k % 3]} for k in range(9)]
    manifest, scores, labels = (tmp_path / name for name in ("new.jsonl", "out/scores.jsonl", "labels.jsonl"))

    def call_score(count: int, *more: str) -> Result:
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]), encoding="utf-8")
        return call("score", "--posts", str(manifest), "-c", config, *(more or ("--scores", str(scores))))

    assert "no champion yet" in call_score(5).output
    add(1.0, "promoted")
    options = yaml.safe_load(Path(config).read_text(encoding="utf-8")) | {"retrain": {"live_precision": 55}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    assert "version 1 has no threshold for 55 % precision (it has p" in (
        call_score(5, "--scores", str(scores), "-c", str(tmp_path / "bad.yaml")).output
    )
    assert not scores.exists()
    assert "name a file that ends in .jsonl" in call_score(5, "--scores", "scores.parquet").output

    first = call_score(5)
    assert first.exit_code == 0, first.output
    assert "version 1: 5 posts scored" in first.stdout
    again = call_score(9)
    assert "version 1: 4 posts scored" in again.stdout
    assert "5 were scored before" in again.stdout

    table = pd.read_json(scores, lines=True, dtype={"model_version": "str"})
    assert table["post_id"].tolist() == [row["post_id"] for row in rows]
    posts = pd.DataFrame(rows)
    posts["images"] = [[str(tmp_path / name) for name in row["images"]] for row in rows]
    expected = Scorer.from_directory(registry.fetch(registry.get(NAME, "1")), image_root="/").score(posts)
    np.testing.assert_allclose(table["score"], expected["score"], atol=1e-6)
    assert table["decision"].tolist() == expected["decision_p80"].tolist()
    for column in ("answer_kind", "answer_bright"):
        assert table[column].tolist() == expected[column].tolist()
    np.testing.assert_allclose(table["probability_kind"], expected["probability_kind"], atol=1e-6)
    assert not {"logit", "decision_p80"} & set(table)

    labels.write_text("".join(json.dumps({"post_id": f"n{k}", "label": k % 2}) + "\n" for k in range(9)), "utf-8")
    found = call("live", "--scores", str(scores), "--labels", str(labels), "-c", config)
    assert "9 of 9 scored posts are labelled" in found.output

    # without --scores: the store of this machine, which knows what was changed
    live = ("live", "--labels", str(labels), "-c", config)
    assert "no scores: `agentps score` makes some" in call(*live).output
    assert "version 1: 9 posts scored" in call_score(9, "-c", config).stdout
    rows[3]["title"] = "another title"
    assert "version 1: 1 posts scored" in (again := call_score(9, "-c", config).stdout)
    assert "8 were scored before" in again
    assert call(*live).output == found.output
    with Store.open(store_url()) as store:
        kept = {post_id: said[0] for post_id, said in store.current(table["post_id"]).items()}
        assert len(store.history("n3")) == 2
    np.testing.assert_allclose([kept[f"n{k}"].score for k in range(9) if k != 3], expected["score"].drop(3), atol=1e-6)

    policy = tmp_path / "policy.yaml"
    policy.write_text("{name: p, version: 1, task: task.yaml, precision: 80, audit: {flag: 0.5, pass: 1}}", "utf-8")
    assert "name a store's URL" in call_score(9, "--scores", str(scores), "--policy", str(policy)).output
    assert "version 1: 0 posts scored" in call_score(9, "--policy", str(policy)).stdout
    with Store.open(store_url()) as store:
        outcomes = [outcome for _, outcome in store.current(table["post_id"]).values()]
    assert [outcome.policy_version for outcome in outcomes if outcome] == [Policy.load(policy).version] * 9


def test_every_command_is_found_and_prints_its_help_without_its_libraries() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from cli.main import main\n"
        f"for name in {sorted(COMMANDS)}:\n"
        "    result = CliRunner().invoke(main, [name, '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
        "    assert f'{name} [OPTIONS]' in result.output\n"
        "heavy = {'zenml', 'torch', 'mlflow', 'pandas', 'openai', 'sklearn', 'sqlalchemy', 'jinja2'}\n"
        "assert heavy & set(sys.modules) == set()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
