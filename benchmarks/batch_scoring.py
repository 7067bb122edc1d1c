"""Batches: a stub scorer over very many posts, killed again and again; the real one with and without Ray.

    .venv/bin/python -m benchmarks.batch_scoring kills [POSTS]
    .venv/bin/python -m benchmarks.batch_scoring real [POSTS]

Writes `benchmarks/batch_scoring.json` and the tables of `docs/batch-scoring.md`. `real` takes the champion of
`$AGENTPS_HOME`, that of `make train`, and posts of the embedded sample, each of which it gives several ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from model.images import ImageLimits
from model.settings import PostLimits
from model.task import Task, load_task
from scoring.record import Answer, Record, columns_of
from scoring.score import Input


class StubScore:
    """Says of each post what follows from its id and its hash, in no time. A post called `bad` has an error."""

    limits, post_limits = ImageLimits(max_bytes=10**6, max_pixels=10**6), PostLimits()
    points = ("p80",)

    def __init__(self, task: Task | None = None) -> None:
        self._task = task or load_task("ucc")
        self.schema = columns_of(self._task, self.points)

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        return [self._record(post, now or datetime.now(UTC)) for post in inputs]

    def _record(self, post: Input, now: datetime) -> Record:
        error = post.error or ("it is bad" if post.title == "bad" else None)
        said = {"error": error} if error else self._said(post)
        return Record(
            post_id=post.post_id,
            model_name="stub",
            model_version="1",
            task=self._task.fingerprint,
            input_sha256=post.sha256,
            scored_at=now,
            **said,
        )

    def _said(self, post: Input) -> dict[str, object]:
        drawn = hashlib.sha256(f"{post.post_id} {post.sha256}".encode()).digest()[0] / 255
        answers = {id_: Answer(answer="yes", probability=1 - drawn) for id_ in self._task.question_ids}
        return {"logit": drawn - 0.5, "score": drawn, "decisions": {"p80": drawn > 0.5}, "answers": answers}
