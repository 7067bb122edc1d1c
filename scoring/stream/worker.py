"""A batch through Retriever, scorer, Filter and Sink; and the loop that takes batches from a source and commits them.

At least once: a batch is committed once each of its messages has a record in the store, or is a dead letter there. The
store is written last, after the other sinks: what it has, all have. So a message that comes again after a crash is
known by its post's current record, and its post is not scored again.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from model.errors import AgentPSError, cut
from model.images import ImageLimits
from model.settings import PostLimits
from scoring.files import for_videos, watching
from scoring.record import Record
from scoring.score import Input, Score, read_input
from scoring.store import DeadLetter
from scoring.stream.filter import Filter
from scoring.stream.retriever import MissingError, Read, Retriever, UnusableError
from scoring.stream.sink import Scored, Sink, StoreSink
from scoring.stream.source import Message, Source
from scoring.stream.waiting import AwayError, StoppedError, asking, patiently

if TYPE_CHECKING:
    from scoring.store import Store

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
#: Posts whose pictures are read at the same time: a host or a shared disk takes its time for each.
_READERS = 8


@dataclass
class Tally:
    """Messages, by what became of them; one without a score may be a dead letter, too."""

    scored: int = 0
    unchanged: int = 0
    errors: int = 0
    dead: int = 0

    def __str__(self) -> str:
        return (
            f"{self.scored:,} posts scored, {self.unchanged:,} unchanged, {self.errors:,} without a score, "
            f"{self.dead:,} dead letters"
        )


@dataclass
class Worker:
    """What a batch passes. `process` is all of it; the source commits what it returns from.

    Args:
        read: makes the reader of pictures for a version's limits.
        score: where it has `renew`, that gives the scorer of the next batch.
        source: its name, for dead letters.
    """

    source: str
    retrieve: Retriever
    read: Callable[[ImageLimits], Read]
    score: Score
    filter: Filter
    sinks: Sequence[Sink]
    store: Store
    limits: tuple[ImageLimits, PostLimits]
    picture_waits: Sequence[float] = ()
    stop: threading.Event = field(default_factory=threading.Event)
    tally: Tally = field(default_factory=Tally)
    #: Something does not answer now.
    waits: bool = False
    #: When all that the source had given was last done, in seconds since 1970; at first, the worker's begin.
    committed: float = field(default_factory=time.time)

    def process(self, messages: Sequence[Message], *, again: bool = False) -> dict[str, DeadLetter]:
        """Score, decide, and write: all of the batch, or an error and nothing is to be committed.

        Args:
            again: score posts that are known as well.

        Returns:
            The dead letters that are in the store now, by the message's id.

        Raises:
            StoppedError: something is away, and `stop` was set.
        """
        return _Batch(self, messages, again).run()

    def patiently(self, ask: Callable[[], _T]) -> _T:
        def watched() -> _T:
            try:
                found = ask()
            except AwayError:
                self.waits = True
                raise
            self.waits = False
            return found

        return patiently(watched, self.stop)


class _Batch:
    def __init__(self, worker: Worker, messages: Sequence[Message], again: bool) -> None:
        self._worker, self._messages, self._again = worker, messages, again
        self._now, self._began = datetime.now(UTC), time.monotonic()
        self._score = worker.patiently(worker.score.renew) if hasattr(worker.score, "renew") else worker.score
        self._letters: dict[str, DeadLetter] = {}
        self._cells: dict[str, Mapping[str, Any]] = {}

    def run(self) -> dict[str, DeadLetter]:
        posts = self._read()
        changed = posts if self._again else self._changed(posts)
        scored = self._scored(changed)
        decided = [(message, self._decided(place, message, record)) for place, (message, record) in enumerate(scored)]
        for sink in (*self._worker.sinks, StoreSink(self._worker.store)):
            self._put(sink, decided)
        if self._letters:
            self._worker.patiently(lambda: asking(lambda: self._worker.store.bury(list(self._letters.values()))))
        tally = self._worker.tally
        tally.dead += len(self._letters)
        tally.unchanged += len(posts) - len(changed)
        tally.errors += sum(record.error is not None for _, (record, _) in decided)
        tally.scored += sum(record.error is None for _, (record, _) in decided)
        return self._letters

    def _bury(self, message: Message, post_id: str | None, reason: str) -> None:
        reason = cut(reason, 1000)
        logger.warning("%s %s is a dead letter: %s", self._worker.source, message.id, reason)
        self._letters[message.id] = DeadLetter(
            source=self._worker.source, message_id=message.id, post_id=post_id, body=message.body, reason=reason,
            at=self._now,
        )  # fmt: skip

    # --- retrieve ---------------------------------------------------------------------------------------------

    def _read(self) -> list[tuple[Message, Input]]:
        """The posts of the messages, with their pictures; those that stay missing are dead letters as well."""
        for message in self._messages:
            try:
                self._cells[message.id] = self._worker.patiently(partial(self._worker.retrieve, message))
            except UnusableError as error:
                self._bury(message, None, str(error))
        found: dict[str, Input] = {}
        missing = list(self._cells)
        with ThreadPoolExecutor(_READERS) as pool:
            for wait in (0.0, *self._worker.picture_waits):
                if not missing or self._worker.stop.wait(wait):
                    break
                tried = zip(missing, pool.map(self._input, map(self._cells.__getitem__, missing)), strict=True)
                missing = []
                for name, (found[name], absent) in tried:
                    if absent:
                        missing.append(name)
        if missing and self._worker.stop.is_set():  # of some not even the first try was made
            raise StoppedError("ended while waiting for pictures")
        for message in self._messages:
            if message.id in missing:
                self._bury(message, found[message.id].post_id, f"pictures: {found[message.id].error}")
        return [(message, found[message.id]) for message in self._messages if message.id in found]

    def _input(self, cells: Mapping[str, Any]) -> tuple[Input, bool]:
        """The post, and whether a picture of it, or its video, could not be had."""
        images, posts = self._limits()
        absent = False

        def told(read: Read) -> Read:
            def called(source: Any) -> bytes:
                nonlocal absent
                try:
                    return read(source)
                except MissingError:
                    absent = True
                    raise

            return called

        watch = watching(told(self._worker.read(for_videos(images))), images)
        post = read_input(cells, told(self._worker.read(images)), posts, watch)
        return post, absent

    def _limits(self) -> tuple[ImageLimits, PostLimits]:
        """The version's own, where it scores in this process."""
        images, posts = self._worker.limits
        return getattr(self._score, "limits", images), getattr(self._score, "post_limits", posts)

    # --- score ------------------------------------------------------------------------------------------------

    def _changed(self, posts: list[tuple[Message, Input]]) -> list[tuple[Message, Input]]:
        """Without those whose current record is of the same content, by the same version and policy."""
        ids = {post.post_id for _, post in posts}
        version = getattr(self._score, "version", None)
        model = version and version.name
        current = self._worker.patiently(lambda: asking(lambda: self._worker.store.current(ids, model)))
        known = {post_id: _state(record) for post_id, (record, _) in current.items()}
        changed = []
        for message, post in posts:
            state = (post.sha256, model, version and version.version, self._worker.filter.version)
            if post.sha256 is None or known.get(post.post_id) != state:
                changed.append((message, post))
                known[post.post_id] = state
        return changed

    def _scored(self, posts: list[tuple[Message, Input]]) -> list[tuple[Message, Record]]:
        """One post that makes the scorer fail costs nobody else a record: it alone is a dead letter."""
        if not posts:
            return []
        try:
            return list(zip((message for message, _ in posts), self._ask(posts), strict=True))
        except AgentPSError:  # the version, the service: it is no post's fault
            raise
        except Exception:
            logger.exception("the scorer failed on a batch of %d posts; each is scored by itself", len(posts))
        scored, failed = [], []
        for message, post in posts:
            try:
                scored.append((message, self._ask([(message, post)])[0]))
            except AgentPSError:
                raise
            except Exception as fault:
                logger.exception("the scorer failed on the post %s", post.post_id, extra={"post_id": post.post_id})
                failed.append((message, post, fault))
        if not scored and len(failed) > 1:  # no post's fault: nothing is to be committed
            raise failed[0][2]
        for message, post, error in failed:
            self._bury(message, post.post_id, f"the scorer failed: {type(error).__name__}: {error}")
        return scored

    def _ask(self, posts: list[tuple[Message, Input]]) -> list[Record]:
        return self._worker.patiently(lambda: self._score([post for _, post in posts], self._now))

    # --- filter and sink --------------------------------------------------------------------------------------

    def _decided(self, place: int, message: Message, record: Record) -> Scored:
        """One microsecond after the other: the store knows by the time what was said of a post last."""
        record = record.model_copy(
            update={
                "policy_version": self._worker.filter.version,
                "latency_ms": round(1000 * (time.monotonic() - self._began), 3),
                "scored_at": record.scored_at + timedelta(microseconds=place),
            }
        )
        return record, self._worker.filter.decide(record, self._cells[message.id])

    def _put(self, sink: Sink, decided: list[tuple[Message, Scored]]) -> None:
        if not decided:
            return
        refused = self._worker.patiently(lambda: sink.put([scored for _, scored in decided]))
        for place, reason in refused.items():
            message, (record, _) = decided[place]
            self._bury(message, record.post_id, f"{sink.name} refused: {reason}")


def _state(record: Record) -> tuple[str | None, ...]:
    return record.input_sha256, record.model_name, record.model_version, record.policy_version


# --- the loop ---------------------------------------------------------------------------------------------------


def follow(source: Source, worker: Worker, *, once: bool = False) -> None:
    """Take, process, commit, until `worker.stop` is set: the batch at hand is finished and committed first.

    Args:
        once: end where the source gives nothing for a while.
    """
    try:
        worker.patiently(source.open)
        quiet_since = time.monotonic()
        while not worker.stop.is_set():
            messages = worker.patiently(source.take)
            if messages:
                worker.process(messages)
                quiet_since = time.monotonic()
            _commit(source, worker)
            if once and time.monotonic() - quiet_since > source.settles:
                return
    except StoppedError as error:
        logger.warning("%s; what was not committed comes again", error)
    finally:
        source.close()


def _commit(source: Source, worker: Worker) -> None:
    try:
        source.commit()
        worker.committed = time.time()
    except AwayError as error:  # it is in the store: who takes it again finds it unchanged
        logger.warning("%s: a batch is done, and could not be committed: it comes again", error)


@contextmanager
def ending(stop: threading.Event, grace: float = 60.0) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM sets `stop`; the block ends, and the signal has its usual effect then.

    Another signal, or `grace` seconds, end the process without that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    all_ = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before: dict[int, Any] = {number: handler for number, handler in all_.items() if handler is not signal.SIG_IGN}

    def begin(number: int, _: Any) -> None:
        heard.append(number)
        stop.set()
        _restore(before)
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
        signal.setitimer(signal.ITIMER_REAL, grace)

    for number in before:
        signal.signal(number, begin)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _restore(before)
        if heard:
            signal.raise_signal(heard[0])


def _restore(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
