"""How long each page of the review desk takes as the store grows: `python -m benchmarks.desk --posts 10000 100000`.

Real HTTP on loopback, records of 30 days with five questions, a sixth of them flagged, a fiftieth drawn for people.
People have looked at all of these but the last day's, at a tenth of them twice. Writes the table of docs/desk.md, in
milliseconds: the median and the worst of the tries, and the first answer. The first answers come while the store is
read into memory; after how long it is there is the first row. Other work on the machine counts in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import requests
import uvicorn
from sqlalchemy import Connection, insert, or_, select, true, update

from benchmarks.record import put, table
from model.images import ImageLimits
from model.task import load_task
from scoring.desk.app import create_app
from scoring.desk.people import People
from scoring.desk.posts import Posts
from scoring.desk.run import kept_up
from scoring.desk.work import Desk
from scoring.policy import Policy
from scoring.record import Answer, Record
from scoring.store import Store
from steps.paths import REPOSITORY
from steps.retrain.reviewed import LABELS, REVIEWS
from steps.retrain.stored import CURRENT, HISTORY

PAGE = REPOSITORY / "docs" / "desk.md"
#: Posts that are scored and decided one by one.
_FIRST = 10_000
_THERE = "counts are in memory after"
PAGES = {
    "queue": "/queue",
    "queue, last day": "/queue?day={day}",
    "queue, an answer": "/queue?answer=watermark:yes",
    "queue, a rare answer and day": "/queue?answer=watermark:yes&day=2020-01-01",
    "queue, a slice": "/queue?slice=month+2026-03",
    "near the threshold": "/queue?queue=near",
    "random share": "/queue?queue=audit",
    "post": "/post?id=post-1",
    "errors": "/errors",
    "quality": "/quality",
    "quality, slices": "/quality?version=2",
    "what if": "/what-if",
    "what if, other rules": "/what-if?asked=1&precision=90&when+0=watermark+and+score+>+0.4&action+0=review",
    "audit trail": "/trail",
}


def fill(desk: Desk, count: int, rng: np.random.Generator) -> None:
    """The first posts are put as every scorer does; the others are copies of them, of later times."""
    now = datetime.now(UTC)
    first = min(count, _FIRST)
    for start in range(0, first, 1_000):
        records = []
        for number in range(start, min(first, start + 1_000)):
            score = float(rng.beta(0.5, 2.5))
            answers = {
                question.id: Answer(answer=question.classes[int(rng.random() < 0.3)], probability=float(rng.random()))
                for question in desk.task.questions
            }
            records.append(
                Record(
                    post_id=f"post-{number}", model_name=desk.model_name, model_version="1",
                    policy_version=None, latency_ms=None, error=None,
                    task=desk.task.fingerprint, input_sha256=f"{number:064x}", score=score, logit=None, answers=answers,
                    scored_at=now - timedelta(days=30 * (1 - number / count)),
                    decisions={f"p{point}": score >= point / 200 for point in (60, 70, 80, 90)},
                )
            )  # fmt: skip
        desk.store.put([(record, desk.policy.decide(record)) for record in records])
    for start in range(first, count, first):
        copy(desk, start, min(first, count - start), now - timedelta(days=30 * (1 - start / count)), 30 / count)
    look_at(desk, now)


def copy(desk: Desk, start: int, count: int, since: datetime, days: float) -> None:
    """The first `count` posts again, numbered from `start`, one each so many days."""
    history = desk.rows(select(HISTORY).order_by(HISTORY.c.id).limit(count))
    current = {row.history_id: row for row in desk.rows(select(CURRENT).where(CURRENT.c.history_id <= count))}
    told, kept = [], []
    for place, row in enumerate(history):
        number, at = start + place, since + place * timedelta(days=days)
        new = {"post_id": f"post-{number}", "model_version": str(1 + place % 2), "scored_at": at}
        told.append(row._asdict() | new | {"id": number + 1, "key": f"{number:064}", "input_sha256": f"{number:064x}"})
        changed = {"history_id": number + 1, "day": at.date(), "change": 1_000 + number // 1_000}
        kept.append(current[row.id]._asdict() | new | changed)

    def write(connection: Connection) -> None:
        connection.execute(insert(HISTORY), told)
        connection.execute(insert(CURRENT), kept)

    desk.store.do(write, writes=True)


def look_at(desk: Desk, now: datetime) -> None:
    """People have looked at all posts before the last day that are flagged or were drawn; at a tenth of them twice."""
    People(desk.store).add("ann", "reviewer")
    People(desk.store).add("bob", "reviewer")
    columns = (CURRENT.c.post_id, CURRENT.c.history_id, CURRENT.c.model_version, HISTORY.c.input_sha256)
    query = select(*columns).join(HISTORY, HISTORY.c.id == CURRENT.c.history_id)
    query = query.where(CURRENT.c.day < now.date(), or_(CURRENT.c.action == "flag", CURRENT.c.audit == true()))
    posts = [row._asdict() | {"model_name": desk.model_name, "answers": {}, "at": now} for row in desk.rows(query)]
    labels, reviews = [], []
    for number, post in enumerate(posts):
        said = post | {"label": number % 3 == 0, "note": "", "policy_version": None}
        looks = [("ann", "first"), ("bob", "second")][: 2 if number % 10 == 0 else 1]
        reviews += [said | {"reviewer": who, "kind": kind, "nonce": f"{kind}-{number}"} for who, kind in looks]
        label = {name: said[name] for name in ("model_name", "post_id", "input_sha256", "label", "answers", "at")}
        labels.append(label | {"state": "done", "first_by": "ann", "second_by": "bob" if len(looks) > 1 else None})
    done = update(CURRENT).where(CURRENT.c.post_id.in_(select(LABELS.c.post_id))).values(waiting=False)

    def write(connection: Connection) -> None:
        connection.execute(insert(REVIEWS), reviews)
        connection.execute(insert(LABELS), labels)
        connection.execute(done)

    desk.store.do(write, writes=True)


@contextmanager
def served(desk: Desk) -> Iterator[str]:
    app = create_app(desk)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    with kept_up(app.state.web):
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()


def measure(folder: Path, count: int, tries: int) -> dict[str, list[float]]:
    policy = {"name": "b", "version": 1, "task": "ucc", "precision": 80, "audit": {"flag": 0.05, "pass": 0.02}}
    manifest = folder / f"posts-{count}.jsonl"
    with manifest.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {"post_id": f"post-{number}", "title": f"title {number}", "text": "words " * 20, "images": ["a.jpg"]}
            file.write(json.dumps(row | {"created_at": f"2026-{1 + number % 12:02}-01T00:00:00+00:00"}) + "\n")
    with Store.open(f"sqlite:///{folder}/scores-{count}.db") as store:
        desk = Desk(
            store=store, model_name="m", task=load_task("ucc"), policy=Policy.parse(policy, folder / "policy.yaml"),
            posts=Posts(str(manifest), ImageLimits(10**7, 10**7)),
            thresholds=lambda version: {f"p{point}": point / 200 for point in (60, 70, 80, 90)},
        )  # fmt: skip
        fill(desk, count, np.random.default_rng(0))
        people = People(store)
        token = people.enter_by_link(people.add("olga", "owner"), "a password of some length")
        found: dict[str, list[float]] = {}
        with served(desk) as address, requests.Session() as session:
            session.cookies.set("agentps_desk", token)
            begun = time.perf_counter()
            urls = {name: address + path.format(day=datetime.now(UTC).date()) for name, path in PAGES.items()}
            for name, url in urls.items():
                found[name] = [_asked(session, url)[1]]
            while not _asked(session, urls["quality"])[0]:
                time.sleep(0.02)
            found[_THERE] = [1_000 * (time.perf_counter() - begun)]
            for name, url in urls.items():
                for _ in range(tries):
                    whole, took = _asked(session, url)
                    assert whole, name
                    found[name].append(took)
        return found


def _asked(session: requests.Session, url: str) -> tuple[bool, float]:
    """Whether the page is there, or tells that its records are being read; and how many milliseconds that took."""
    begun = time.perf_counter()
    answer = session.get(url)
    took = 1_000 * (time.perf_counter() - begun)
    if "Refresh" not in answer.headers:
        answer.raise_for_status()
    return answer.ok, took


def _told(times: list[float]) -> str:
    first = f"{times[0]:.0f}"
    return f"{statistics.median(times[1:]):.0f}, {max(times[1:]):.0f}; {first}" if times[1:] else first


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--posts", type=int, nargs="+", default=[10_000, 100_000, 600_000])
    parser.add_argument("--tries", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {count: measure(Path(folder), count, options.tries) for count in options.posts}
    rows = [(page, *(_told(of[page]) for of in found.values())) for page in (_THERE, *PAGES)]
    put({"desk": table(["page", *(f"{count:,} posts" for count in found)], rows)}, PAGE)


if __name__ == "__main__":
    main()
