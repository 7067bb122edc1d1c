"""A simulated quarter: weekly retrainings on posts whose mix changes in the middle.

    .venv/bin/python -m benchmarks.quarter                          # twelve weeks: a core for one to two hours
    .venv/bin/python -m benchmarks.quarter --weeks 6 --changed 3    # six weeks, the third has the new mix

Writes `benchmarks/quarter.json` (delete it to run the quarter again), and from it `docs/quarter.md` and
`docs/images/quarter.png`. What runs is what a user runs: the schedule (`infra.schedule.run`, on a clock of its own)
starts the literal `zenml pipeline run pipelines.agentps_retraining -c FILE`, the annotator is the simulated one behind
its HTTP port, asked by the client of paid endpoints, and a champion is rolled back by `agentps rollback`. Everything
lies under `.agentps/quarter`, ZenML's database too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
import yaml
from mlflow import MlflowClient
from scipy.stats import binomtest

from benchmarks.record import write
from infra.local_stack import tracking_uri
from infra.schedule.command import program
from infra.schedule.job import Files, Job
from infra.schedule.run import run_due
from model import columns
from model.files import write_whole
from model.schema import CREATED_AT, IMAGES, LABEL, POST_ID, SPLIT, TEST, TEXT, TITLE
from model.scorer import Scorer
from model.task import load_task
from steps.annotate.simulated import SimulatedAnnotator
from steps.ingest import sample
from steps.paths import REPOSITORY
from steps.register import history, registry
from steps.retrain.fresh import cursor_path, read_cursor
from steps.retrain.live import Share
from steps.settings import load_settings

RECORD = REPOSITORY / "benchmarks" / "quarter.json"
PAGE = REPOSITORY / "docs" / "quarter.md"
PLOT = REPOSITORY / "docs" / "images" / "quarter.png"
HOME = REPOSITORY / ".agentps" / "quarter"
MODEL = "agentps-ucc"

#: Days before the quarter that the first champion is trained on; then so many weeks. Posts per day.
HISTORY_DAYS, WEEKS, PER_DAY = 28, 12, 150
FIRST_MONDAY = datetime(2026, 6, 29, tzinfo=UTC)
#: The share of people's own albums that carry their watermark; from the first day of week `changed` on the second.
SIGNED, CHANGED = (0.05, 0.8), 7
#: Every so manieth post of the history is `split: test`: the benchmark.
BENCHMARK_EVERY = 10
#: People label a post so long after it.
LABEL_DELAY = timedelta(days=2)
PRECISION = 80
#: From the champion's weights; the first champion gets six, from scratch.
WEEKLY_EPOCHS = 2
#: So many weeks after the change, in the first whose champion is not the first one, `champion` goes back on Tuesday
#: evening and forward on Thursday evening.
ROLLBACK_AFTER = 2
_SEED = 11


# --- posts ------------------------------------------------------------------------------------------------


def compose(rng: np.random.Generator, signed: float) -> sample.SamplePost:
    """A post of the sample; where it is its author's own, it is signed in every image with probability `signed`, and
    not at all otherwise.
    """
    post, task = sample.compose_post(rng), load_task("ucc")
    answers = {q.id: q.class_of(post.counts[q.id], len(post.subjects)) for q in task.questions}
    relevant = answers["title_relevant"] or answers["text_relevant"]
    if not (answers["ugc"] and relevant and answers["theme_relevant"]):
        return post
    is_signed = rng.random() < signed
    watermark = sample.OVERLAYS.index("watermark")
    overlays = tuple(watermark if is_signed else 0 if overlay == watermark else overlay for overlay in post.overlays)
    return replace(post, overlays=overlays, counts=post.counts | {"watermark": len(overlays) if is_signed else 0})


def render_day(folder: Path, day: int, per_day: int, changed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The manifest's rows with the late label, and truths. Day 0 is the first of the quarter, the history is before."""
    task, rows, truths = load_task("ucc"), [], []
    (folder / "images" / f"{day:+04d}").mkdir(parents=True, exist_ok=True)
    for index in range(per_day):
        rng = np.random.default_rng((_SEED, day + HISTORY_DAYS, index))
        post = compose(rng, SIGNED[day >= 7 * (changed - 1)])
        names, hashes = sample.write_album(folder, f"images/{day:+04d}/{index:04d}", post, rng)
        answers = {q.id: q.class_of(post.counts[q.id], len(names)) for q in task.questions}
        post_id = f"{day:+04d}-{index:04d}"
        created = FIRST_MONDAY + timedelta(days=day + index / per_day)
        rows.append(
            {
                POST_ID: post_id,
                CREATED_AT: created.isoformat(timespec="seconds"),
                TITLE: post.title,
                TEXT: post.text,
                IMAGES: names,
                LABEL: sample.final_label(answers) ^ int(rng.random() < sample.LABEL_NOISE),
                **({SPLIT: TEST} if day < 0 and index % BENCHMARK_EVERY == 0 else {}),
            }
        )
        truths.append({POST_ID: post_id, "images_sha256": hashes, "n_images": len(names), **post.counts})
    return rows, truths


# --- the quarter ------------------------------------------------------------------------------------------


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@cache
def scorer(version: str) -> Scorer:
    return Scorer.from_directory(registry.fetch(registry.get(MODEL, version)), image_root="/")


def score(rows: list[dict[str, Any]], folder: Path, version: str) -> pd.DataFrame:
    posts = pd.DataFrame(rows)
    posts[IMAGES] = posts[IMAGES].map(lambda names: [str(folder / name) for name in names])
    return scorer(version).score(posts[[TITLE, TEXT, IMAGES]])


def agentps(*arguments: str) -> None:
    subprocess.run([program("agentps"), *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


class Quarter:
    """The world around the pipeline: posts that come by day, the served champion, people who label, the clock."""

    def __init__(self, home: Path, days: dict[int, list[dict[str, Any]]], per_day: int) -> None:
        self.home, self.posts = home, home / "posts"
        self.days, self.per_day = days, per_day
        self.scores, self.labels, self.notices = home / "scores.jsonl", home / "labels.jsonl", home / "notices.txt"
        self.labelled: set[str] = set()
        self.served: list[dict[str, Any]] = []
        self.weekly, self.first = home / "weekly.yaml", home / "first.yaml"
        common: dict[str, Any] = {
            "posts": str(self.posts),
            "annotator": "openai",
            # one attempt per post, so that requests, attempts and posts can be counted against each other
            "annotate": {"retries": 0},
            "ingest": {"val_share": 0.15},
            "evaluate": {"bootstrap": 100, "examples": 1},
            "retrain": {"labels": str(self.labels), "live_precision": PRECISION, "min_fresh": per_day},
            "notify": {"command": f"tee -a {self.notices}"},
        }
        self.first.write_text(yaml.safe_dump(common | {"fine_tune": {"epochs": 6}}), encoding="utf-8")
        weekly = common | {
            "retrain": common["retrain"] | {"scores": str(self.scores)},
            "fine_tune": {"epochs": WEEKLY_EPOCHS, "learning_rate": 5.0e-4},
        }
        self.weekly.write_text(yaml.safe_dump(weekly), encoding="utf-8")

    def arrive(self, day: int) -> list[dict[str, Any]]:
        """The day's manifest, without labels; its rows with them."""
        rows = self.days[day]
        date = FIRST_MONDAY + timedelta(days=day)
        append(self.posts / f"{date:%Y-%m-%d}.jsonl", [{k: v for k, v in row.items() if k != LABEL} for row in rows])
        return rows

    def serve(self, day: int, champion: str, first: str) -> None:
        """The champion scores the day's posts, and beside it the first champion, whom nobody retrained."""
        rows = self.arrive(day)
        by_champion = score(rows, self.posts, champion)
        by_first = by_champion if champion == first else score(rows, self.posts, first)
        at = (FIRST_MONDAY + timedelta(days=day + 1)).isoformat()
        decision = columns.decision_column(f"p{PRECISION}")
        append(
            self.scores,
            [
                {
                    POST_ID: row[POST_ID],
                    columns.SCORE: s,
                    columns.DECISION: bool(d),
                    columns.MODEL_VERSION: champion,
                    columns.SCORED_AT: at,
                }
                for row, s, d in zip(rows, by_champion[columns.SCORE], by_champion[decision], strict=True)
            ],
        )
        self.served += [
            {"week": day // 7 + 1, "version": champion, LABEL: row[LABEL], "with": bool(a), "without": bool(b)}
            for row, a, b in zip(rows, by_champion[decision], by_first[decision], strict=True)
        ]

    def label(self, now: datetime) -> None:
        """People label what is old enough by now."""
        due = [
            row
            for rows in self.days.values()
            for row in rows
            if row[POST_ID] not in self.labelled and datetime.fromisoformat(row[CREATED_AT]) <= now - LABEL_DELAY
        ]
        self.labelled |= {row[POST_ID] for row in due}
        append(self.labels, [{POST_ID: row[POST_ID], LABEL: row[LABEL]} for row in due])

    def retrain(self, config: Path, now: datetime) -> dict[str, Any]:
        """What the schedule does at `now`."""
        files = Files(self.home)
        job = Job(
            cron="0 6 * * 1",
            pipeline="pipelines.agentps_retraining",
            config=str(config),
            notify=load_settings({}).notify,
        )
        files.write(files.job, job)
        if files.read_progress() is None:
            files.update_progress(covered=now - timedelta(days=7))
        self.label(now)
        noticed = self.told()
        began = time.monotonic()
        outcome = run_due(self.home, now)
        seconds = time.monotonic() - began
        if outcome.code or outcome.undelivered:
            raise SystemExit(f"{outcome.line} {outcome.undelivered}")
        return {"at": now.isoformat(), "seconds": round(seconds, 1), "alarms": self.told()[len(noticed) :]}

    def told(self) -> list[str]:
        return self.notices.read_text(encoding="utf-8").splitlines() if self.notices.exists() else []

    def attempts(self) -> tuple[int, int]:
        """(attempts in the ledger, distinct posts among them)."""
        with closing(sqlite3.connect(self.home / "annotations.db")) as ledger:
            return ledger.execute("SELECT count(*), count(DISTINCT key) FROM annotation_answers").fetchone()


def champion() -> str:
    state = history.sync(MODEL)
    if state.champion is None:
        raise SystemExit("the first training was not promoted: see its log")
    return state.champion.version


def last_run() -> dict[str, Any]:
    """Of the newest run of the pipeline: what drifted, and the champion's live figures."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("agentps_retraining")
    if experiment is None:
        raise SystemExit("no retraining was run: see its log")
    runs = client.search_runs([experiment.experiment_id], max_results=2)
    run = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)  # not that of thresholds fitted again
    lines = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/drift/drift.json")["lines"]
    figures = run.data.metrics
    return {
        "drifted": [line["what"] for line in lines if line["outcome"] == "drift"],
        "effects": {line["what"]: line["effect"] and round(line["effect"], 3) for line in lines},
        "asked": int(figures["annotate_asked"]),
        "reused": int(figures["annotate_reused"]),
        "candidate_ap": round(figures["test_average_precision"], 4),
        "live": {k: round(v, 4) for k, v in figures.items() if k.startswith("live_")},
    }


@contextmanager
def workplace(home: Path, truth: pd.DataFrame) -> Iterator[SimulatedAnnotator]:
    """Everything lies under `home` while the block runs, and the simulated annotator answers by `truth`."""
    foreign = {name: os.environ.pop(name, None) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "TZ")}
    environment = {"AGENTPS_HOME": str(home), "ZENML_CONFIG_PATH": str(home / "zenml"), "TZ": "UTC"}
    foreign |= {name: os.environ.get(name) for name in (*environment, "OPENAI_BASE_URL", "OPENAI_API_KEY")}
    os.environ.update(environment)
    time.tzset()
    stack = [sys.executable, "-m", "infra.local_stack"]
    subprocess.run(stack, cwd=REPOSITORY, check=True)
    mlflow.set_tracking_uri(tracking_uri(home))
    try:
        with SimulatedAnnotator(truth, load_task("ucc")) as server:
            os.environ.update(OPENAI_BASE_URL=server.base_url, OPENAI_API_KEY=server.api_key)
            yield server
    finally:
        for name, value in foreign.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        subprocess.run(stack, cwd=REPOSITORY, check=True)  # the clone's own stack is active again


def run(weeks: int = WEEKS, changed: int = CHANGED, per_day: int = PER_DAY) -> dict[str, Any]:
    shutil.rmtree(HOME, ignore_errors=True)
    (HOME / "posts").mkdir(parents=True)
    began = time.monotonic()
    numbers = list(range(-HISTORY_DAYS, 7 * weeks))
    with ProcessPoolExecutor() as pool:
        rendered = list(
            pool.map(render_day, *zip(*((HOME / "posts", day, per_day, changed) for day in numbers), strict=True))
        )
    truth = pd.DataFrame([one for _, truths in rendered for one in truths])
    quarter = Quarter(HOME, {day: rows for day, (rows, _) in zip(numbers, rendered, strict=True)}, per_day)
    with workplace(HOME, truth) as server:
        record = live_through(quarter, weeks, changed)
        attempts, distinct = quarter.attempts()
        record["annotation"] = {"requests": server.requests, "attempts": attempts, "posts": distinct}
    record["minutes"] = round((time.monotonic() - began) / 60, 1)
    return record


def live_through(quarter: Quarter, weeks: int, changed: int) -> dict[str, Any]:
    for day in range(-HISTORY_DAYS, 0):
        quarter.arrive(day)
    six = timedelta(hours=6)
    runs = [quarter.retrain(quarter.first, FIRST_MONDAY + six) | decided() | last_run() | {"week": 0}]
    first, rollback = champion(), None
    for week in range(1, weeks + 1):
        serving = champion()
        doubted = rollback is None and week >= changed + ROLLBACK_AFTER and serving != first
        for day in range(7 * (week - 1), 7 * week):
            quarter.serve(day, champion(), first)
            if doubted and day % 7 == 1:
                agentps("rollback", "--because", "a reviewer doubts the new version", "-c", str(quarter.weekly))
                rollback = {"week": week, "from": serving, "back_to": champion()}
            if doubted and day % 7 == 3:
                agentps("promote", serving, "--because", "the doubt was unfounded", "-c", str(quarter.weekly))
        if doubted and champion() != serving:
            raise SystemExit(f"version {serving} is not champion again")
        now = FIRST_MONDAY + timedelta(weeks=week) + six
        one = quarter.retrain(quarter.weekly, now)
        runs.append(one | {"served": serving, "week": week} | decided() | last_run())
        partial = {"runs": runs, "weeks": weekly_figures(quarter.served)}
        (HOME / "partial.json").write_text(json.dumps(partial, indent=1), encoding="utf-8")
    # a week without a post
    versions = n_versions()
    idle = quarter.retrain(quarter.weekly, FIRST_MONDAY + timedelta(weeks=weeks + 1) + six)
    logs = sorted(Files(quarter.home).logs.glob("*.log"))
    idle |= {"versions_made": n_versions() - versions, "said": logs[-1].read_text().splitlines()[-1]}
    return {
        "posts_a_day": quarter.per_day,
        "changed": changed,
        "weeks": weekly_figures(quarter.served),
        "runs": runs,
        "idle": idle,
        "rollback": rollback,
        "moves": [
            f"{entry.move.kind}: {entry.before[registry.CHAMPION] or 'none'} → {entry.move.sets[registry.CHAMPION]}"
            for entry in history.sync(MODEL).entries
            if registry.CHAMPION in entry.move.sets
        ],
    }


def n_versions() -> int:
    return len(mlflow.search_model_versions(filter_string=f"name = '{MODEL}'"))


def decided(home: Path = HOME) -> dict[str, Any]:
    cursor = read_cursor(cursor_path(home, MODEL))
    if cursor is None:
        raise SystemExit("the retraining left no cursor: see its log")
    return {"version": cursor.version, "decision": cursor.decision, "champion": champion()}


def weekly_figures(served: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Live precision and recall by week, on all posts of the week once all are labelled: (k, n) each; and the precision
    of each version that served in it.
    """
    table = pd.DataFrame(served)
    positive = table[LABEL] == 1
    figures = []
    for week in sorted(set(table["week"])):
        rows = table[table["week"] == week]
        one: dict[str, Any] = {"week": int(week)}
        for side in ("with", "without"):
            hits = int((rows[side] & positive[rows.index]).sum())
            one[side] = {
                "precision": (hits, int(rows[side].sum())),
                "recall": (hits, int(positive[rows.index].sum())),
            }
        flagged = rows[rows["with"]].assign(hit=positive)
        one["versions"] = {
            str(version): (int(hits.sum()), len(hits)) for version, hits in flagged.groupby("version")["hit"]
        }
        figures.append(one)
    return figures


# --- the page ---------------------------------------------------------------------------------------------

_SIDES = {"with": "retrained every week", "without": "the first champion"}


def plot(record: dict[str, Any]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharex=True, layout="constrained")
    for axis, metric in zip(axes, ("precision", "recall"), strict=True):
        for side, name in _SIDES.items():
            shares = [(one["week"], Share(*one[side][metric])) for one in record["weeks"]]
            weeks, values = zip(*((week, 100 * share.k / share.n) for week, share in shares if share.n), strict=True)
            axis.plot(weeks, values, marker="o", markersize=4, label=name)
        axis.axvline(record["changed"] - 0.5, color="grey", linewidth=0.8, linestyle=":")
        axis.set_title(f"live {metric} by week, %", fontsize=10)
        axis.grid(alpha=0.2)
    axes[0].axhline(PRECISION, color="grey", linewidth=0.8)
    promoted = {run["week"] + 1 for run in record["runs"] if run["decision"].startswith("promoted") and run["week"]}
    for week in promoted & {one["week"] for one in record["weeks"]}:
        axes[0].axvline(week - 0.5, color="#2f6f5e", linewidth=0.8)
    axes[0].legend(fontsize=8, loc="lower left")
    figure.supxlabel("week; dotted: the mix changes; green: a new champion", fontsize=9)
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})
    plt.close(figure)


_PAGE = """# A quarter of weekly retrainings

This page shows [retraining](retraining.md) over {weeks} weeks whose posts change in the middle. `python -m
benchmarks.quarter` ran through it in {minutes:.0f} minutes on two busy cores. It wrote `benchmarks/quarter.json` and
this page.

**The posts** are those of the [sample](benchmark.md): {per_day} per day, one manifest per day. In the history and the
first {before} weeks {signed[0]:.0%} of people's own albums carry their watermark; from week {changed} on
{signed[1]:.0%} do. The policy does not change: an own album is no violation, signed or not. But before the change a
watermark nearly always meant a copy.

**Everything else is what a user runs.** The schedule, on a clock of its own, starts the literal command each Monday at
6:00. The annotator is reached over HTTP. People label a post {delay} days after it. The champion of the day scores the
day's posts at its threshold for {precision} % precision. Week 0 trains the first champion from scratch on {history}
days; later runs train {epochs} epochs from the champion's weights on the window of 28 days.

![Live precision and recall by week](images/quarter.png)

Live precision and recall on all posts of a week, once they are labelled:

| week | served | precision, 95 % interval | recall | precision without retraining | recall without retraining |
|---|---|---|---|---|---|
{served}

{kept}

{summary}

## Every run

`drift`: lines of the drift page above their limits. `live`: the champion's precision on what it scored in the newest 14
days, as the run saw it with the labels of that Monday, and its upper bound. If the bound is below the promise, the
champion counts as stale. A candidate then need not be surely better, but must not be worse by more than
`promote.stale_tolerance`. A champion that flags nothing counts as stale, too: see [retraining](retraining.md).

| run after week | candidate | verdict and reason | champion then | drift | live |
|---|---|---|---|---|---|
{runs}

{alarms}

## No post is annotated twice

{annotation}

## Back and forward

{rollback}

The moves of `champion`: {moves}.

## Nothing fresh

The Monday after the last week nothing new had come. The scheduled command took {idle_seconds:.1f} s, made
{idle_versions} versions and said:

```text
{idle_said}
```
"""


def _share(pair: list[int]) -> str:
    share = Share(*pair)
    return "–" if share.value is None else f"{share.value:.1%}"


def _bounds(pair: list[int]) -> tuple[float, float]:
    if not pair[1]:
        return 0.0, 1.0
    found = binomtest(*pair).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def _interval(pair: list[int]) -> str:
    low, high = _bounds(pair)
    return f"{_share(pair)} [{low:.1%}, {high:.1%}]"


def _kept(weeks: list[dict[str, Any]], changed: int, back: dict[str, Any] | None) -> str:
    """In which weeks the served precision's interval covers or exceeds the promise, and in which nothing is flagged.
    Days on which a version served by a person's word do not count.
    """
    broken = [one["week"] for one in weeks if _bounds(_chosen(one, back))[1] < PRECISION / 100]
    before, after = ([week for week in broken if (week < changed) is side] for side in (True, False))
    again = next((week for week in range(changed, len(weeks) + 1) if all(week > late for late in after)), None)
    said = f"Before the change the interval lies below the promise of {PRECISION} % in "
    said += f"week {', '.join(map(str, before))}" if before else "no week"
    said += f"; after it in week {', '.join(map(str, after))}" if after else "; after it in none"
    if after:
        said += f": kept again from week {again} on, after {again - changed} retrainings" if again else ": to the end"
    if back is not None:
        said += (
            f" (without the two days of week {back['week']} on which a person had rolled back to version "
            f"{back['back_to']}, see below)"
        )
    if silent := [str(one["week"]) for one in weeks if not one["with"]["precision"][1]]:
        said += f". In week {', '.join(silent)} nothing was flagged: of that champion no threshold could be promised"
    return f"{said}."


def _chosen(week: dict[str, Any], back: dict[str, Any] | None) -> list[int]:
    """(right, flagged) of the versions that the retrainings chose."""
    by_hand = back["back_to"] if back is not None and back["week"] == week["week"] else None
    pairs = [pair for version, pair in week["versions"].items() if version != by_hand]
    return [sum(pair[k] for pair in pairs) for k in (0, 1)]


def _pooled(weeks: list[dict[str, Any]], side: str, metric: str) -> str:
    return str(Share(*(sum(one[side][metric][k] for one in weeks) for k in (0, 1))))


def page(record: dict[str, Any]) -> str:
    weeks, runs, changed = record["weeks"], record["runs"], record["changed"]
    served = {run["week"]: run["served"] for run in runs[1:]}
    after = [one for one in weeks if one["week"] > changed]
    alarms = [(run["week"], line) for run in runs for line in run["alarms"]]
    annotation, back, idle = record["annotation"], record["rollback"], record["idle"]
    by_version = weeks[back["week"] - 1]["versions"] if back is not None else {}
    others = [("with", "recall"), ("without", "precision"), ("without", "recall")]
    if annotation["requests"] != annotation["posts"]:
        raise SystemExit(f"{annotation}: a post was asked twice; the page says otherwise")
    return _PAGE.format(
        weeks=len(weeks),
        minutes=record["minutes"],
        per_day=record["posts_a_day"],
        before=changed - 1,
        changed=changed,
        signed=SIGNED,
        delay=LABEL_DELAY.days,
        precision=PRECISION,
        history=HISTORY_DAYS,
        epochs=WEEKLY_EPOCHS,
        served="\n".join(
            f"| {one['week']} | version {served[one['week']]} | {_interval(one['with']['precision'])} | "
            + " | ".join(_share(one[side][metric]) for side, metric in others)
            + " |"
            for one in weeks
        ),
        kept=_kept(weeks, changed, back),
        summary=(
            f"After the first week of the new mix (weeks {changed + 1} to {len(weeks)} together): with retraining "
            f"precision {_pooled(after, 'with', 'precision')} and recall {_pooled(after, 'with', 'recall')}; without, "
            f"precision {_pooled(after, 'without', 'precision')} and recall {_pooled(after, 'without', 'recall')}."
        ),
        runs="\n".join(map(_row, runs)),
        alarms="\n".join(
            ["A person was told, through `notify.command`:" if alarms else "No alarm was raised.", ""]
            + [f"- after week {week}: {line.partition(': ')[2]}" for week, line in alarms]
        ).rstrip(),
        annotation=(
            f"{annotation['requests']:,} requests reached the annotator, the ledger holds {annotation['attempts']:,} "
            f"attempts for {annotation['posts']:,} distinct posts: one each. The runs asked for "
            f"{sum(run['asked'] for run in runs):,} answers and took {sum(run['reused'] for run in runs):,} from the "
            "ledger, the window's older posts."
        ),
        rollback=(
            "No new champion had come by then, so nothing could be rolled back."
            if back is None
            else f"On Tuesday of week {back['week']} `agentps rollback` gave `champion` from version {back['from']} "
            f"back to version {back['back_to']}, which scored Wednesday's and Thursday's posts; on Thursday evening "
            f"`agentps promote {back['from']}` went forward again. Of what version {back['back_to']} flagged in those "
            f"two days {Share(*by_version.get(back['back_to'], (0, 0)))} was right; of what version {back['from']} "
            f"flagged in the other five, {Share(*by_version.get(back['from'], (0, 0)))}."
        ),
        moves="; ".join(record["moves"]),
        idle_seconds=idle["seconds"],
        idle_versions=idle["versions_made"] or "no",
        idle_said=idle["said"],
    )


def _row(run: dict[str, Any]) -> str:
    live = run["live"]
    seen = (
        f"{live['live_precision']:.1%}, at most {live['live_precision_high']:.1%}" if "live_precision" in live else "–"
    )
    verdict, _, reason = run["decision"].partition(": ")
    drifted = ", ".join(f"{what} {run['effects'][what]}" for what in run["drifted"]) or "–"
    cells = (run["week"], f"version {run['version']}", f"**{verdict}**: {reason}", run["champion"], drifted, seen)
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weeks", type=int, default=WEEKS)
    parser.add_argument("--changed", type=int, default=CHANGED, help="the first week of the new mix")
    asked = parser.parse_args()
    if not RECORD.exists():
        write(RECORD, run(asked.weeks, asked.changed))
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    plot(record)
    write_whole(PAGE, page(record))


if __name__ == "__main__":
    main()
