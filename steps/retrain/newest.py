"""The late labels that a champion's thresholds are fitted to again: those since its precision fell, or the newest."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model.columns import DECISION, SCORED_AT
from model.errors import DataError
from model.schema import CREATED_AT, LABEL, POST_ID, PROBABILITY, SPLIT, TEST, VAL
from model.task import Task
from steps.ingest.posts import read_manifest
from steps.paths import home
from steps.register import registry
from steps.register.registry import RegisteredVersion
from steps.retrain import fresh
from steps.retrain.live import for_people, is_drawn, late_labels, live_tables
from steps.retrain.stored import AUDIT_PROBABILITY
from steps.settings import TrainingSettings

#: A fall of the flagged posts' precision is one where twice the log-likelihood ratio is above this: by chance alone
#: the best of 13 days reaches it in 1 of 100 windows or fewer.
_FALL = 10.8
#: Of the posts, the share that the refitted thresholds are tested on.
_TESTED = 0.3


def since_the_fall(table: pd.DataFrame) -> pd.DataFrame:
    """The rows since the fall; where none shows, the newest half of the time.

    Args:
        table: labelled posts, of `late_labels`.

    docs/promise.md compares this with other choices.
    """
    since = fall(table)
    if since is None:
        oldest, newest = table[SCORED_AT].min(), table[SCORED_AT].max()
        since = oldest + (newest - oldest) / 2
    return table[table[SCORED_AT] >= since]


def fall(table: pd.DataFrame) -> pd.Timestamp | None:
    """The day from which on fewer of the flagged posts were positive; None where no day clearly is one."""
    flagged = table[table[DECISION].astype(bool)]
    weight = flagged.get(PROBABILITY, pd.Series(1.0, flagged.index)) ** -1.0
    weight = weight * weight.sum() / (weight**2).sum()  # in all their effective number (Korn and Graubard 1998)
    by_day = pd.DataFrame({"k": weight * flagged[LABEL], "n": weight}).groupby(flagged[SCORED_AT].dt.floor("D")).sum()
    if len(by_day) < 2:
        return None
    k_D, n_D = by_day["k"].to_numpy(np.float64), by_day["n"].to_numpy(np.float64)
    k_before, n_before = np.cumsum(k_D)[:-1], np.cumsum(n_D)[:-1]
    k_after, n_after = k_D.sum() - k_before, n_D.sum() - n_before
    parted = _likelihood(k_before, n_before) + _likelihood(k_after, n_after)
    gain = np.where(k_after / n_after < k_before / n_before, 2 * (parted - _likelihood(k_D.sum(), n_D.sum())), 0.0)
    best = int(np.argmax(gain))
    return by_day.index[best + 1] if gain[best] > _FALL else None


def _likelihood(k: NDArray[np.float64], n: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm, of k of n at its best share."""
    share = np.clip(k / n, 1e-12, 1 - 1e-12)
    found: NDArray[np.float64] = k * np.log(share) + (n - k) * np.log1p(-share)
    return found


def newest_posts(
    name: str, champion: RegisteredVersion, settings: TrainingSettings, task: Task
) -> tuple[pd.DataFrame, str]:
    """The posts since the fall that people labelled and the champion was not trained on: val, and test by a hash.

    Where posts were drawn for people, by a policy or by `agentps queue`, these, with their `inclusion_probability`.

    Returns:
        The table of posts (see `steps.ingest.posts`), and the fingerprint of its manifest.

    Raises:
        DataError: there is no such post.
        ConfigError, ManifestError, StoreError: as `live_tables` and `late_labels`.
    """
    scores, labels = live_tables(None, None, settings.retrain)
    table = late_labels(scores, labels, name, champion.version, settings.retrain)
    table = table[table[LABEL].notna()]
    if is_drawn(table):
        table = table[for_people(table) & (table[AUDIT_PROBABILITY] > 0)]
        table = table.assign(**{PROBABILITY: table[AUDIT_PROBABILITY].astype(float)})
    if len(table):
        table = since_the_fall(table)
    label = dict(zip(table[POST_ID], table[LABEL].astype(int), strict=True))
    drawn = {} if PROBABILITY not in table else dict(zip(table[POST_ID], table[PROBABILITY], strict=True))
    until = _trained_until(champion)
    source = fresh.absolute(settings.posts)
    rows = [
        {name: cell for name, cell in post.items() if name != PROBABILITY}  # of another label
        | {LABEL: label[post[POST_ID]], SPLIT: TEST if _place("test", post[POST_ID]) < _TESTED else VAL}
        | ({PROBABILITY: drawn[post[POST_ID]]} if drawn else {})
        for post in fresh.read_posts(source, fresh.columns_of(task), task, settings.ingest.max_reject_share)
        if post[POST_ID] in label and (until is None or post[CREATED_AT] > until)
    ]
    if not rows:
        raise DataError(
            f"{name} version {champion.version}: none of the {len(label):,} labelled posts that it scored is among the "
            f"posts of {settings.posts} that are newer than its training"
        )
    newest = max(post[CREATED_AT] for post in rows)
    root = fresh.folder_of(source)
    folder: Path = home() / "work" / "recalibrate"
    run = fresh.begin(fresh.Selection(rows, until, newest, len(rows)), root, champion.version, folder)
    return read_manifest(run.manifest, task, settings.ingest, root=root).posts, run.fingerprint


def _trained_until(champion: RegisteredVersion) -> datetime | None:
    profile = registry.profile_of(champion)
    if profile is None or not len(profile):
        return None
    newest: pd.Timestamp = profile[CREATED_AT].max()
    return newest.to_pydatetime()


def _place(what: str, post_id: str) -> float:
    """From 0 to 1, even over posts; not the hash that splits."""
    return int.from_bytes(hashlib.sha256(f"{what}:{post_id}".encode()).digest()[:8]) / 2**64
