"""A candidate before the gate: the champion of the moment is scored on its test posts and compared with it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from model.columns import SCORE
from model.schema import LABEL, POST_ID, SPLIT, TEST
from model.task import Task
from steps.evaluate.report import EvalReport
from steps.promote.gate import Decision, Judged, Posts, Unscored, decide, slices_of
from steps.register import registry
from steps.register.moves import RegistryState
from steps.register.registry import RegisteredVersion
from steps.settings import PromoteSettings
from steps.survey import weights_of
from steps.tables import rows_of

logger = logging.getLogger(__name__)

#: No champion is older: a clock that says so is wrong, and what it says makes nobody stale.
_OLDEST = timedelta(days=3650)


class Candidate:
    """Decides against whichever version is champion, each time that it is asked.

    `scores`: post_id, label, score (the candidate's), one row per labelled test post; and champion, once one
    was scored.
    """

    def __init__(
        self,
        version: RegisteredVersion,
        report: EvalReport,
        predictions: pd.DataFrame,
        shards: Path,
        posts: pd.DataFrame,
        task: Task,
        settings: PromoteSettings,
        alarmed: str | None = None,
    ) -> None:
        """
        Args: as the artifacts of the run that made `version`; and
            alarmed: the version whose live precision is below its promise.
        """
        test = predictions[(predictions[SPLIT] == TEST) & predictions[LABEL].notna()].reset_index(drop=True)
        self.scores = test[[POST_ID, LABEL, SCORE]].copy()
        self._version, self._task, self._settings = version, task, settings
        self._shards, self._table, self._alarmed = shards, posts, alarmed
        members = rows_of(posts, test[POST_ID].tolist(), "posts")
        labels_N, slices = (test[LABEL] == 1).to_numpy(bool), slices_of(members)
        self._posts = Posts(labels_N=labels_N, slices=slices, weights_N=weights_of(test))
        self._judged = Judged(scores_N=test[SCORE].to_numpy(np.float64), report=report)

    def decide(self, state: RegistryState) -> Decision:
        """Raises: CheckpointError, RegistryError where the champion's files are not those that were registered."""
        champion = state.champion
        if champion is not None and champion.version == self._version.version:
            return Decision(verdict="already champion", reason="this version is the champion")
        held = None if champion is None else self._held(state, champion)
        now = datetime.now(UTC)
        age = now - state.champion_since if state.champion_since else timedelta(0)
        if age > _OLDEST:
            logger.warning("this machine's clock says %s: the champion's age is not known", now.date())
            age = timedelta(0)
        alarmed = champion is not None and champion.version == self._alarmed
        return decide(self._judged, held, self._posts, self._settings, age, alarmed=alarmed)

    def _held(self, state: RegistryState, champion: RegisteredVersion) -> Judged | Unscored:
        if (move := state.rolled_back(self._version.version)) is not None:
            return Unscored(f"it was champion until {move.by} went back on {move.at:%Y-%m-%d} ({move.reason})")
        report = registry.report_of(champion)
        name = f"the champion, version {champion.version}"
        if report.task_fingerprint != self._task.fingerprint:
            return Unscored(f"{name}, answers another task: the two cannot be compared")
        from steps.promote.champion import score_posts  # with torch and transformers, which no other decision needs

        scores_N, errors = score_posts(
            registry.fetch(champion, self._task),
            registry.fetch(self._version, self._task),
            self.scores[POST_ID].tolist(),
            self._shards,
            self._table,
        )
        self.scores["champion"] = scores_N
        if errors:
            few = f"{len(errors)} of the {len(scores_N)} test posts ({errors[0]})"
            return Unscored(f"{name}, cannot score {few}: the two cannot be compared")
        return Judged(scores_N=scores_N, report=report)
