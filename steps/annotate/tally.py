"""What a run has done so far: answers, requests, tokens, dollars; the same for single requests and batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.errors import AnnotationError
from steps.annotate.ledger import UNPAID, Ledger, LedgerAnswer
from steps.annotate.outlook import Outlook
from steps.annotate.plan import is_settled
from steps.annotate.prices import Budget, Price
from steps.annotate.reply import Reply
from steps.annotate.requests import Request, Requests


class CapReachedError(AnnotationError):
    """`annotate.max_cost` leaves no room for another request. What was answered is in the ledger."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    #: Requests that are answered, or missing, of those that were open at the start. One that the endpoint did not serve
    #: (rejected, rate limited, no connection) is not done: the next run asks it again.
    done: int
    total: int
    #: Of those done, without an answer.
    missing: int
    #: Dollars; None: the model has no price.
    spent: float | None
    #: Requests settled per second, since the start.
    rate: float
    #: None until the first is settled.
    seconds_left: float | None

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
        spent = "" if self.spent is None else f", ${self.spent:.2f}"
        share = self.missing / self.done if self.done else 0.0
        return f"{self.rate:.1f}/s, {share:.1%} missing{spent}{left}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Tally:
    """The sums of one run, and its budget.

    Args:
        total: requests that are open at the start.
        price: None: the model has none.
        cap: dollars that the run may spend at most; None: no cap.
    """

    def __init__(
        self,
        total: int,
        price: Price | None,
        cap: float | None,
        outlook: Outlook,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.total, self.price, self.budget, self.outlook = total, price, Budget(cap), outlook
        self._on_progress = on_progress
        self._started = time.monotonic()
        self.answers: dict[str, LedgerAnswer] = {}
        self.done = self.asked = self.requests = self.prompt_tokens = self.completion_tokens = 0
        self._missing = 0

    def cost(self, reply: Reply, most: float, *, batch: bool = False) -> float | None:
        """Dollars of one reply; `most` where it may have been charged and does not say."""
        if self.price is None:
            return None
        if reply.prompt_tokens is not None and reply.completion_tokens is not None:
            return self.price.dollars(reply.prompt_tokens, reply.completion_tokens, batch=batch)
        return most if reply.billed else 0.0

    def count(self, reply: Reply) -> None:
        """One attempt was recorded."""
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0

    def settle(self, key: str, answer: LedgerAnswer) -> None:
        """A key has its answer, or is not asked again in this run; what was not served at all is not done.

        Raises:
            HopelessError: too many have no answer for the run to go on.
        """
        self.answers[key] = answer
        if answer.missing in UNPAID:
            return
        self.done += 1
        self._missing += answer.counts is None
        if self._on_progress is not None:
            self._on_progress(self.progress())
        self.outlook.settle(key, answer)

    def progress(self) -> Progress:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = self.done / seconds
        spent = None if self.price is None else self.budget.spent
        left = (self.total - self.done) / rate if self.done else None
        return Progress(self.done, self.total, self._missing, spent, rate, left)

    def cap_reached(self, source: str) -> CapReachedError:
        return CapReachedError(
            f"annotator {source}: annotate.max_cost ${self.budget.cap:.2f} leaves no room for another request: "
            f"${self.budget.spent:.4f} are spent, at most, for {self.done} of {self.total} requests. Their answers are "
            "kept; start the same command again, or raise annotate.max_cost, to go on from there"
        )


def claim(
    chunk: Sequence[Request], requests: Requests, ledger: Ledger, tally: Tally
) -> tuple[list[tuple[Request, LedgerAnswer | None]], list[Request]]:
    """Take the leases of `chunk`; what is settled by now goes into the tally.

    Returns:
        The requests that only this process may ask, with what is known of each, and those that another one holds.
    """
    claimed = ledger.claim([request.key for request in chunk])
    known = ledger.lookup(claimed)  # another process may have been faster since our first look
    ours, held, settled = [], [], []
    for request in chunk:
        answer = known.get(request.key)
        if request.key not in claimed:
            held.append(request)
        elif answer is not None and is_settled(answer, requests):
            settled.append(request.key)
            tally.settle(request.key, answer)
        else:
            ours.append((request, answer))
    if settled:
        ledger.release(settled)
    return ours, held
