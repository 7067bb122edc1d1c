"""A candidate before the gate: the champion of the moment is scored on its test posts and compared with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from model.schema import LABEL, POST_ID, SPLIT, TEST
from model.task import Task
from steps.evaluate.report import SCORE, EvalReport
from steps.promote.gate import Decision, Judged, Posts, Unscored, decide, slices_of
from steps.register import registry
from steps.register.history import State
from steps.register.registry import RegisteredVersion
from steps.settings import PromoteSettings
from steps.tables import rows_of


class Trial:
    """Decides against whichever version is champion, each time that it is asked.

    `scores`: post_id, label, score (the candidate's), one row a labelled test post; and champion, once one
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
        policy: PromoteSettings,
        alarmed: str | None = None,
    ) -> None:
        """
        Args: as the artifacts of the run that made `version`; and
            alarmed: the version whose live precision is below its promise.
        """
        test = predictions[(predictions[SPLIT] == TEST) & predictions[LABEL].notna()].reset_index(drop=True)
        self.scores = test[[POST_ID, LABEL, SCORE]].copy()
        self._version, self._task, self._policy = version, task, policy
        self._shards, self._table, self._alarmed = shards, posts, alarmed
        members = rows_of(posts, test[POST_ID].tolist(), "posts")
        self._posts = Posts(labels_N=(test[LABEL] == 1).to_numpy(bool), slices=slices_of(members))
        self._candidate = Judged(scores_N=test[SCORE].to_numpy(np.float64), report=report)

    def decide(self, state: State) -> Decision:
        """Raises: CheckpointError, RegistryError where the champion's files are not those that were registered."""
        champion = state.champion
        if champion is None:
            return decide(self._candidate, None, self._posts, self._policy)
        if champion.version == self._version.version:
            return Decision(verdict="already champion", reason="this version is the champion")
        if (move := state.rolled_back(self._version.version)) is not None:
            why = f"it was champion until {move.by} went back on {move.at:%Y-%m-%d} ({move.reason})"
            return decide(self._candidate, Unscored(why), self._posts, self._policy)
        report = registry.report_of(champion)
        if report.task_fingerprint != self._task.fingerprint:
            why = f"the champion, version {champion.version}, answers another task: the two cannot be compared"
            return decide(self._candidate, Unscored(why), self._posts, self._policy)
        from steps.promote.champion import score_posts  # with torch and transformers, which no other decision needs

        self.scores["champion"] = score_posts(
            registry.fetch(champion, self._task),
            registry.fetch(self._version, self._task),
            self.scores[POST_ID].tolist(),
            self._shards,
            self._table,
        )
        held = Judged(scores_N=self.scores["champion"].to_numpy(np.float64), report=report)
        age = datetime.now(UTC) - state.champion_since if state.champion_since else timedelta(0)
        alarmed = champion.version == self._alarmed
        return decide(self._candidate, held, self._posts, self._policy, age, alarmed=alarmed)
