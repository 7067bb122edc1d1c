"""What an annotation would ask and cost, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass

from steps.annotate.ledger import Ledger, LedgerAnswer
from steps.annotate.requests import Request, Requests


def is_settled(answer: LedgerAnswer | None, retries: int) -> bool:
    """Whether a key is not to be asked (again): it is answered, or its retries are used up."""
    return answer is not None and (answer.counts is not None or answer.attempts > retries)


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
    prompt = completion = dollars = most = 0.0
    for request in to_ask:
        tokens = requests.tokens(request)
        prompt += tokens.prompt
        completion += tokens.completion
        if price is not None:
            dollars += tokens.dollars(price, batch=batch)
            most += tokens.most_dollars(price, batch=batch)
    answered = sum(request.key in known and known[request.key].counts is not None for request in distinct)
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
    )
    return plan, known


def todo_of(requests: Requests, known: dict[str, LedgerAnswer]) -> list[Request]:
    """The requests that are not settled, in the order of the posts."""
    retries = requests.settings.retries
    return [request for request in requests.distinct() if not is_settled(known.get(request.key), retries)]
