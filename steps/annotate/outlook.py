"""Whether `annotate.max_missing_share` can still be kept: nothing is paid for once it cannot."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping

from model.errors import AnnotationError
from steps.annotate.ledger import LedgerAnswer
from steps.annotate.plan import is_settled
from steps.annotate.requests import Request, Requests

#: This many requests, those of the smallest keys, are asked first, and a look at them may end the run. A key is a hash,
#: so they are a random sample; those at the head of a table may be of one kind.
LOOK = 32
#: The look is taken when this many of them are settled, so that a slow one holds up nothing.
_ENOUGH = 24
#: How likely it is at most that a run is ended whose share would have been kept.
_FALSE_ALARM = 1e-6


class HopelessError(AnnotationError):
    """More requests go without an answer than `max_missing_share` allows, whatever is answered from here on."""


class Outlook:
    """What is settled, in this run and before it. A request that the endpoint did not serve is not: it is asked again.

    Args:
        known: what the ledger knew at the start.
    """

    def __init__(self, requests: Requests, known: Mapping[str, LedgerAnswer]) -> None:
        self._requests = requests
        # posts of the same content share a request, and each counts
        self._posts = Counter(request.key for of_post in requests.of_posts for request in of_post)
        self._allowed = requests.settings.max_missing_share * self._posts.total()
        #: The keys of the look; none where the posts are too few for it to save anything.
        self.look = set(heapq.nsmallest(LOOK, self._posts)) if len(self._posts) >= 2 * LOOK else set()
        self._look_allowed = _most_missing(len(self.look), requests.settings.max_missing_share)
        self._missing = self._looked = self._look_missing = self._settled = 0
        for key, answer in known.items():
            self._count(key, answer)

    def first(self, todo: list[Request]) -> list[Request]:
        """`todo`, with the requests of the look first."""
        return sorted(todo, key=lambda request: request.key not in self.look)

    def settle(self, key: str, answer: LedgerAnswer) -> None:
        """A request of this run is settled.

        Raises:
            HopelessError: see there.
        """
        self._count(key, answer)
        self._settled += 1
        if self._settled >= _ENOUGH and self.hopeless:
            raise HopelessError

    def _count(self, key: str, answer: LedgerAnswer) -> None:
        if is_settled(answer, self._requests):
            missing = answer.counts is None
            self._missing += missing * self._posts[key]
            self._looked += key in self.look
            self._look_missing += missing and key in self.look

    @property
    def hopeless(self) -> bool:
        """Whether the share can no longer be kept: for certain, or by the look."""
        looked = self._looked >= _ENOUGH and self._look_missing > self._look_allowed
        return looked or self._missing > self._allowed

    def is_due(self, n: int) -> bool:
        """Whether the look is to be taken before `n` requests are sent up at once."""
        return self._looked < _ENOUGH and n >= 10 * LOOK


def _most_missing(n: int, share: float) -> int:
    """Where `share` of all requests have no answer, more than this many of `n` random ones have none with a chance
    below `_FALSE_ALARM`.
    """
    tail = 0.0
    for missing in range(n, 0, -1):
        tail += math.comb(n, missing) * share**missing * (1 - share) ** (n - missing)
        if tail >= _FALSE_ALARM:
            return missing
    return 0
