"""A simulated month: posts come by a stream, people look at them at the review desk, and their labels train the model.

    .venv/bin/python -m benchmarks.month          # four weeks: a core for about an hour
    .venv/bin/python -m benchmarks.month --weeks 1 --posts 60

Writes `benchmarks/month.json` (delete it to run the month again), and from it a section of `docs/desk.md`. Posts, their
hidden truth, the schedule and the simulated annotator are those of `benchmarks.quarter`. What runs is what a team runs:
`agentps stream` on a folder, `agentps desk`, whose pages people use over HTTP with their own passwords, and each Monday
the literal `zenml pipeline run pipelines.agentps_retraining -c FILE`, whose labels are those of the desk's store. Both
commands have a clock of their own (`benchmarks.clock`). Everything lies under `.agentps/month`.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pandas as pd
import yaml

from benchmarks.clock import move
from benchmarks.quarter import (
    FIRST_MONDAY,
    HISTORY_DAYS,
    PRECISION,
    Quarter,
    append,
    champion,
    decided,
    last_run,
    render_day,
    score,
    workplace,
)
from benchmarks.record import put, table, write
from model import columns
from model.files import write_whole
from model.schema import CREATED_AT, LABEL, POST_ID
from model.task import load_task
from steps.paths import REPOSITORY
from tests.support.desk import PASSWORD, Browser

RECORD = REPOSITORY / "benchmarks" / "month.json"
PAGE = REPOSITORY / "docs" / "desk.md"
HOME = REPOSITORY / ".agentps" / "month"

WEEKS, PER_DAY = 4, 120
#: The mix of posts changes with the first day of this week (`benchmarks.quarter`).
CHANGED = 2
#: The share of both sides that is drawn for people, and how often a reviewer errs, in the decision and in each answer.
SHARE, ERROR = 0.5, 0.04
#: Before the Thursday of the last week an owner confirms a policy with this target.
OTHER_PRECISION = 75
REVIEWERS = ("ann", "bob")
ROLES: dict[str, str] = {**dict.fromkeys(REVIEWERS, "reviewer"), "lena": "lead", "olga": "owner"}
#: Posts of the first day whose labels the lead makes known; posts that are asked about at the end.
GOLD, ASKED = 10, 60
_SEED, _PATIENCE = 5, 1_800.0
#: A row of a post's page: when, the version, its score, its threshold, the policy, what and why.
_DECIDED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d \d+ 0\.\d{3} ")
_CELL = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.DOTALL)


class Person(Browser):
    """Somebody at the desk. They err as often as `error` says, on the same posts each time they are asked."""

    def __init__(self, address: str, name: str, truth: Mapping[str, Mapping[str, int]], error: float) -> None:
        super().__init__(address)
        self.name, self.truth, self.error = name, truth, error
        self.here = ""

    def _had(self, answer: Any) -> Any:
        answer.raise_for_status()
        self.here = answer.url
        return super()._had(answer)

    def come(self) -> None:
        """Sign in; a desk that has seen too many tries of this address is asked again in a while, as it says."""
        while True:
            self.get(f"{self.address}/sign-in").raise_for_status()
            answer = self.post(f"{self.address}/sign-in", {"name": self.name, "password": PASSWORD})
            if answer.status_code != 429:
                self._had(answer)
                return
            time.sleep(6)

    def says(self, post_id: str) -> dict[str, int]:
        """The class of the decision ("") and of each question."""
        rng = np.random.default_rng([_SEED, *self.name.encode(), *post_id.encode()])
        task, truth = load_task("ucc"), self.truth[post_id]
        said = {"": truth[""] ^ int(rng.random() < self.error)}
        for question in task.questions:
            wrong = rng.random() < self.error
            others = [index for index in range(len(question.classes)) if index != truth[question.id]]
            said[question.id] = int(rng.choice(others)) if wrong else truth[question.id]
        return said

    def decide(self) -> dict[str, Any] | None:
        """About the post that the page shows; the page of the next one follows. None: nothing waits."""
        address = urlsplit(self.here)
        if address.path != "/post":
            return None
        post_id = parse_qs(address.query)["id"][0]
        said = self.says(post_id)
        answers = {f"answer {name}": str(index) for name, index in said.items() if name}
        self.fill("/decide", answers, what="positive" if said[""] else "negative")
        return {POST_ID: post_id, "reviewer": self.name, **said}


class Month(Quarter):
    """The quarter's world, with a stream and a desk in the place of its own scoring and labels."""

    def __init__(self, home: Path, days: dict[int, list[dict[str, Any]]], per_day: int, truths: pd.DataFrame) -> None:
        super().__init__(home, days, per_day)
        self.store = f"sqlite:///{home}/scores.db"
        self.inbox, self.clock, self.policy = home / "in", home / "clock", home / "policy.yaml"
        self.inbox.mkdir(parents=True)
        self.truth = _truth(days, truths)
        self.reviews: list[dict[str, Any]] = []
        self.scored_by: dict[int, str] = {}
        for path, changes in (
            (self.first, {"labels": None}),
            (self.weekly, {"labels": self.store, "scores": self.store}),
        ):
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            config["retrain"] |= changes
            path.write_text(yaml.safe_dump(config), encoding="utf-8")
        section: dict[str, Any] = {"source": str(self.inbox), "images": str(self.posts), "policy": str(self.policy)}
        section |= {"store": self.store, "watch": 1}
        self.stream_file = home / "stream.yaml"
        self.stream_file.write_text(yaml.safe_dump({"stream": section}), encoding="utf-8")
        policy = {"name": "month", "version": 1, "task": "ucc", "precision": PRECISION}
        self.policy.write_text(yaml.safe_dump(policy | {"audit": {"flag": SHARE, "pass": SHARE}}), encoding="utf-8")

    def arrive(self, day: int) -> list[dict[str, Any]]:
        """The history is labelled in its manifests; what comes later is labelled at the desk or not at all."""
        if day >= 0:
            return super().arrive(day)
        append(self.posts / f"{FIRST_MONDAY + timedelta(days=day):%Y-%m-%d}.jsonl", self.days[day])
        return self.days[day]

    def label(self, now: datetime) -> None:
        """Nobody sends labels in a file."""

    def at(self, day: int, hour: float) -> datetime:
        now = FIRST_MONDAY + timedelta(days=day, hours=hour)
        move(self.clock, now)
        return now

    def stream_day(self, day: int) -> None:
        """The day's posts come by the stream; returns when the worker has a record of each."""
        self.at(day, 22)
        rows = self.arrive(day)
        hidden, name = self.inbox / ".part", f"{day:04d}.jsonl"
        append(hidden, [{k: v for k, v in row.items() if k not in (LABEL, CREATED_AT)} for row in rows])
        hidden.rename(self.inbox / name)
        until(lambda: (self.inbox / "done" / name).exists(), f"day {day} is scored")
        self.scored_by[day] = champion()

    def review(self, people: Mapping[str, Person], now: datetime) -> None:
        """The reviewers empty the queue of the random share, in turn; then the lead decides where they differ."""
        busy = []
        for name in REVIEWERS:
            people[name].come()
            people[name].go("/queue?queue=audit")
            people[name].fill("/next")
            busy.append(people[name])
        while busy:
            for person in list(busy):
                said = person.decide()
                if said is None:
                    busy.remove(person)
                else:
                    self.reviews.append(said | {"at": now.isoformat()})
        lead = people["lena"]
        lead.come()
        lead.go("/disputed")
        for link in re.findall(r'<li><a href="(/post\?id=[^"]*)"', lead.page):
            lead.go(unescape(link))
            lead.fill("/claim")
            if (said := lead.decide()) is not None:
                self.reviews.append(said | {"at": now.isoformat()})

    def week(self, number: int, lead: Person) -> dict[str, Any]:
        """What the desk says of the newest seven days, and the truth of the same posts."""
        lead.come()
        lead.go("/quality?days=7")
        found = next(row for row in rows_of(lead.page) if row[0] == f"version {self.scored_by[7 * number - 1]}")
        flags = pd.read_sql(
            "SELECT post_id, action FROM scoring_current WHERE day >= ? AND day < ?",
            self.store,
            params=tuple(f"{FIRST_MONDAY + timedelta(weeks=week):%Y-%m-%d}" for week in (number - 1, number)),
        )
        flagged = flags.loc[flags["action"] == "flag", "post_id"]
        label = pd.Series({post_id: said[""] for post_id, said in self.truth.items()})
        positives = label[flags["post_id"]].sum()
        hits = int(label[flagged].sum())
        return {
            "week": number,
            "labelled": found[1],
            "precision": _estimate(found[2]) | {"truth": [hits, len(flagged)]},
            "recall": _estimate(found[3]) | {"truth": [hits, int(positives)]},
        }


def _truth(days: dict[int, list[dict[str, Any]]], truths: pd.DataFrame) -> dict[str, dict[str, int]]:
    """By post: the label ("") and the class of each question."""
    counts = {str(row[POST_ID]): row for row in truths.to_dict("records")}
    found = {}
    for row in (row for rows in days.values() for row in rows):
        count = counts[row[POST_ID]]
        classes = {q.id: q.class_of(int(count[q.id]), int(count["n_images"])) for q in load_task("ucc").questions}
        found[row[POST_ID]] = {"": int(row[LABEL]), **classes}
    return found


def _estimate(cell: str) -> dict[str, Any]:
    """Of a page's cell, as `81.2 % (75.0 to 86.1 %)`."""
    *value, low, high = (float(number) / 100 for number in re.findall(r"\d+\.\d+", cell))
    return {"value": value[0] if value else None, "low": round(low, 4), "high": round(high, 4)}


def rows_of(page: str) -> list[list[str]]:
    """The cells of every table's rows, as text."""
    found = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in _CELL.findall(row)] for row in found]


def until(done: Any, what: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {_PATIENCE:.0f} s")
        time.sleep(0.1)


@contextmanager
def running(month: Month, *words: str) -> Iterator[Path]:
    """`agentps` with these words, on the month's clock; what it prints is in the file."""
    log = month.home / f"{words[0]}-{time.time_ns()}.log"
    command = [sys.executable, "-m", "benchmarks.clock", str(month.clock), *words]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file)
    try:
        yield log
    finally:
        process.terminate()
        process.wait(timeout=120)


def said_in(log: Path, pattern: str) -> str:
    until(lambda: re.search(pattern, log.read_text(encoding="utf-8")), f"{log}: {pattern}")
    found = re.search(pattern, log.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


@contextmanager
def streaming(month: Month) -> Iterator[None]:
    with running(month, "stream", "-c", str(month.stream_file)) as log:
        said_in(log, "(posts are taken)")
        yield


def gather(month: Month, log: Path) -> dict[str, Person]:
    """The owner comes by the first link, and makes the others; each one chooses a password."""
    link = said_in(log, r"(http://\S+/link/\S+)")
    address = f"http://{urlsplit(link).netloc}"
    people = {name: Person(address, name, month.truth, ERROR if name in REVIEWERS else 0) for name in ROLES}
    owner = people["olga"]
    links: dict[str, str] = {}
    owner.go(urlsplit(link).path)
    owner.fill(urlsplit(link).path, password=PASSWORD)
    owner.go("/users")
    for name, role in ROLES.items():
        owner.fill("/users", name=name, role=role, what="add")
        links[name] = re.findall(r"http://\S+?/link/[\w-]+", owner.page)[0]
    for name in ROLES:
        people[name].cookies.clear()
        people[name].go(urlsplit(links[name]).path)
        people[name].fill(urlsplit(links[name]).path, password=PASSWORD)
    return people


def make_gold(lead: Person, rows: list[dict[str, Any]]) -> None:
    lead.come()
    for row in rows[:: max(1, len(rows) // GOLD)][:GOLD]:
        lead.go(f"/post?id={quote(row[POST_ID])}")
        lead.fill("/gold", label=str(lead.truth[row[POST_ID]][""]), why="two experts looked at it")


def change_policy(people: Mapping[str, Person]) -> None:
    """The lead proposes another target, the owner confirms it."""
    lead, owner = people["lena"], people["olga"]
    lead.come()
    lead.go(f"/what-if?asked=1&precision={OTHER_PRECISION}")
    lead.fill("/what-if", why="too much is missed")
    owner.come()
    owner.go("/what-if")
    owner.fill("/confirm")

    def done() -> bool:
        owner.go("/what-if")
        return "are decided anew" not in owner.page

    until(done, "stored records are decided anew")


def live_through(month: Month, weeks: int) -> dict[str, Any]:
    for day in range(-HISTORY_DAYS, 0):
        month.arrive(day)
    now = month.at(0, 6)
    runs = [month.retrain(month.first, now) | decided(month.home) | last_run() | {"week": 0}]
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        desk = ("desk", "--port", "0", "--posts", str(month.posts), "--policy", str(month.policy))
        log = stack.enter_context(running(month, *desk, "--scores", month.store, "-c", str(month.weekly)))
        people = gather(month, log)
        worker = stack.enter_context(ExitStack())
        worker.enter_context(streaming(month))
        change = 7 * weeks - 4
        for day in range(7 * weeks):
            if day:
                month.review(people, month.at(day, 9))
            if day == 1:
                make_gold(people["lena"], month.days[0])
            if day == change:
                change_policy(people)
                worker.close()  # a stream reads its policy when it starts
                worker.enter_context(streaming(month))
            month.stream_day(day)
            if day % 7 == 6:
                found.append(month.week(day // 7 + 1, people["lena"]))
                one = month.retrain(month.weekly, month.at(day + 1, 6)) | decided(month.home) | last_run()
                runs.append(one | {"served": month.scored_by[day], "week": day // 7 + 1})
                partial = {"runs": runs, "weeks": found}
                (month.home / "partial.json").write_text(json.dumps(partial, indent=1), encoding="utf-8")
                time.sleep(2)  # the stream looks for a new champion each second
        month.review(people, month.at(7 * weeks, 9))
        told = tell(month, people, change, 7 * weeks)
    given = {"posts_a_day": month.per_day, "changed": CHANGED, "share": SHARE, "error": ERROR}
    return given | {"weeks": found, "runs": runs} | told


# --- any post on any day ----------------------------------------------------------------------------------


def tell(month: Month, people: Mapping[str, Person], change: int, today: int) -> dict[str, Any]:
    """Random posts on random days: what the desk's pages and its export tell, against what the world knows.

    The world knows which version was champion when, scores the posts once more by it, and wrote down who said what.
    """
    lead, owner = people["lena"], people["olga"]
    lead.come()
    owner.come()
    answer = owner.get(f"{owner.address}/trail.parquet")
    answer.raise_for_status()
    trail = pd.read_parquet(io.BytesIO(answer.content))
    rng = np.random.default_rng(_SEED)
    reviews = pd.DataFrame(month.reviews)
    wrong: list[str] = []
    n_reviewed = 0
    for _ in range(ASKED):
        scored = int(rng.integers(today))
        day = int(rng.integers(scored, today))
        row = month.days[scored][int(rng.integers(month.per_day))]
        post_id, version = row[POST_ID], month.scored_by[scored]
        lead.go(f"/post?id={quote(post_id)}")
        end = f"{FIRST_MONDAY + timedelta(days=day + 1):%Y-%m-%d %H:%M}"
        last = [cells for cells in rows_of(lead.page) if _DECIDED.match(" ".join(cells)) and cells[0] < end][-1]
        again = score([row], month.posts, version).iloc[0]
        target = OTHER_PRECISION if max(scored, day) >= change else PRECISION
        action = "flag" if again[columns.decision_column(f"p{target}")] else "pass"
        expected = [version, f"{again[columns.SCORE]:.3f}", f"{action}: p{target}"]
        same = last[1] == version and abs(float(last[2]) - again[columns.SCORE]) < 0.001 and last[5] == expected[2]
        if not same or not re.fullmatch(r"month-[12]-\w{12}", last[4]):
            wrong.append(f"{post_id} on day {day}: {last}; expected {expected}")
        ours = reviews[reviews[POST_ID] == post_id]
        theirs = trail[trail[POST_ID] == post_id]
        n_reviewed += len(ours) > 0
        wrong += _compared(post_id, ours, theirs)
    everything = [(len(trail), len(reviews))] if len(trail) != len(reviews) else []
    return {
        "asked": ASKED,
        "asked_reviewed": n_reviewed,
        "wrong": wrong + [f"{one} rows in the trail, {two} reviews" for one, two in everything],
        "reviews": len(trail),
        "kinds": {str(kind): int(n) for kind, n in trail["kind"].value_counts().items()},
        "reviewers": accuracy(lead),
        "kappa": next(row[3] for row in rows_of(lead.page) if row[0] == "the decision"),
    }


def _compared(post_id: str, ours: pd.DataFrame, theirs: pd.DataFrame) -> list[str]:
    """Who said what of a post and when, by the trail, against what the people themselves wrote down."""
    task = load_task("ucc")
    known = [
        (row["reviewer"], row["at"][:13], row[""], *(q.classes[row[q.id]] for q in task.questions))
        for row in ours.to_dict("records")
    ]
    told = [
        (row["reviewer"], f"{row['at']:%Y-%m-%dT%H}", row["label"], *(row[f"review_{q.id}"] for q in task.questions))
        for row in theirs.to_dict("records")
    ]
    return [] if sorted(known) == sorted(told) else [f"{post_id}: the trail says {told}, people said {known}"]


def accuracy(lead: Person) -> dict[str, str]:
    """Of each reviewer on known labels, as the desk says it; the page stays open."""
    lead.go("/quality?days=28")
    return {row[0]: row[1] for row in rows_of(lead.page) if row[0] in ROLES}


def run(weeks: int, per_day: int) -> dict[str, Any]:
    shutil.rmtree(HOME, ignore_errors=True)
    (HOME / "posts").mkdir(parents=True)
    began = time.monotonic()
    numbers = list(range(-HISTORY_DAYS, 7 * weeks))
    with ProcessPoolExecutor() as pool:
        given = ((HOME / "posts", day, per_day, CHANGED) for day in numbers)
        rendered = list(pool.map(render_day, *zip(*given, strict=True)))
    truth = pd.DataFrame([one for _, truths in rendered for one in truths])
    days = {day: rows for day, (rows, _) in zip(numbers, rendered, strict=True)}
    with workplace(HOME, truth):
        record = live_through(Month(HOME, days, per_day, truth), weeks)
    return record | {"minutes": round((time.monotonic() - began) / 60, 1)}


# --- the page ---------------------------------------------------------------------------------------------


def _with_truth(found: Mapping[str, Any]) -> str:
    hits, n = found["truth"]
    truth = hits / n if n else float("nan")
    mark = "" if found["low"] <= truth <= found["high"] else " (outside)"
    value = "–" if found["value"] is None else f"{found['value']:.1%}"
    return f"{value} [{found['low']:.1%}, {found['high']:.1%}]; {truth:.1%}{mark}"


_SECTION = """`python -m benchmarks.month` ran through {weeks} weeks in {minutes:.0f} minutes. {posts_a_day} posts
per day come by `agentps stream`. The policy draws {share:.0%} of both sides for people. Two reviewers, who err in
{error:.0%} of what they say, and a lead work at the desk's pages over HTTP, the next morning. Each Monday the scheduled
`zenml pipeline run` of the [retraining](retraining.md) trains on the labels of the desk's store. The posts change with
the first day of week {changed}, as in the [quarter](quarter.md). On Thursday of the last week an owner confirms a
policy with another precision target.

{table}

In brackets: the desk's 95 % interval on Sunday evening, when nobody has looked at Sunday's posts yet. People's own
errors are not in it: a passed post that is called positive by mistake lowers the recall. The truth is that of all
posts of the week. There were {reviews:,} reviews ({kinds}). On known labels {accuracy}. Cohen's kappa of
two looks: {kappa}.

**Any post on any day.** {asked} random posts were asked about, each on a random day since it came; people had looked at
{asked_reviewed} of them. The post's page told the version, its score, the decision, its reason and the policy of that
day, and the export who said what and when. Against what the benchmark knew by itself (each post scored anew by the
champion of its day, each person's own notes) {wrong}."""


def section(record: dict[str, Any]) -> str:
    header = ["week", "version", "labelled of drawn", "precision: desk; truth", "recall: desk; truth", "retraining"]
    runs = {run["week"]: run for run in record["runs"]}
    rows = [
        (
            one["week"],
            runs[one["week"]]["served"],
            one["labelled"],
            _with_truth(one["precision"]),
            _with_truth(one["recall"]),
            runs[one["week"]]["decision"],
        )
        for one in record["weeks"]
    ]
    told = {
        "weeks": len(rows),
        "table": table(header, rows),
        "kinds": ", ".join(f"{kind}: {n:,}" for kind, n in record["kinds"].items()),
        "accuracy": ", ".join(f"{who} was right in {hits}" for who, hits in record["reviewers"].items()),
        "wrong": f"{len(record['wrong'])} differed" if record["wrong"] else "none differed",
    }
    return _SECTION.format(**(record | told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weeks", type=int, default=WEEKS)
    parser.add_argument("--posts", type=int, default=PER_DAY, help="per day")
    asked = parser.parse_args()
    if not RECORD.exists():
        write(RECORD, run(asked.weeks, asked.posts))
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    if "<!-- month -->" not in text:
        marks = "## A simulated month\n\n<!-- month -->\n<!-- /month -->\n\n## How fast\n"
        write_whole(PAGE, text.replace("## How fast\n", marks))
    put({"month": section(record)}, PAGE)


if __name__ == "__main__":
    main()
