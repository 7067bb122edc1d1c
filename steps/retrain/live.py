"""How the champion does on what it served: people's labels that came after the score, joined by `post_id`.

A table of scored posts is JSON Lines, Parquet or CSV, one row per scored post: `post_id`, `score`, `decision` (true:
flagged at the served threshold), `model_version`, `scored_at` (ISO 8601 with a zone). Of a post that one version scored
twice the newest row counts. A row whose `error` says why the post has no score counts as neither flagged nor passed.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from model.columns import DECISION, MODEL_VERSION, SCORE, SCORED_AT
from model.errors import ConfigError, ManifestError
from model.post import Expects, PostId, Row, Time
from model.schema import POST_ID
from steps.ingest.rows import checked_rows
from steps.notify import send
from steps.retrain.fresh import is_to_come, read_labels
from steps.settings import NotifySettings, RetrainSettings
from steps.tables import tell_unmatched

logger = logging.getLogger(__name__)

COLUMNS = (POST_ID, SCORE, DECISION, MODEL_VERSION, SCORED_AT)
LEVEL = 0.95
_PROBABILITY, _BOOLEAN = "a number from 0 to 1", "true or false"


@dataclass(frozen=True)
class Share:
    """k of n; None, where n is 0. high: the exact upper bound, one-sided, 95 %."""

    k: int
    n: int

    @property
    def value(self) -> float | None:
        return self.k / self.n if self.n else None

    @property
    def high(self) -> float:
        if not self.n:
            return 1.0
        from scipy.stats import binomtest  # 0.7 s that a run in which this step is cached does without

        return float(binomtest(self.k, self.n, alternative="less").proportion_ci(LEVEL, method="exact").high)

    def __str__(self) -> str:
        return "undefined" if not self.n else f"{self.k / self.n:.1%} ({self.k:,} of {self.n:,})"


@dataclass(frozen=True)
class Live:
    """One version on posts that it scored and people labelled since.

    precision: of the flagged, those that people call positive. recall: the reverse; it says something of all posts
    only where people label without looking at the decision.
    """

    version: str
    scored: int
    labelled: int
    precision: Share
    recall: Share
    target: float

    @property
    def alarm(self) -> bool:
        """With 95 % confidence the precision is below the target."""
        return self.precision.high < self.target

    @property
    def line(self) -> str:
        bound = f", at most {self.precision.high:.1%} with {LEVEL:.0%} confidence" if self.precision.n else ""
        verdict = "BELOW" if self.alarm else "not shown to be below"
        return (
            f"version {self.version}: {self.labelled:,} of {self.scored:,} scored posts are labelled; live precision "
            f"{self.precision}{bound}: {verdict} the target of {self.target:.0%}; live recall {self.recall}"
        )


def tell(model: str, found: Live, settings: NotifySettings) -> list[str]:
    """Tell a person of an alarm. Returns: what could not be delivered and why."""
    return send(f"AgentPS on {socket.gethostname()}: {model} {found.line}", settings)


def live_tables(scores: Path | None, labels: Path | None, settings: RetrainSettings) -> tuple[Path, Path]:
    """The tables of scores and of people's labels: those that are given, else those of the settings.

    Raises:
        ConfigError: one of them is named nowhere.
    """
    scored, labelled = scores or settings.scores, labels or settings.labels
    if scored is None or labelled is None:
        raise ConfigError("live: scores and labels are needed: give --scores and --labels, or set them in `retrain`")
    return Path(scored), Path(labelled)


class ScoredPost(Row):
    """A row of the table of scored posts: a score and a decision, or the error that was instead."""

    post_id: PostId
    score: Annotated[float | None, Field(ge=0, le=1), Expects(_PROBABILITY)] = None
    decision: Annotated[bool | None, Expects(_BOOLEAN)] = None
    error: Annotated[str | None, Expects("a reason or null")] = None
    model_version: Annotated[PostId, Expects("a version")]
    scored_at: Time


def read_scores(path: Path) -> pd.DataFrame:
    """The table of scored posts, `model_version` as text, one row per post and version.

    Left out, with a word: a row whose `scored_at` is still to come, which would be the newest for ever, and a last line
    that was cut off.

    Raises:
        ManifestError: the file cannot be read, or a row breaks the rules above.
    """
    now = datetime.now(UTC)
    scored, ahead = [], []
    for number, row in checked_rows(path, ScoredPost, "scores", COLUMNS, grows=True):
        for column, cell, expected in ((SCORE, row.score, _PROBABILITY), (DECISION, row.decision, _BOOLEAN)):
            if cell is None and row.error is None:
                raise ManifestError(
                    f"scores {path}:{number}: {column}: missing; {expected} is expected: correct or remove the row"
                )
        if is_to_come(row.scored_at, now):
            ahead.append(f"{path}:{number}: {row.scored_at.isoformat()}")
        elif row.error is None:
            scored.append(dict(row))
    if ahead:
        logger.warning(
            "scores: of %d rows %s is still to come, so a clock was wrong: they are left out (%s)",
            len(ahead),
            SCORED_AT,
            ahead[0],
        )
    table = pd.DataFrame(scored, columns=list(COLUMNS)).astype({MODEL_VERSION: "str", SCORED_AT: "datetime64[us, UTC]"})
    return table.sort_values(SCORED_AT, kind="stable").drop_duplicates([POST_ID, MODEL_VERSION], keep="last")


def live(scores: Path, labels: Path, version: str, settings: RetrainSettings) -> Live:
    """How `version` did on what it scored in its newest `live_days`, against `live_precision`.

    Raises:
        ManifestError: a file cannot be used.
        NoMatchError: there are labels, and none is of a post that any version scored.
    """
    table, known_labels = read_scores(scores), read_labels(labels)
    tell_unmatched(known_labels, set(table[POST_ID]), f"labels {labels}", f"the scored posts of {scores}")
    table = table[table[MODEL_VERSION] == version]
    newest = min(table[SCORED_AT].max(), pd.Timestamp.now(UTC))  # a wrong clock must not make all other scores old
    table = table[table[SCORED_AT] > newest - timedelta(days=settings.live_days)]
    label = table[POST_ID].map(known_labels)
    known = label.notna()
    flagged, positive = table.loc[known, DECISION].astype(bool), label[known] == 1
    hits = int((flagged & positive).sum())
    return Live(
        version=version,
        scored=len(table),
        labelled=int(known.sum()),
        precision=Share(hits, int(flagged.sum())),
        recall=Share(hits, int(positive.sum())),
        target=settings.live_precision / 100,
    )
