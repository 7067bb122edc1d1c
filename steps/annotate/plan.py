"""What an annotation would ask and cost, before anything is sent."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from steps.annotate.ledger import Ledger, LedgerAnswer, Miss, Missing
from steps.annotate.requests import Request, Requests

#: What the same request meets again, however often it is sent.
FINAL = frozenset({Missing.CUT, Missing.CONTENT_FILTER})


def is_settled(answer: LedgerAnswer | None, requests: Requests) -> bool:
    """Whether a key is not to be asked (again): it is answered, or the same request has missed too often."""
    if answer is None or answer.counts is not None:
        return answer is not None
    same = [miss for miss in answer.misses if _is_of_now(miss, requests)]
    return len(same) > requests.settings.retries or any(miss.reason in FINAL and miss.options for miss in same)


def _is_of_now(miss: Miss, requests: Requests) -> bool:
    if miss.options is not None:
        present = requests.options(miss.reason)
        return miss.options == present or (miss.reason is Missing.CUT and _shorter(present, miss.options))
    # before options were kept only the retries decided, as they do still; but an answer may now be longer than when it
    # was cut
    tokens = miss.completion_tokens
    return miss.reason is not Missing.CUT or tokens is None or tokens >= requests.limit


def _shorter(present: str, cut: str) -> bool:
    """Whether two options differ in the limit alone, and an answer may now be no longer than where it was cut."""
    try:
        now, then = json.loads(present), json.loads(cut)
    except ValueError:  # not written by us: other options than any of ours
        return False
    return now | {"max_tokens": 0} == then | {"max_tokens": 0} and now["max_tokens"] <= then["max_tokens"]


@dataclass(frozen=True)
class Lack:
    """Requests without an answer for the same reason under the same options (None: not known, from before they were
    kept, or not served at all)."""

    reason: str
    options: str | None
    requests: int

    def __str__(self) -> str:
        return f"{self.requests:,} {self.reason}" + (f", with {self.options}" if self.options else "")


def _lacks(answers: Iterable[LedgerAnswer]) -> tuple[Lack, ...]:
    found = Counter((str(answer.missing), answer.misses[-1].options if answer.misses else None) for answer in answers)
    return tuple(Lack(reason, options, n) for (reason, options), n in found.most_common())


@dataclass(frozen=True)
class Plan:
    """Posts, requests, tokens and dollars of an annotation, without what the ledger has already."""

    posts: int
    #: Distinct image files of these posts.
    images: int
    #: Distinct requests of these posts. Of them: answered; without an answer, and not to be asked again; in a batch
    #: file that is under way; to be asked.
    requests: int
    answered: int
    given_up: int
    under_way: int
    to_ask: int
    #: Of what is to be asked, as expected.
    prompt_tokens: float
    completion_tokens: float
    #: None: the model has no price.
    dollars: float | None
    #: The most that these requests can cost, each asked once.
    most_dollars: float | None
    #: Those that are given up, and those that were asked before and are to be asked again.
    given_up_for: tuple[Lack, ...] = ()
    again: tuple[Lack, ...] = ()
    again_dollars: float | None = None


def make_plan(requests: Requests, ledger: Ledger) -> tuple[Plan, dict[str, LedgerAnswer]]:
    """The plan, and what the ledger knows of the requests; sends nothing.

    Raises:
        AnnotationError: the ledger cannot be read, or an image whose size is needed cannot be.
    """
    distinct = requests.distinct()
    known = ledger.lookup(request.key for request in distinct)
    price, batch = requests.price, requests.settings.mode == "batch"
    held = {item.key for batch_file in ledger.batch_files(requests.source) for item in batch_file.items}
    todo = todo_of(requests, known)
    to_ask = [request for request in todo if request.key not in held]
    prompt = completion = dollars = most = again = 0.0
    for request in to_ask:
        tokens = requests.tokens(request)
        prompt += tokens.prompt
        completion += tokens.completion
        if price is not None:
            dollars += tokens.dollars(price, batch=batch)
            again += tokens.dollars(price, batch=batch) * (request.key in known)
            most += tokens.most_dollars(price, batch=batch)
    answered = sum(request.key in known and known[request.key].counts is not None for request in distinct)
    open_ = {request.key for request in todo}
    plan = Plan(
        posts=len(requests.ids),
        images=len({sha256 for hashes in requests.hashes for sha256 in hashes}),
        requests=len(distinct),
        answered=answered,
        given_up=len(distinct) - len(todo) - answered,
        under_way=len(todo) - len(to_ask),
        to_ask=len(to_ask),
        prompt_tokens=prompt,
        completion_tokens=completion,
        dollars=None if price is None else dollars,
        most_dollars=None if price is None else most,
        given_up_for=_lacks(answer for key, answer in known.items() if answer.counts is None and key not in open_),
        again=_lacks(known[request.key] for request in to_ask if request.key in known),
        again_dollars=None if price is None else again,
    )
    return plan, known


def todo_of(requests: Requests, known: dict[str, LedgerAnswer]) -> list[Request]:
    """The requests that are not settled, in the order of the posts."""
    return [request for request in requests.distinct() if not is_settled(known.get(request.key), requests)]
