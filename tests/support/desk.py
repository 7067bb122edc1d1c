"""A review desk over records that a test makes, served over real HTTP."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests
import uvicorn

from model.images import ImageLimits
from model.task import FinalQuestion, Question, Task
from scoring.desk import run
from scoring.desk.app import create_app
from scoring.desk.people import People, User
from scoring.desk.posts import Posts
from scoring.desk.work import Desk, Shares
from scoring.policy import Policy
from scoring.record import Answer, Record
from scoring.store import Store

PASSWORD = "a password of some length"
TASK = Task(
    name="desk",
    version=1,
    questions=(
        Question(id="watermark", ask="Is there a watermark?", annotate="x", rule="count >= 1"),
        Question(id="kind", ask="What is it?", annotate="x", classes=("photo", "drawing", "text"), answer="class"),
    ),
    final=FinalQuestion(ask="Is it spam?", classes=("fine", "spam"), positive="spam"),
)
POLICY: dict[str, Any] = {
    "name": "desk",
    "version": 1,
    "task": "task.yaml",
    "precision": 80,
    "audit": {"flag": 1.0, "pass": 1.0},
}
THRESHOLDS = {"p60": 0.3, "p80": 0.5, "p90": 0.8}


def record(post_id: str, score: float | None, *, version: str = "1", at: datetime | None = None, **said: Any) -> Record:
    """watermark, kind: the answers. Without a score an error."""
    answers = {"watermark": said.pop("watermark", "no"), "kind": said.pop("kind", "photo")}
    found: dict[str, Any] = {"error": "image 1: no such file", "input_sha256": None}
    if score is not None:
        found = {
            "score": score,
            "decisions": {point: score >= threshold for point, threshold in THRESHOLDS.items()},
            "answers": {name: Answer(answer=answer, probability=0.75) for name, answer in answers.items()},
            "input_sha256": "0" * 64,
        }
    who = {"post_id": post_id, "model_name": "m", "model_version": version, "task": TASK.fingerprint}
    return Record(**{**who, "scored_at": at or datetime.now(UTC) - timedelta(hours=1), **found, **said})


def policy_of(folder: Path, **changes: Any) -> Policy:
    import yaml

    (folder / "task.yaml").write_text(yaml.safe_dump(TASK.model_dump(mode="json", exclude_none=True)))
    return Policy.parse(POLICY | changes, folder / "policy.yaml")


def put(desk: Desk, *records: Record) -> None:
    desk.store.put([(each, desk.policy.decide(each)) for each in records])


@contextmanager
def desk_in(
    folder: Path, posts: list[dict[str, Any]] | None = None, url: str | None = None, **chosen: Any
) -> Iterator[Desk]:
    """posts: rows of a manifest in the folder."""
    manifest = folder / "posts.jsonl"
    if posts is not None:
        manifest.write_text("".join(json.dumps(row) + "\n" for row in posts))
    limits = ImageLimits(max_bytes=10**7, max_pixels=10**7)
    with Store.open(url or f"sqlite:///{folder}/scores.db") as store:
        yield Desk(
            store=store,
            model_name="m",
            task=TASK,
            policy=policy_of(folder, **chosen.pop("policy", {})),
            posts=Posts(str(manifest) if posts is not None else None, limits),
            thresholds=lambda version: THRESHOLDS,
            policy_file=folder / "policy.yaml",
            shows_scores=chosen.pop("shows_scores", True),
            shares=chosen.pop("shares", Shares(second=0.0, gold=0.0)),
            **chosen,
        )


def join(desk: Desk, name: str, role: str = "reviewer") -> User:
    """A user with a session."""
    people = People(desk.store)
    token = people.enter_by_link(people.add(name, role), PASSWORD)
    user = people.who(token)
    assert user is not None
    return user


@contextmanager
def served(desk: Desk, *, kept_up: bool = False, **chosen: Any) -> Iterator[str]:
    """Its address. kept_up: what pages count over is read beside them, as the command does."""
    app = create_app(desk, **chosen)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    with run.kept_up(app.state.web) if kept_up else nullcontext():
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                threading.Event().wait(0.02)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Browser(requests.Session):
    """A person's browser without JavaScript: it follows links, and sends the forms of the page that it has."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address, self.page = address, ""

    def go(self, path: str) -> requests.Response:
        return self._had(self.get(self.address + path))

    def enter(self, user: User) -> Browser:
        self.cookies.set("agentps_desk", user.token)
        return self

    def fill(self, action: str, fields: Mapping[str, str] | None = None, **changed: str) -> requests.Response:
        """The form of the page with this action, its hidden fields as they stand there."""
        return self._had(self.post(self.address + action, {**self.form(action), **(fields or {}), **changed}))

    def form(self, action: str) -> dict[str, str]:
        found = re.search(
            rf'<form method="post"[^>]*action="{re.escape(action)}"[^>]*>(.*?)</form>', self.page, re.DOTALL
        )
        assert found, f"no form {action} in {self.page[:2000]}"
        fields = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', found[1])
        return {name: _plain(value) for name, value in fields}

    def _had(self, answer: requests.Response) -> requests.Response:
        while pause := answer.headers.get("Refresh"):
            time.sleep(int(pause))
            answer = self.get(answer.url)
        self.page = answer.text
        return answer


def _plain(value: str) -> str:
    import html

    return html.unescape(value)
