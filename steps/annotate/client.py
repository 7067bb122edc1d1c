"""Asks an OpenAI-compatible endpoint for the process labels of posts: once per post, and never a guess.

Everything that comes back is recorded in the ledger before anything else is done with it. A reply
that is no answer (a refusal, prose, too many numbers) is a missing value with its reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from model.errors import AnnotationError
from model.task import Task
from steps.annotate.batch import BatchRun
from steps.annotate.endpoint import connect
from steps.annotate.ledger import UNPAID, Ledger, LedgerAnswer, Missing
from steps.annotate.online import OnlineRun
from steps.annotate.outlook import HopelessError, Outlook
from steps.annotate.owner import describe
from steps.annotate.plan import FINAL, Plan, make_plan, todo_of
from steps.annotate.prices import Price
from steps.annotate.requests import Request, Requests
from steps.annotate.settings import AnnotateSettings
from steps.annotate.tally import Progress, Tally

#: Seconds between two looks at requests that other processes hold, and at batches; and between two words about it.
_OTHERS_SECONDS, _WORD_SECONDS = 1.0, 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotationResult:
    """The labels, and what they took."""

    #: post_id, one nullable Int8 column per question, label_source, missing_reason (None: answered).
    labels: pd.DataFrame
    #: Distinct requests asked in this run; a request is a post, or one question of a post where they are asked singly.
    #: And requests that the ledger alone answered.
    asked: int
    reused: int
    #: Requests without an answer; all requests.
    missing: int
    total: int
    #: One row per reason: question (None: asked together), reason, requests.
    reasons: pd.DataFrame
    #: HTTP requests sent, retries included.
    requests: int
    prompt_tokens: int
    completion_tokens: int
    #: Dollars recorded in this run; None: the model has no price.
    cost: float | None
    #: What was expected at the start.
    plan: Plan
    seconds: float


def annotate_posts(
    posts: pd.DataFrame,
    task: Task,
    settings: AnnotateSettings,
    ledger: Ledger,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    price: Price | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> AnnotationResult:
    """The annotator's labels of the posts in `settings.splits`, asking only what the ledger lacks.

    Args:
        posts: the table of ingest.
        base_url, api_key: see `steps.annotate.endpoint.connect`.
        price: of the model; None: it has none, and costs are not recorded.
        on_progress: called after each request that is settled.

    Raises:
        CapReachedError: `settings.max_cost` leaves no room for another request.
        AnnotationError: the endpoint cannot be used (down, authentication, quota, no such model), an
            image changed since ingest, there is a cap but no price, or so many posts have no answer that
            `settings.max_missing_share` cannot be kept (then nothing more is asked). In every case what was
            answered is in the ledger; the same call goes on from there.
        RuntimeError: called from within a running event loop.
    """
    started = time.perf_counter()
    requests = Requests(posts, task, settings, price)
    plan, known = make_plan(requests, ledger)
    tally = ask_all(requests, ledger, known, base_url=base_url, api_key=api_key, on_progress=on_progress)
    result = _result(requests, plan, known, tally, time.perf_counter() - started)
    if result.missing > settings.max_missing_share * result.total:
        raise AnnotationError(_too_many_missing(requests, known | tally.answers, ledger))
    return result


def ask_all(
    requests: Requests,
    ledger: Ledger,
    known: dict[str, LedgerAnswer],
    *,
    base_url: str | None,
    api_key: str | None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Tally:
    """Ask what is not settled of `requests`. Everything that comes back is in the ledger.

    Args:
        known: what the ledger knows of them.

    Raises: as `annotate_posts`.
    """
    settings, price = requests.settings, requests.price
    if settings.max_cost is not None and price is None:
        raise AnnotationError(
            f"annotator {settings.source}: annotate.max_cost is set, but {settings.model!r} has no price; add it to "
            "configs/prices.yaml, or set annotate.max_cost to null"
        )
    outlook = Outlook(requests, known)
    todo = outlook.first(todo_of(requests, known))
    tally = Tally(len(todo), price, settings.max_cost, outlook, on_progress)
    if todo:
        try:
            asyncio.run(_ask(requests, todo, ledger, tally, base_url, api_key))
        except HopelessError:
            answers = ledger.lookup(request.key for request in requests.distinct())  # those in flight are in it too
            raise AnnotationError(_too_many_missing(requests, answers, ledger, stopped=True)) from None
        finally:
            ledger.release()
    return tally


def _result(
    requests: Requests, plan: Plan, known: dict[str, LedgerAnswer], tally: Tally, seconds: float
) -> AnnotationResult:
    """
    Args:
        known: what the ledger knew at the start.
    """
    every = [request for of_post in requests.of_posts for request in of_post]
    answers, questions = known | tally.answers, requests.task.questions
    missing = Counter(
        (None if request.question is None else questions[request.question].id, answers[request.key].missing)
        for request in every
    )
    reasons = pd.DataFrame(
        [(question, reason.value, n) for (question, reason), n in missing.most_common() if reason is not None],
        columns=["question", "reason", "requests"],
    )
    return AnnotationResult(
        labels=requests.labels(answers),
        asked=tally.asked,
        reused=sum(request.key in known and known[request.key].counts is not None for request in every),
        missing=int(reasons["requests"].sum()),
        total=len(every),
        reasons=reasons,
        requests=tally.requests,
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        cost=None if tally.price is None else tally.budget.spent,
        plan=plan,
        seconds=seconds,
    )


def _too_many_missing(
    requests: Requests, answers: dict[str, LedgerAnswer], ledger: Ledger, *, stopped: bool = False
) -> str:
    """
    Args:
        answers: what is known by now.
        stopped: before all were asked.
    """
    settings = requests.settings
    every = [request.key for of_post in requests.of_posts for request in of_post]
    reasons = Counter(reason for key in every if key in answers and (reason := answers[key].missing) is not None)
    ((first, _), *_) = reasons.most_common()
    raw = ledger.raw_of([key for key in every if key in answers and answers[key].missing is first])
    what = "posts" if settings.ask == "together" else "questions"
    left = len(todo_of(requests, answers)) if stopped else 0
    hopeless = f", which cannot be kept, so that {left} are not asked" if left else ""
    remedies = [
        "raise annotate.max_tokens or have the model reason less (annotate.request_fields); "
        * (Missing.CUT in reasons),
        "start the same command again, for those that were not served; " * bool(set(reasons) & UNPAID),
        "raise annotate.retries to ask again; " * bool(set(reasons) - FINAL - UNPAID),
    ]
    return (
        f"annotator {settings.source}: {reasons.total()} of {len(every)} {what} have no answer "
        f"({', '.join(f'{reason}: {n}' for reason, n in reasons.most_common())}); at most "
        f"{100 * settings.max_missing_share:g}% may have none{hopeless}. A reply ({first}): {raw[:300]!r}. "
        f"What was answered is kept. To go on: {''.join(remedies)}"
        "change the questions' wording or the model; or raise annotate.max_missing_share"
    )


async def _ask(
    requests: Requests, todo: Sequence[Request], ledger: Ledger, tally: Tally, base_url: str | None, api_key: str | None
) -> None:
    """Settle every request of `todo`, here or by waiting for the process that asks it."""
    async with connect(requests.settings, base_url, api_key) as client:
        alive = asyncio.create_task(_stay_alive(ledger))
        try:
            batch, online = BatchRun(requests, ledger, tally, client), OnlineRun(requests, ledger, tally, client)
            waiting, told = list(todo), -math.inf
            while True:
                # batch files at the endpoint, of this run or an earlier one, are collected in either mode
                under_way = await batch.collect()
                free = [request for request in waiting if request.key not in under_way]
                waiting = [request for request in waiting if request.key in under_way]
                if free and tally.outlook.hopeless:
                    raise HopelessError
                if free:
                    waiting += await (batch if requests.settings.mode == "batch" else online).ask(free)
                if not waiting:
                    return
                told = _tell_holders(ledger, waiting, told)
                await asyncio.sleep(_OTHERS_SECONDS)  # other processes ask these
        finally:
            alive.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await alive


def _tell_holders(ledger: Ledger, waiting: Sequence[Request], told: float) -> float:
    """Say once a minute whose requests are waited for. Returns when it was last said."""
    if time.monotonic() - told < _WORD_SECONDS:
        return told
    holders = ledger.holders([request.key for request in waiting])
    if holders:
        whose = "; ".join(
            f"{describe(holder.owner)} asks {holder.requests} (free in {max(0, round(holder.seconds))} s, unless it "
            "gives a sign of life)"
            for holder in holders
        )
        logger.warning("Waiting for requests that other processes ask: %s", whose)
        return time.monotonic()
    return told


async def _stay_alive(ledger: Ledger) -> None:
    while True:
        await asyncio.sleep(ledger.lease_seconds / 4)
        try:
            ledger.renew()
        except AnnotationError as error:  # the next one may succeed; a database that is gone ends the run elsewhere
            logger.warning("No sign of life to other processes: %s", error)
