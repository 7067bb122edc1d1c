"""How the champion does on what it served: people's labels that came after the score, joined by `post_id`.

Scores are in a store (`scoring.store`), or in a table. A table of scored posts is JSON Lines, Parquet or CSV, one row
per scored post: `post_id`, `score`, `decision` (true: flagged at the served threshold), `model_version`, `scored_at`
(ISO 8601 with a zone). Of a post that one version scored twice the newest row counts. A row whose `error` says why
the post has no score counts as neither flagged nor passed.

Where posts were drawn for people with known probabilities, the figures are those of all posts, from the labels of the
drawn ones (`steps.survey`): by a policy (`audit`, in the store), or by `agentps queue` (a column
`inclusion_probability` of the labels). Else each label counts once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from model.columns import DECISION, MODEL_VERSION, SCORE, SCORED_AT
from model.errors import ConfigError, ManifestError
from model.metrics import point_name
from model.post import Expects, PostId, Row, Time
from model.schema import LABEL, POST_ID
from steps.ingest.rows import checked_rows
from steps.notify import from_here, send
from steps.paths import STORE_FILE, home, store_url
from steps.retrain.fresh import is_to_come, read_chances, read_labels
from steps.retrain.stored import ACTION, AUDIT, AUDIT_PROBABILITY, COLUMNS, POLICY_COLUMNS, is_store, read_stored
from steps.secrets import masked, resolved
from steps.settings import NotifySettings, RetrainSettings
from steps.survey import Estimate, estimate
from steps.tables import tell_unmatched

logger = logging.getLogger(__name__)

#: Where a row of a table stands, for messages.
_WHERE = "where"
_PROBABILITY, _BOOLEAN = "a number from 0 to 1", "true or false"


@dataclass(frozen=True)
class Share:
    """k of n; None, where n is 0."""

    k: int
    n: int

    @property
    def value(self) -> float | None:
        return self.k / self.n if self.n else None

    def upper(self, confidence: float) -> float:
        """The exact upper bound, one-sided."""
        if not self.n:
            return 1.0
        from scipy.stats import binomtest  # 0.7 s that a run in which this step is cached does without

        return float(binomtest(self.k, self.n, alternative="less").proportion_ci(confidence, method="exact").high)

    def __str__(self) -> str:
        return "undefined" if not self.n else f"{self.k / self.n:.1%} ({self.k:,} of {self.n:,})"


@dataclass(frozen=True)
class Drawn:
    """A figure of all posts, from the labels of those that were drawn. high: its upper bound, one-sided, with the
    confidence of `live`.
    """

    value: float | None
    high: float
    n: int

    @classmethod
    def of(cls, found: Estimate) -> Drawn:
        return cls(found.value, found.high, found.labelled)

    def upper(self, _confidence: float) -> float:
        return self.high

    def __str__(self) -> str:
        return "undefined" if self.value is None else f"{self.value:.1%} (from {self.n:,} posts drawn for people)"


@dataclass(frozen=True)
class Live:
    """One version on posts that it scored and people labelled since.

    precision: of the flagged, those that people call positive. recall: the reverse; a `Share` of it says something of
    all posts only where people label without looking at the decision.
    """

    version: str
    scored: int
    labelled: int
    precision: Share | Drawn
    recall: Share | Drawn
    target: float
    confidence: float = 0.95

    @property
    def high(self) -> float:
        """The precision's upper bound, one-sided."""
        return self.precision.upper(self.confidence)

    @property
    def silent(self) -> bool:
        """It flags nothing, though people found positive posts: so it does when no threshold could be promised."""
        return self.precision.value is None and self.recall.value == 0

    @property
    def alarm(self) -> bool:
        """With the confidence the precision is below the target, or nothing is flagged. So a model that keeps its
        promise alarms in at most 1 - confidence of the weeks.
        """
        return self.high < self.target or self.silent

    @property
    def line(self) -> str:
        bound = f", at most {self.high:.1%} with {self.confidence:.0%} confidence" if self.precision.n else ""
        verdict = "BELOW" if self.alarm else "not shown to be below"
        said = f"live precision {self.precision}{bound}: {verdict} the target of {self.target:.0%}"
        if self.silent:
            said = f"NOTHING is flagged at the target of {self.target:.0%}"
        return (
            f"version {self.version}: {self.labelled:,} of {self.scored:,} scored posts are labelled; {said}; "
            f"live recall {self.recall}"
        )


def tell(model: str, found: Live, settings: NotifySettings) -> list[str]:
    """Tell a person of an alarm. Returns: what could not be delivered and why."""
    return send(from_here(f"{model} {found.line}"), settings)


def scores_place(given: str | None) -> str | None:
    """Where the scores are: the store or table that is given, else the store of this machine; None: there is none yet.

    Raises:
        ConfigError: a variable that is named is not set.
    """
    if given is not None:
        return resolved(given, "retrain.scores")
    return store_url() if (home() / STORE_FILE).exists() else None


def live_tables(scores: str | None, labels: str | None, settings: RetrainSettings) -> tuple[str, str]:
    """Where scores and people's labels are: as they are given, else as in the settings.

    Raises:
        ConfigError: one of them is named nowhere, and nothing was scored on this machine.
    """
    scored, labelled = scores_place(scores or settings.scores), labels or settings.labels
    if labelled is None:
        raise ConfigError("live: people's labels are needed: give --labels, or set retrain.labels")
    if scored is None:
        raise ConfigError("live: no scores: `agentps score` makes some; or give --scores, or set retrain.scores")
    return scored, labelled


class ScoredPost(Row):
    """A row of the table of scored posts: a score and a decision, or the error that was instead."""

    post_id: PostId
    score: Annotated[float | None, Field(ge=0, le=1), Expects(_PROBABILITY)] = None
    decision: Annotated[bool | None, Expects(_BOOLEAN)] = None
    error: Annotated[str | None, Expects("a reason or null")] = None
    model_version: Annotated[PostId, Expects("a version")]
    scored_at: Time


def read_scores(place: str, model_name: str, precision: int) -> pd.DataFrame:
    """The scores in a store or a table, `model_version` as text, one row per post and version: its newest.

    `decision` is null where a version of the store has no threshold for the precision.

    Args:
        place: a store's URL, or the path of a table, which is one model's.
        precision: in percent.

    Raises:
        ManifestError: as `read_score_table`.
        StoreError: the store cannot be read.
    """
    if is_store(place):
        return _newest(read_stored(place, model_name, point_name(precision)), place)
    return read_score_table(Path(place))


def read_score_table(path: Path) -> pd.DataFrame:
    """The table of scored posts. A last line that was cut off is left out, with a word.

    Raises:
        ManifestError: the file cannot be read, or a row breaks the rules above.
    """
    scored = []
    for number, row in checked_rows(path, ScoredPost, "scores", COLUMNS, grows=True):
        for column, cell, expected in ((SCORE, row.score, _PROBABILITY), (DECISION, row.decision, _BOOLEAN)):
            if cell is None and row.error is None:
                raise ManifestError(
                    f"scores {path}:{number}: {column}: missing; {expected} is expected: correct or remove the row"
                )
        if row.error is None:
            scored.append(dict(row) | {_WHERE: f"{path}:{number}"})
    return _newest(pd.DataFrame(scored, columns=[*COLUMNS, _WHERE]), path)


def _newest(scored: pd.DataFrame, place: str | Path) -> pd.DataFrame:
    """Left out, with a word: a row whose `scored_at` is still to come, which would be the newest for ever."""
    table = scored.astype({MODEL_VERSION: "str", SCORED_AT: "datetime64[us, UTC]"})
    now = datetime.now(UTC)
    ahead = table[SCORED_AT].map(lambda time: is_to_come(time, now)).astype(bool)
    if ahead.any():
        first = table[ahead].iloc[0]
        logger.warning(
            "scores: of %d rows %s is still to come, so a clock was wrong: they are left out (%s: %s)",
            ahead.sum(),
            SCORED_AT,
            first.get(_WHERE, masked(str(place))),
            first[SCORED_AT].isoformat(),
        )
    table = table.loc[~ahead].reindex(columns=[*COLUMNS, *POLICY_COLUMNS])
    said = table[list(POLICY_COLUMNS)].astype(object)
    table[list(POLICY_COLUMNS)] = said.where(said.notna(), None)  # of a table, as of a store without a policy
    return table.sort_values(SCORED_AT, kind="stable").drop_duplicates([POST_ID, MODEL_VERSION], keep="last")


def live(
    scores: str, labels: str | Path, model_name: str, version: str, settings: RetrainSettings, confidence: float
) -> Live:
    """How `version` did on what it scored in its newest `live_days`, against `live_precision`.

    Args:
        confidence: of the alarm.

    Raises: as `late_labels`.
    """
    table = late_labels(scores, labels, model_name, version, settings)
    label, flagged = table[LABEL], table[DECISION].astype(bool)
    known, positive = label.notna(), label == 1
    precision: Share | Drawn
    recall: Share | Drawn
    if is_drawn(table):
        asked = table[AUDIT_PROBABILITY].notna()
        probability = table.loc[asked, AUDIT_PROBABILITY].astype(float)
        drawn = for_people(table)[asked]
        # of a queue only the drawn posts are known
        which = None if drawn.all() else drawn
        figures = estimate(label[asked], flagged[asked], probability, which, level=2 * confidence - 1)
        precision, recall = Drawn.of(figures.precision), Drawn.of(figures.recall)
    else:
        hits = int((known & flagged & positive).sum())
        precision, recall = Share(hits, int((known & flagged).sum())), Share(hits, int((known & positive).sum()))
    return Live(
        version=version,
        scored=len(table),
        labelled=int(known.sum()),
        precision=precision,
        recall=recall,
        target=settings.live_precision / 100,
        confidence=confidence,
    )


def is_drawn(table: pd.DataFrame) -> bool:
    """Whether some of these posts were drawn for people at random."""
    return bool(table[AUDIT].eq(True).any())


def for_people(table: pd.DataFrame) -> pd.Series[bool]:
    """Those that people look at, as `scoring.policy.Outcome.for_people`."""
    return table[AUDIT].eq(True) | table[ACTION].eq("review")


def late_labels(
    scores: str, labels: str | Path, model_name: str, version: str, settings: RetrainSettings
) -> pd.DataFrame:
    """What `version` scored in its newest `live_days`, with people's `label` since, NaN where there is none yet.

    Args:
        scores: see `read_scores`.

    Raises:
        ConfigError: the version has no threshold for `live_precision`.
        ManifestError, StoreError: a file or the store cannot be used.
        NoMatchError: there are labels, and none is of a post that any version scored.
    """
    table, known_labels = read_scores(scores, model_name, settings.live_precision), read_labels(labels)
    tell_unmatched(
        known_labels, set(table[POST_ID]), f"labels {masked(str(labels))}", f"the scored posts of {masked(scores)}"
    )
    table = table[table[MODEL_VERSION] == version]
    if table[DECISION].isna().any():
        raise ConfigError(
            f"{model_name} version {version} has no threshold for {settings.live_precision} % precision: set "
            "retrain.live_precision to one that it has"
        )
    newest = min(table[SCORED_AT].max(), pd.Timestamp.now(UTC))  # a wrong clock must not make all other scores old
    table = table[table[SCORED_AT] > newest - timedelta(days=settings.live_days)]
    table = table.assign(**{LABEL: table[POST_ID].map(known_labels).astype(float)})
    if chances := read_chances(labels):
        chance = table[POST_ID].map(chances).astype(float)
        table = table.assign(**{ACTION: None, AUDIT: chance.notna(), AUDIT_PROBABILITY: chance})
    return table
