"""A batch: every post of a manifest scored once, in files that a killed run goes on from.

A job's folder is `OUTPUT/day=YYYY-MM-DD`. It holds one Parquet file of records for each shard of the manifest, and
files whose names begin with `_`, which readers of Parquet data sets leave out: the job, its shards, the rows that were
rejected and, once all is done, the counts. A shard's file is written beside and renamed, so it is there whole or not at
all; one that is there is not scored again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import AwareDatetime, ValidationError

from model.columns import ERROR, decision_column
from model.errors import ConfigError, DataError, ManifestError
from model.files import disk_told, replacing, write_whole
from model.images import ImageLimits
from model.post import post_id_of
from model.schema import IMAGES, POST_ID, TEXT, TITLE, VIDEO
from model.settings import PostLimits
from model.strict import Strict, explain_validation
from scoring.files import picture_reader, video_reader
from scoring.plan import IdsHash, Shard, fingerprint, plan, read_plan, sources_of
from scoring.record import Record, to_table
from scoring.score import Input, LocalScore, Score, read_input
from scoring.settings import ScoringSettings
from steps.ingest.rows import is_url
from steps.ingest.streamed import Reader
from steps.locks import locked
from steps.register.registry import RegisteredVersion
from steps.retrain.fresh import folder_of

logger = logging.getLogger(__name__)

#: Posts that are read and scored together, and bytes of their pictures: what is in memory at one time.
_CHUNK, _CHUNK_BYTES = 256, 2**28
#: Posts whose pictures are read from an object store at the same time: one answer takes it longer than many.
_READERS = 16
#: Seconds between two words on how far a job is.
_WORD = 60.0
_JOB, _SHARDS, _REJECTS, _COUNTS = "_job.json", "_shards.jsonl", "_rejects.jsonl", "_counts.json"


class BatchScore(Score, Protocol):
    """What a batch needs of a scorer, as `LocalScore` has it. schema: of the flat form of its records."""

    schema: pa.Schema
    limits: ImageLimits
    post_limits: PostLimits


#: Makes the scorer, in the process that scores. It is pickled for Ray's.
Make = Callable[[], BatchScore]


class Job(Strict):
    """What is scored by what. All records of it have one time, so that they do not depend on when which was made.

    fingerprint: of the posts, see `scoring.plan.fingerprint`.
    """

    model_name: str
    model_version: str
    posts: str
    fingerprint: str
    shard: int
    scored_at: AwareDatetime


class Counts(Strict):
    """How a job ended. flagged: by operating point. rejects: rows of the manifest without a record."""

    scored: int
    flagged: dict[str, int]
    errors: int
    rejects: int


@dataclass
class Done:
    """What is finished of a job, or of a shard."""

    scored: int = 0
    errors: int = 0
    flagged: Counter[str] = field(default_factory=Counter)
    #: The first error, with its post.
    error: str = ""

    def __iadd__(self, other: Done) -> Done:
        self.scored, self.errors = self.scored + other.scored, self.errors + other.errors
        self.flagged += other.flagged
        self.error = self.error or other.error
        return self


# --- posts to records ---------------------------------------------------------------------------------------


def records_of(
    rows: Iterable[Mapping[str, Any]],
    score: BatchScore,
    read: Callable[[Any], bytes],
    now: datetime,
    readers: int = 1,
    read_video: Callable[[Any], tuple[str, list[bytes]]] | None = None,
) -> Iterator[Record]:
    """A record for each row, in order, so many at a time that memory stays flat.

    Args:
        rows: of a manifest, each with a usable `post_id`.
        read, read_video: see `scoring.score.read_input`.
        now: `scored_at`.
        readers: posts whose pictures are read at the same time.
    """
    chunk: list[Input] = []
    n_bytes = 0
    make = partial(read_input, read=read, limits=score.post_limits, read_video=read_video)
    for post in _inputs(rows, make, readers):
        chunk.append(post)
        n_bytes += sum(map(len, post.images))
        if len(chunk) == _CHUNK or n_bytes >= _CHUNK_BYTES:
            yield from score(chunk, now)
            chunk, n_bytes = [], 0
    if chunk:
        yield from score(chunk, now)


def _inputs(
    rows: Iterable[Mapping[str, Any]], make: Callable[[Mapping[str, Any]], Input], readers: int
) -> Iterator[Input]:
    if readers == 1:
        yield from map(make, rows)
        return
    rows = iter(rows)
    with ThreadPoolExecutor(readers) as pool:
        while window := list(islice(rows, readers)):  # no more is read ahead
            yield from pool.map(make, window)


class ShardScorer:
    """Scores shards into files: the one loop of every engine."""

    def __init__(self, score: BatchScore, job: Job, sources: Sequence[str], folder: Path) -> None:
        self._score, self._job, self._sources, self._folder = score, job, sources, folder
        self._reader = Reader((POST_ID, TITLE, TEXT, IMAGES, VIDEO))
        root = folder_of(job.posts)
        self._read, self._readers = picture_reader(root, score.limits), _READERS if is_url(root) else 1
        self._watch = video_reader(root, score.limits)

    def __call__(self, shard: Shard) -> Done:
        """
        Raises:
            ManifestError: the manifest is not what it was when the shards were made.
            DiskError: the file cannot be written; it is not there then.
        """
        rows = self._rows(shard)
        records = list(records_of(rows, self._score, self._read, self._job.scored_at, self._readers, self._watch))
        table = to_table(records, self._score.schema)
        with replacing(file_of(self._folder, shard)) as part:
            pq.write_table(table, part)
        return done_of(table)

    def _rows(self, shard: Shard) -> list[Mapping[str, Any]]:
        source = self._sources[shard.manifest]
        left_out, ids = frozenset(shard.left_out), IdsHash()
        found: list[Mapping[str, Any]] = []
        for row in self._reader.rows(source, shard.place, shard.row, shard.rows):
            if row.number not in left_out:
                cells = row.cells or {}
                ids.add(str(post_id_of(cells.get(POST_ID))))
                found.append(cells)
        if str(ids) != shard.ids:
            raise ManifestError(
                f"manifest {source}: rows {shard.row + 1:,} and following are others than when the job began: put the "
                f"file back; or delete {self._folder}, and begin anew"
            )
        return found


def file_of(folder: Path, shard: Shard) -> Path:
    return folder / f"shard-{shard.number:05}.parquet"


def done_of(table: pa.Table) -> Done:
    """
    Args:
        table: of records, its error and its decisions at least.
    """
    decision = decision_column("")
    points = [name.removeprefix(decision) for name in table.column_names if name.startswith(decision)]
    errors = len(table) - table.column(ERROR).null_count
    flagged = {point: pc.sum(table.column(decision_column(point))).as_py() or 0 for point in points}
    failed = table.filter(pc.is_valid(table.column(ERROR))).slice(0, 1).to_pylist()
    first = f"{failed[0][POST_ID]}: {failed[0][ERROR]}" if failed else ""
    return Done(len(table) - errors, errors, Counter(flagged), first)


def _done_before(path: Path) -> Done:
    try:
        return done_of(pq.read_table(path, partitioning=None))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}): delete it, to have its posts scored again") from error


# --- the job ------------------------------------------------------------------------------------------------


def score_batch(
    version: RegisteredVersion, make: Make, settings: ScoringSettings, now: datetime | None = None
) -> tuple[Path, Counts]:
    """Score the posts of `settings.posts` that have no record yet. Of several calls for one output the others wait.

    Args:
        make: the scorer of `version`.
        now: `scored_at` of a job that begins; None: the time.

    Returns:
        The job's folder, and its counts.

    Raises:
        ConfigError: posts or output are not named; or the output is another job's.
        ManifestError: a manifest cannot be read, or holds no post.
        DataError: not one post could be scored.
        DiskError: the records cannot be written.
    """
    posts, output = settings.named()
    sources = sources_of(posts)
    with disk_told(output):
        output.mkdir(parents=True, exist_ok=True)
    with locked(output / "_lock", f"the records in {output}"):
        job, folder = _begin(version, posts, fingerprint(posts, sources), output, settings.shard, now)
        if (before := _read(Counts, folder / _COUNTS)) is not None:
            logger.info("%s: all of these posts were scored before by version %s", folder, version.version)
            return folder, before
        for left in folder.glob("*.part"):  # of a process that was killed
            left.unlink()
        shards, rejects = folder / _SHARDS, folder / _REJECTS
        if not shards.exists():
            plan(sources, job.shard, shards, rejects, folder / "_ids.part")
        done = _score(shards, job, partial(engine_of(settings), make, job, sources, folder), folder)
        if not done.scored:
            raise DataError(
                f"posts {posts}: none of {done.errors:,} posts could be scored, the first: {done.error}. Correct it, "
                f"delete {folder}, and run again"
            )
        rejected = 0
        if rejects.exists():
            with rejects.open("rb") as file:
                rejected = sum(1 for _ in file)
        counts = Counts(scored=done.scored, flagged=done.flagged, errors=done.errors, rejects=rejected)
        write_whole(folder / _COUNTS, counts.model_dump_json(indent=1) + "\n")
    return folder, counts


def told(version: RegisteredVersion, folder: Path, counts: Counts) -> str:
    """How a job ended, in one line."""
    flagged = ", ".join(f"{number:,} flagged at {point}" for point, number in counts.flagged.items())
    return (
        f"{version.name} version {version.version}: {counts.scored:,} posts scored ({flagged or 'no thresholds'}), "
        f"{counts.errors:,} could not be scored, {counts.rejects:,} rows rejected"
        f"{f' (see {folder / _REJECTS})' if counts.rejects else ''}. Records: {folder}"
    )


def _begin(
    version: RegisteredVersion, posts: str, mark: str, output: Path, size: int, now: datetime | None
) -> tuple[Job, Path]:
    """The job that is asked for, and its folder: one that was begun, or a new one."""
    now = (now or datetime.now(UTC)).astimezone(UTC)
    jobs = {path.parent: _read(Job, path) for path in sorted(output.glob(f"day=*/{_JOB}"))}
    for folder, job in jobs.items():
        if job and (job.model_name, job.model_version, job.fingerprint) == (version.name, version.version, mark):
            return job, folder
    today = output / f"day={now:%Y-%m-%d}"
    for folder, job in jobs.items():
        if job and (folder == today or not (folder / _COUNTS).exists()):
            raise ConfigError(_refusal(folder, job, version, posts))
    if today.exists() and any(path.suffix != ".part" for path in today.iterdir()):
        raise ConfigError(f"scoring.output: {today} holds files of somebody else: name another folder")
    who = {"model_name": version.name, "model_version": version.version}
    new = Job(**who, posts=posts, fingerprint=mark, shard=size, scored_at=now)
    write_whole(today / _JOB, new.model_dump_json(indent=1) + "\n")
    return new, today


def _refusal(folder: Path, job: Job, version: RegisteredVersion, posts: str) -> str:
    """Why a folder of records takes no others: a post would have two records there, or none."""
    finished = (folder / _COUNTS).exists()
    other = (job.model_name, job.model_version) != (version.name, version.version)
    same_model = job.model_name == version.name
    whose = f"version {job.model_version}" if same_model else f"{job.model_name} version {job.model_version}"
    what = f"of {job.posts} as it was then, not of {posts} now"
    if other:
        what = f"by {whose}, not by version {version.version}"
    if finished:
        return f"scoring.output: {folder} holds today's records {what}: name another folder"
    goes_on = f'set scoring.version: "{job.model_version}" to go on with it' if other and same_model else "finish it"
    return f"scoring.output: {folder} is an unfinished job {what}: {goes_on}, delete it, or name another folder"


_Kept = TypeVar("_Kept", bound=Strict)


def _read(kind: type[_Kept], path: Path) -> _Kept | None:
    """None: it is not there."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DataError(f"{path}: {explain_validation(error)}: it was changed; delete {path.parent}") from error


# --- engines ------------------------------------------------------------------------------------------------

#: Scores shards, in any order: the scorer's maker, the job, its manifests, its folder, the shards.
Engine = Callable[[Make, Job, Sequence[str], Path, Iterable[Shard]], Iterator[Done]]


def engine_of(settings: ScoringSettings) -> Engine:
    if settings.engine == "local":
        return locally
    from scoring.ray_batch import on_ray

    return partial(on_ray, settings.workers, settings.threads)


def load(version: RegisteredVersion, tracking_uri: str, threads: int) -> LocalScore:
    """`LocalScore.of`, in a process that may know of no registry yet; from now on it computes on so many cores.

    More threads than free cores make scoring several times slower.
    """
    import mlflow
    import torch

    torch.set_num_threads(threads)
    mlflow.set_tracking_uri(tracking_uri)
    return LocalScore.of(version)


def locally(make: Make, job: Job, sources: Sequence[str], folder: Path, shards: Iterable[Shard]) -> Iterator[Done]:
    """One shard after the other, in this process."""
    scorer: ShardScorer | None = None
    for shard in shards:
        scorer = scorer or ShardScorer(make(), job, sources, folder)
        yield scorer(shard)


def _score(plan_file: Path, job: Job, engine: Callable[[Iterable[Shard]], Iterator[Done]], folder: Path) -> Done:
    total, done = sum(shard.posts for shard in read_plan(plan_file)), Done()

    def missing() -> Iterator[Shard]:
        nonlocal done
        for shard in read_plan(plan_file):
            path = file_of(folder, shard)
            if path.exists():
                done += _done_before(path)
            else:
                yield shard

    start, word = time.monotonic(), time.monotonic() + _WORD
    now = 0
    for part in engine(missing()):
        done += part
        now += part.scored + part.errors
        if time.monotonic() >= word:
            rate = now / (time.monotonic() - start)
            logger.info("%s of %s posts, %s posts/s", f"{done.scored + done.errors:,}", f"{total:,}", f"{rate:,.0f}")
            word += _WORD
    return done
