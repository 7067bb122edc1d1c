"""What the service scores with: the champion of the registry, which is watched, and the challenger in its shadow.

`scoring.about` says what the door, in another process, must know of it.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from model.checkpoint import read_info
from model.errors import AgentPSError, CheckpointError, RegistryError
from model.files import disk_told
from scoring.about import About, Status
from scoring.record import Record
from scoring.score import Input, LocalScore
from steps.register import registry
from steps.register.own_code import scorer_of
from steps.register.registry import CHALLENGER, CHAMPION

logger = logging.getLogger(__name__)

#: Seconds until a version that could not be loaded is tried again: twice as long each time, up to the second.
_AGAIN, _AT_MOST = 10.0, 600.0
#: Posts that wait for the challenger. More are not kept for it.
_SHADOW_QUEUE = 256
#: Of the challenger's thread: the champion's has ten times its share of a core.
_NICE = 10


class _Loaded:
    """A version in memory that has scored a post."""

    def __init__(self, name: str, version: str) -> None:
        """Raises: AgentPSError where it cannot be loaded, or cannot score."""
        registered = registry.get(name, version)
        checkpoint = registry.fetch(registered)
        self.score = LocalScore(registered, checkpoint, scorer_of(checkpoint))
        self.info = read_info(checkpoint)
        self.since = datetime.now(UTC)
        self._warm()

    def _warm(self) -> None:
        """The first posts take longer: kernels are chosen, memory is asked for, modules are imported."""
        picture = io.BytesIO()
        Image.new("RGB", (64, 48), "grey").save(picture, "PNG")
        albums = [(picture.getvalue(),)] * self.info.train.micro_batch
        for record in self.score([Input(f"warm-{k}", "warm", "up", album) for k, album in enumerate(albums)]):
            if record.error is not None:
                raise CheckpointError(f"version {record.model_version} cannot score: {record.error}")

    @property
    def version(self) -> str:
        return self.score.version.version


class Engine:
    """The champion, and what comes after it.

    A call scores all its posts with the one version that is the champion when it begins. A thread asks the registry
    which version the alias names; another one is loaded and warmed in that thread, and only then takes the old one's
    place. Where it cannot be loaded, the old one stays, and `status` tells.
    """

    def __init__(self, name: str, poll: float, shadow: Shadow | None = None) -> None:
        """Raises: RegistryError, CheckpointError where there is no champion, or it cannot be loaded."""
        self.name = name
        self._poll, self._shadow = poll, shadow
        aliases = registry.aliases_of(name)
        if CHAMPION not in aliases:
            raise RegistryError(f"model {name}: no champion yet: run the pipeline first")
        self._champion = _Loaded(name, aliases[CHAMPION])
        self._trouble: str | None = None
        self._failed: dict[str, tuple[float, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="alias-watch", daemon=True)

    def start(self) -> None:
        """Watch the aliases from now on."""
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._shadow is not None:
            self._shadow.close()

    def __call__(self, inputs: Sequence[Input], now: datetime | None = None) -> list[Record]:
        champion = self._champion
        records = _scored(champion.score, inputs, now)
        if self._shadow is not None:
            self._shadow.offer(inputs, records)
        return records

    @property
    def about(self) -> About:
        champion, shadow = self._champion, self._shadow
        info = champion.info
        return About(
            status=Status(
                model=self.name,
                version=champion.version,
                task=champion.score.task.fingerprint,
                since=champion.since,
                challenger=shadow.version if shadow is not None else None,
                trouble=self._trouble,
            ),
            limits=info.limits,
            post_limits=info.post_limits,
            sequence=info.sequence,
            micro_batch=info.train.micro_batch,
            shadow=dict(shadow.counts) if shadow is not None else {},
        )

    # --- the watch ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop.wait(self._poll):
            self.look()

    def look(self) -> None:
        """Ask the registry once, and take over what it says."""
        try:
            aliases = registry.aliases_of(self.name)
        except AgentPSError as error:
            self._say(f"the registry does not answer ({type(error).__name__})", error)
            return
        champion = aliases.get(CHAMPION)
        if champion is None:
            self._say("there is no champion any more", None)
        elif champion == self._champion.version:
            self._say(None, None)
        elif (loaded := self._load(champion)) is not None:
            old, self._champion = self._champion.version, loaded
            self._say(None, None)
            logger.warning("model %s: version %s serves now, in place of version %s", self.name, champion, old)
            del loaded
            gc.collect()  # the old network is a cycle of references, and large
        self._follow(aliases.get(CHALLENGER))

    def _load(self, version: str) -> _Loaded | None:
        """None: it cannot be loaded, or could not, a short time ago."""
        at, wait = self._failed.get(version, (0.0, 0.0))
        if time.monotonic() < at:
            return None
        try:
            loaded = _Loaded(self.name, version)
        except Exception as error:  # noqa: BLE001  # its code is its own: whatever it raises, the old one serves
            wait = min(wait * 2 or _AGAIN, _AT_MOST)
            self._failed[version] = time.monotonic() + wait, wait
            self._say(f"version {version} cannot be loaded ({type(error).__name__})", error)
            return None
        self._failed.pop(version, None)
        return loaded

    def _say(self, trouble: str | None, error: BaseException | None) -> None:
        if trouble is not None and trouble != self._trouble:
            logger.error("model %s: %s; version %s goes on: %s", self.name, trouble, self._champion.version, error)
        self._trouble = trouble

    def _follow(self, challenger: str | None) -> None:
        if self._shadow is None:
            return
        if challenger is None or challenger == self._champion.version:
            self._shadow.take(None)
        elif challenger != self._shadow.version and (loaded := self._load(challenger)) is not None:
            self._shadow.take(loaded.score)


def _scored(score: LocalScore, inputs: Sequence[Input], now: datetime | None) -> list[Record]:
    """A post on which the version's code breaks costs no other post of its batch."""
    try:
        return score(inputs, now)
    except Exception as error:  # noqa: BLE001  # of a version's own code, on what strangers send
        version = score.version.version
        more = {"model_version": version}
        logger.error("version %s: %d posts not scored: %s", version, len(inputs), type(error).__name__, extra=more)
        if len(inputs) > 1:
            return [record for post in inputs for record in _scored(score, [post], now)]
        broken = replace(inputs[0], error=f"the version's code broke on it ({type(error).__name__})")
        return score([broken], now)


@dataclass
class Shadow:
    """The challenger scores a share of the posts after they were answered, and both records are kept beside each other.

    folder: gets a JSON Lines file for each pair of versions and day, a line `{"served": record, "shadow": record}`.
    share: of the posts, drawn by a hash of the id: every version sees the same ones.
    counts: posts that were kept, left out because too many waited, or failed.
    """

    folder: Path
    share: float
    counts: Counter[str] = field(default_factory=Counter)
    _score: LocalScore | None = None
    _posts: queue.Queue[tuple[Input, Record] | None] = field(default_factory=lambda: queue.Queue(_SHADOW_QUEUE))

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    @property
    def version(self) -> str | None:
        return self._score.version.version if self._score is not None else None

    def take(self, score: LocalScore | None) -> None:
        self._score = score

    def offer(self, inputs: Sequence[Input], served: Sequence[Record]) -> None:
        """Never waits: what does not fit is left out, and counted."""
        if self._score is None:
            return
        for pair in zip(inputs, served, strict=True):
            if pair[0].error is None and drawn(pair[0].post_id, self.share):
                try:
                    self._posts.put_nowait(pair)
                except queue.Full:
                    self.counts["left out"] += 1

    def close(self) -> None:
        with suppress(queue.Full):
            self._posts.put_nowait(None)

    def _work(self) -> None:
        _step_back()
        while (pair := self._posts.get()) is not None:
            score = self._score
            if score is None:
                continue
            try:
                self._keep(score.version.version, pair[1], score([pair[0]])[0])
                self.counts["kept"] += 1
            except Exception as error:  # noqa: BLE001  # a challenger may be anything: the champion goes on
                logger.error("challenger %s: post not scored: %s", score.version.version, type(error).__name__)
                self.counts["failed"] += 1

    def _keep(self, version: str, served: Record, shadow: Record) -> None:
        line = json.dumps({"served": served.model_dump(mode="json"), "shadow": shadow.model_dump(mode="json")})
        day = shadow.scored_at.date().isoformat()
        path = self.folder / f"{shadow.model_name}-{served.model_version}-{version}-{day}.jsonl"
        with disk_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                file.write(line.encode() + b"\n")


def drawn(post_id: str, share: float) -> bool:
    """Whether a post is one of the share; always the same answer."""
    return int.from_bytes(hashlib.sha256(post_id.encode()).digest()[:6]) < share * 2**48


def _step_back() -> None:
    """On Linux a thread has a priority of its own."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
