"""What a run file says, put together: `agentps stream` and `agentps dead-letters replay`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.settings import PostLimits
from scoring.score import Score
from scoring.settings import StreamSettings
from scoring.store import DeadLetter, Store
from scoring.stream.filter import filter_of
from scoring.stream.folder import FolderSource
from scoring.stream.metrics import told
from scoring.stream.retriever import FromSql, Retriever, from_message, picture_folder, reader
from scoring.stream.sink import sink_of
from scoring.stream.source import Message, folder_of, source_of
from scoring.stream.waiting import asking
from scoring.stream.worker import Worker, ending, follow
from steps.paths import store_url
from steps.secrets import resolved
from steps.settings import IngestSettings


def with_store(settings: StreamSettings, scores: str | None) -> StreamSettings:
    """The store that `agentps live` reads, where that is a database and the section names none.

    Args:
        scores: the option `retrain.scores`.
    """
    if settings.store is None and scores is not None and ("://" in scores or scores.startswith("env:")):
        return settings.model_copy(update={"store": scores})
    return settings


def store_of(settings: StreamSettings) -> Store:
    """Raises: StoreError where it cannot be opened."""
    return Store.open(store_url() if settings.store is None else resolved(settings.store, "stream.store"))


def score_of(settings: StreamSettings, name: str) -> Score:
    """Who scores: the service that the run file names, or the champion of the model `name`, in this process.

    Raises:
        RegistryError, CheckpointError: there is no champion, or it cannot be loaded.
        ConfigError: it lacks what the policy asks for.
    """
    if settings.service is not None:
        from scoring.stream.scorers import ServiceScore

        key = None if settings.service_key is None else resolved(settings.service_key, "stream.service_key")
        return ServiceScore(resolved(settings.service, "stream.service"), key)
    import torch

    from scoring.stream.scorers import ChampionScore

    torch.set_num_threads(settings.threads)
    policy = filter_of(settings.policy)
    check = policy.check if hasattr(policy, "check") else lambda *_: None
    return ChampionScore(name, settings.watch, check)


@contextmanager
def worker_of(
    settings: StreamSettings, ingest: IngestSettings, score: Score, source: str, folder: Path | None
) -> Iterator[Worker]:
    """What it holds is closed with the block, its scorer too.

    Args:
        source: its name.
        folder: of pictures, where the run file names none.
    """
    from scoring.fetch import Fetch

    pictures = picture_folder(settings.images, folder)
    fetch = Fetch(settings.image_hosts) if settings.image_hosts else None
    with ExitStack() as stack:
        if hasattr(score, "close"):
            stack.callback(score.close)
        retrieve: Retriever = from_message
        if settings.sql is not None:
            retrieve = stack.enter_context(closing(FromSql(settings.sql.url, settings.sql.query)))
        yield Worker(
            source=source,
            retrieve=retrieve,
            read=lambda limits: reader(limits, pictures, fetch),
            score=score,
            filter=filter_of(settings.policy),
            sinks=[stack.enter_context(closing(sink_of(url, settings))) for url in settings.sinks],
            store=stack.enter_context(store_of(settings)),
            limits=(
                ingest.limits,
                PostLimits(ingest.max_images, ingest.max_text_characters),
            ),
            picture_waits=settings.picture_waits,
        )


def stream(
    settings: StreamSettings, ingest: IngestSettings, score: Score, say: Callable[[str], Any], *, once: bool = False
) -> None:
    """Follow the source until a signal; `say` gets a line at the begin and at the end.

    Raises: ConfigError: something of the section cannot be used.
    """
    source = source_of(settings)
    folder = source.folder if isinstance(source, FolderSource) else None
    with worker_of(settings, ingest, score, source.name, folder) as worker:
        say(f"{source.name}: posts are taken, in batches of {settings.batch} at most")
        with told(settings.metrics, source, worker), ending(worker.stop):
            try:
                follow(source, worker, once=once)
            finally:
                say(f"{source.name}: {worker.tally}")


# --- dead letters -----------------------------------------------------------------------------------------------


def letters_of(store: Store, ids: Sequence[int] = ()) -> Iterator[DeadLetter]:
    """All that are open, the oldest first; or those named.

    Raises:
        ConfigError: there is none of such an id.
    """
    if ids:
        found = store.dead_letters(ids=ids, limit=len(ids))
        if missing := sorted(set(ids) - {letter.id for letter in found}):
            raise ConfigError(f"no open dead letter has the id {', '.join(map(str, missing))}: list them first")
        yield from found
        return
    last = 0
    while part := store.dead_letters(after=last):
        yield from part
        last = part[-1].id or 0


def replay(
    settings: StreamSettings, ingest: IngestSettings, score: Score, letters: Sequence[DeadLetter]
) -> tuple[int, int, int]:
    """Take the messages of dead letters once more, the oldest first; those that have a record then are resolved.

    A letter whose post has a newer record by now is resolved without: it would put the old content in its place.

    Returns:
        How many have a record now, how many were overtaken, how many stay dead, with their new reasons.
    """
    url = resolved(settings.source or "", "stream.source")
    folder = None if "://" in url and not url.startswith("file://") else folder_of(url)
    done = [0, 0, 0]
    with worker_of(settings, ingest, score, "", folder) as worker, ending(worker.stop):
        for letter in letters:
            worker.source = letter.source
            if _overtaken(worker, letter):
                place = 1
            else:
                place = 2 if worker.process([Message(letter.message_id, letter.body)], again=True) else 0
            if place < 2:
                worker.patiently(partial(asking, partial(worker.store.resolve, [letter.id or 0])))
            done[place] += 1
            if worker.stop.is_set():
                break
    return done[0], done[1], done[2]


def _overtaken(worker: Worker, letter: DeadLetter) -> bool:
    if (post_id := letter.post_id) is None:
        return False
    current = worker.patiently(lambda: asking(lambda: worker.store.current([post_id])))
    return any(record.error is None and record.scored_at > letter.at for record, _ in current.values())
