"""`agentps score`: the posts of a manifest through the champion, into the store or a table of scored posts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from model.errors import ConfigError, ManifestError
from model.metrics import point_name
from model.post import post_id_of, shown
from model.schema import IMAGES, POST_ID, TEXT, TITLE, VIDEO
from scoring.batch import BatchScore
from scoring.files import picture_reader, video_reader
from scoring.plan import sources_of
from scoring.policy import Policy
from scoring.record import Record
from scoring.score import Input, LocalScore, read_input
from scoring.store import Scored as Said
from scoring.store import Store
from scoring.table import Table, refuse_no_table
from steps.ingest.posts import Reject, refuse_too_many
from steps.ingest.streamed import stream
from steps.locks import locked
from steps.paths import home, store_url
from steps.register import history
from steps.retrain.fresh import folder_of
from steps.retrain.stored import is_store
from steps.secrets import masked, resolved
from steps.settings import TrainingSettings

#: Posts between two writes, and bytes of their pictures.
_CHUNK, _CHUNK_BYTES = 256, 2**28


@dataclass
class Scored:
    """How many posts were scored now, how many of these are flagged, which could not be scored, by their errors, and
    how many this version had scored before.
    """

    scored: int = 0
    flagged: int = 0
    errors: list[str] = field(default_factory=list)
    before: int = 0


class Kept(Protocol):
    """Where records are kept."""

    def known(self, post_ids: Sequence[str]) -> Mapping[str, str | None]:
        """Of the posts that the version has a score for: the hash of what was scored; None: any, by the post's id."""
        ...

    def keep(self, records: Sequence[Record]) -> None: ...


def score_manifest(name: str, posts: str, settings: TrainingSettings, place: str | None, policy: Path | None) -> str:
    """Score the posts that the model's champion has not scored yet; returns what was done, as one line.

    Args:
        posts: a manifest, or a folder of manifests.
        place: a store's URL, or the path of JSON Lines. None: `retrain.scores`, or else the store of this machine.
        policy: says what happens to each post; its word is kept in the store.

    Raises:
        ConfigError: the version has no threshold for `retrain.live_precision`, or not what the policy asks for.
        ManifestError: the manifest cannot be used, or not one of its posts could be scored.
        RegistryError: there is no champion.
        StoreError, DiskError: the records cannot be kept.
    """
    place = resolved(place or settings.retrain.scores or store_url(), "retrain.scores")
    rules = None if policy is None else Policy.load(policy)
    if rules is not None and not is_store(place):
        raise ConfigError(f"score: what a policy says is kept in a store, and {place} is a table: name a store's URL")
    champion = history.champion_of(name)
    point = point_name(settings.retrain.live_precision)
    if not is_store(place):
        refuse_no_table(place)
    score = LocalScore.of(champion)
    if point not in score.points:
        raise ConfigError(
            f"version {champion.version} has no threshold for {settings.retrain.live_precision} % precision (it has "
            f"{', '.join(score.points)}): set retrain.live_precision, or evaluate.precisions of the training"
        )
    if rules is not None:
        rules.check(score.task, score.points, score.variant)
    sources = sources_of(posts)
    rejects = _look(posts, sources, settings.ingest.max_reject_share)
    left_out = {(reject.manifest, reject.row) for reject in rejects}
    read, watch = picture_reader(folder_of(posts), score.limits), video_reader(folder_of(posts), score.limits)
    with keeping(place, name, champion.version, point, score.schema, rules) as kept:
        done = score_new(score, _rows(sources, left_out), read, kept, point, datetime.now(UTC), watch)
    if done.errors and not done.scored and not done.before:
        raise ManifestError(
            f"posts {posts}: not one of {len(done.errors):,} posts could be scored, the first: {done.errors[0]}. The "
            f"errors are kept in {masked(place)}; the posts are tried again by the next call"
        )
    failed = f"{len(done.errors):,} could not be scored ({done.errors[0]}), " if done.errors else ""
    return (
        f"{name} version {champion.version}: {done.scored:,} posts scored, {done.flagged:,} of them flagged at "
        f"{settings.retrain.live_precision} % precision, {failed}{done.before:,} were scored before; {len(rejects):,} "
        f"rows rejected. {'Store' if is_store(place) else 'Table'}: {masked(place)}"
    )


def score_new(
    score: BatchScore,
    rows: Iterable[Mapping[str, Any]],
    read: Callable[[Any], bytes],
    kept: Kept,
    point: str,
    now: datetime,
    read_video: Callable[[Any], tuple[str, list[bytes]]] | None = None,
) -> Scored:
    """Score and keep the posts that the version has no score for. Killed, the next call goes on with those that are
    left. A post that cannot be scored is kept with its `error`, and is tried again by the next call.

    Args:
        rows: of a manifest, each with a usable `post_id`.
        read, read_video: see `scoring.score.read_input`.
        point: the operating point whose flags are counted.
    """
    done = Scored()

    def flush(chunk: list[Input]) -> None:
        records = score(chunk, now) if chunk else []
        kept.keep(records)
        done.errors += [f"{record.post_id}: {record.error}" for record in records if record.error is not None]
        done.scored += sum(record.error is None for record in records)
        done.flagged += sum(record.decisions.get(point, False) for record in records)

    left = iter(rows)
    while part := list(islice(left, _CHUNK)):
        cells = {str(post_id_of(row.get(POST_ID))): row for row in part}
        known = kept.known(list(cells))
        chunk: list[Input] = []
        for post_id, row in cells.items():
            if known.get(post_id, "") is None:
                done.before += 1
                continue
            post = read_input(row, read, score.post_limits, read_video)
            if post.sha256 is not None and post.sha256 == known.get(post_id):
                done.before += 1
                continue
            chunk.append(post)
            if sum(len(image) for one in chunk for image in one.images) >= _CHUNK_BYTES:
                flush(chunk)
                chunk = []
        flush(chunk)
    return done


def _look(posts: str, sources: Sequence[str], max_share: float) -> list[Reject]:
    """The rows that are the record of no post, before anything is scored."""
    rejects: list[Reject] = []
    first: dict[str, str] = {}
    n_rows = 0
    for source in sources:
        for row in stream(source, (POST_ID,)):
            n_rows += 1
            post_id = post_id_of((row.cells or {}).get(POST_ID))
            if row.cells is None:
                reason = row.fault
            elif post_id is None:
                reason = f"{POST_ID}: {shown(row.cells.get(POST_ID))} is no id"
            elif post_id in first:
                reason = f"{POST_ID}: {shown(post_id)} is already the post of {first[post_id]}"
            else:
                first[post_id] = f"row {row.number}" if len(sources) == 1 else f"{source}:{row.number}"
                continue
            rejects.append(Reject(source, row.number, post_id, reason))
    if not n_rows:
        raise ManifestError(f"posts {posts}: it holds no rows; write one row per post")
    refuse_too_many(posts, rejects, n_rows, max_share, none_left=len(rejects) == n_rows)
    return rejects


def _rows(sources: Sequence[str], left_out: Collection[tuple[str, int]]) -> Iterator[Mapping[str, Any]]:
    for source in sources:
        for row in stream(source, (POST_ID, TITLE, TEXT, IMAGES, VIDEO)):
            if (source, row.number) not in left_out:
                yield row.cells or {}


# --- where records are kept ---------------------------------------------------------------------------------


@contextmanager
def keeping(
    place: str, name: str, version: str, point: str, schema: pa.Schema, policy: Policy | None = None
) -> Iterator[Kept]:
    """The store, or the table. Of several calls for one place the others wait: no post is scored twice.

    Args:
        name, version: of the model.
        point: whose decision stands in a table.
        schema: of the flat form of the records.
    """
    path = place if is_store(place) else str(Path(place).resolve())
    lock = hashlib.sha256(path.encode()).hexdigest()[:16]
    what = f"the {'store' if is_store(place) else 'table'} {masked(place)}"
    with locked(home() / "locks" / f"scores-{lock}.lock", what):
        if not is_store(place):
            yield Table(Path(place), version, point, schema)
            return
        with Store.open(place) as store:
            yield _Stored(store, name, version, policy)


class _Stored:
    def __init__(self, store: Store, name: str, version: str, policy: Policy | None) -> None:
        self._store, self._name, self._version, self._policy = store, name, version, policy

    def known(self, post_ids: Sequence[str]) -> Mapping[str, str | None]:
        """A post that was changed is not known: it is scored again."""
        found = [said for said in self._store.current(post_ids, self._name).values() if self._is_ours(said[0])]
        if self._policy is not None:  # another policy decides anew about what was said
            others = [record for record, _ in found if record.policy_version != self._policy.version]
            self.keep(others)
        return {record.post_id: record.input_sha256 for record, _ in found}

    def _is_ours(self, record: Record) -> bool:
        return record.model_version == self._version and record.error is None and record.input_sha256 is not None

    def keep(self, records: Sequence[Record]) -> None:
        self._store.put([self._decided(record) for record in records])

    def _decided(self, record: Record) -> Said:
        return record, None if self._policy is None else self._policy.decide(record)
