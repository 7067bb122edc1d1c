"""Wordings compared on the posts that people labelled, before all posts are paid for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from model.errors import AnnotationError, TaskError
from model.schema import SPLIT, TRAIN, VAL
from model.task import Question, Task
from steps.annotate.agreement import agreement
from steps.annotate.client import annotate_posts
from steps.annotate.ledger import Ledger
from steps.annotate.page import TrialRow
from steps.annotate.plan import make_plan
from steps.annotate.prices import Price
from steps.annotate.requests import Requests
from steps.annotate.settings import AnnotateSettings
from steps.annotate.tally import Progress


def union_of(tasks: Mapping[str, Task]) -> Task:
    """A task with every question of the wordings once, for reading the manifest's gold.

    Raises:
        TaskError: two wordings give a question of the same id different classes.
    """
    questions: dict[str, Question] = {}
    for name, task in tasks.items():
        for question in task.questions:
            first = questions.setdefault(question.id, question)
            if first.classes != question.classes:
                raise TaskError(
                    f"task {name}: question {question.id} has the classes {list(question.classes)}, another wording "
                    f"{list(first.classes)}; people's labels can be of one of them only"
                )
    return next(iter(tasks.values())).model_copy(update={"questions": tuple(questions.values())})


def gold_posts(posts: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The posts of train and val with a label by people for at least one question; test chooses nothing.

    Raises:
        AnnotationError: there is none.
    """
    ids = list(task.question_ids)
    gold = posts[posts[SPLIT].isin([TRAIN, VAL]) & posts[ids].notna().any(axis="columns")]
    if gold.empty:
        raise AnnotationError(
            f"no post of train or val has a label by people for {', '.join(ids)}; add columns of these names to the "
            "manifest (`agentps queue` makes a list of posts to be labelled)"
        )
    return gold


def run_trial(
    posts: pd.DataFrame,
    tasks: Mapping[str, Task],
    settings: AnnotateSettings,
    ledger: Ledger,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    price: Price | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[TrialRow]:
    """Annotate the gold posts with each task's wordings and measure the agreement; missing answers are a result.

    Args:
        posts: the table of ingest, read with `union_of(tasks)`.
        tasks: by the name under which the page shows them.
        settings: `max_cost` is the cap of the whole trial.
        on_progress: called after each request that is settled; it begins anew with every wording.

    Raises:
        AnnotationError: as `annotate_posts`, or there is no gold.
    """
    gold = gold_posts(posts, union_of(tasks))
    rows, spent = [], 0.0
    for name, task in tasks.items():
        left = None if settings.max_cost is None else settings.max_cost - spent
        trial = settings.model_copy(update={"splits": (TRAIN, VAL), "max_missing_share": 1.0, "max_cost": left})
        result = annotate_posts(
            gold, task, trial, ledger, base_url=base_url, api_key=api_key, price=price, on_progress=on_progress
        )
        spent += result.cost or 0.0
        plan, _ = make_plan(Requests(posts, task, settings, price), ledger)
        rows.append(TrialRow(name, plan, result, agreement(gold, result.labels, task)))
    return rows
