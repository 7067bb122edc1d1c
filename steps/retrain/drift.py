"""How the fresh posts differ from those that the champion was trained on.

With many posts every difference is significant, so a difference is a drift only where its effect size, too, is above
a limit: the Kolmogorov-Smirnov distance of a number, Cramér's V of classes, and of the tower's features the ROC AUC of
a classifier that tells fresh posts from old ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, ks_2samp, mannwhitneyu
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model.schema import LABEL, PROBABILITY
from model.task import Task
from steps.pages import template
from steps.retrain.profile import CHARACTERS, FEATURES, N_IMAGES
from steps.settings import RetrainSettings
from steps.survey import weights_of

#: A difference that chance shows less often than this.
SIGNIFICANCE = 0.01
#: Fewer rows on one side tell nothing.
MIN_ROWS = 30
_FOLDS = 5
_MISSING = "missing"


@dataclass(frozen=True)
class Difference:
    """effect, p: None where the two cannot be compared, and `found` says why. p: two-sided, of no difference."""

    what: str
    statistic: str
    effect: float | None
    limit: float
    p: float | None
    found: str

    @property
    def outcome(self) -> str:
        if self.effect is None or self.p is None:
            return "not compared"
        return "drift" if self.effect > self.limit and self.p < SIGNIFICANCE else "within limits"


def compare(reference: pd.DataFrame, fresh: pd.DataFrame, task: Task, settings: RetrainSettings) -> list[Difference]:
    """One line each for text length, number of images, final label, each question and the tower's features.

    Args:
        reference, fresh: profiles (see `steps.retrain.profile`) of the champion's posts and of the fresh ones.
    """
    lines = [_schema(reference, fresh)]
    for column, what in ((CHARACTERS, "characters of title and text"), (N_IMAGES, "images")):
        lines.append(_numbers(what, reference[column], fresh[column], settings.max_ks))
    # a label that is still to come is no answer; an annotator's missing one is
    old, new = reference[reference[LABEL].notna()], fresh[fresh[LABEL].notna()]
    lines.append(_classes("label", old[LABEL], new[LABEL], settings.max_cramers_v, weights_of(old), weights_of(new)))
    for name in task.question_ids:
        if name in reference and name in fresh:
            lines.append(_classes(f"answers to {name}", reference[name], fresh[name], settings.max_cramers_v))
    lines.append(_embedding(reference[FEATURES], fresh[FEATURES], settings.max_auc))
    return lines


def records(lines: list[Difference]) -> list[dict[str, Any]]:
    return [asdict(line) | {"outcome": line.outcome} for line in lines]


def _schema(reference: pd.DataFrame, fresh: pd.DataFrame) -> Difference:
    ours, theirs = ({*map(str, side)} - {PROBABILITY} for side in (reference, fresh))  # how people were asked
    gone, new = sorted(ours - theirs), sorted(theirs - ours)
    found = f"gone: {gone}, new: {new}" if gone or new else "the same columns"
    return Difference("schema", "columns that differ", float(len(gone) + len(new)), 0.0, 0.0, found)


def _few(a: int, b: int) -> str | None:
    return f"{a:,} and {b:,} rows; {MIN_ROWS} are needed" if min(a, b) < MIN_ROWS else None


def _numbers(what: str, reference: pd.Series, fresh: pd.Series, limit: float) -> Difference:
    if few := _few(len(reference), len(fresh)):
        return Difference(what, "KS distance", None, limit, None, few)
    test = ks_2samp(reference, fresh)
    found = f"median {reference.median():g}, fresh {fresh.median():g}"
    return Difference(what, "KS distance", float(test.statistic), limit, float(test.pvalue), found)


def _classes(
    what: str,
    reference: pd.Series,
    fresh: pd.Series,
    limit: float,
    reference_weights: NDArray[np.float64] | None = None,
    fresh_weights: NDArray[np.float64] | None = None,
) -> Difference:
    sides = {"reference": (reference, reference_weights), "fresh": (fresh, fresh_weights)}
    named = {side: _counts(values.astype("string").fillna(_MISSING), w) for side, (values, w) in sides.items()}
    counts = pd.DataFrame(named).fillna(0).sort_index()
    few = _few(len(reference), len(fresh))
    if few or len(counts) < 2:
        return Difference(what, "Cramér's V", None, limit, None, few or f"one class only: {list(counts.index)}")
    chi2, p, _, _ = chi2_contingency(counts, correction=False)
    shares = counts / counts.sum()
    found = "; ".join(f"{name}: {a:.1%}, fresh {b:.1%}" for name, a, b in shares.itertuples())
    # two columns: the smaller side less one is 1
    return Difference(what, "Cramér's V", float(np.sqrt(chi2 / counts.to_numpy().sum())), limit, float(p), found)


def _counts(values: pd.Series, weights: NDArray[np.float64] | None) -> pd.Series:
    """Of each class the posts; with weights in all the effective number of posts (Korn and Graubard 1998)."""
    if weights is None:
        return values.value_counts().astype(float)
    return pd.Series(weights * weights.sum() / (weights**2).sum(), values.index).groupby(values).sum()


def _embedding(reference: pd.Series, fresh: pd.Series, limit: float) -> Difference:
    what, statistic = "tower's features", "ROC AUC of fresh against old"
    few = _few(len(reference), len(fresh))
    if few:
        return Difference(what, statistic, None, limit, None, few)
    x = np.concatenate([np.stack(reference.to_list()), np.stack(fresh.to_list())])
    y = np.repeat([0, 1], [len(reference), len(fresh)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced"))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(model, x, y, cv=folds, method="predict_proba")[:, 1]
    p = mannwhitneyu(scores[y == 1], scores[y == 0]).pvalue
    found = f"{len(reference):,} posts, {len(fresh):,} fresh, {x.shape[1]} features, {_FOLDS} folds"
    return Difference(what, statistic, float(roc_auc_score(y, scores)), limit, float(p), found)


def render(lines: list[Difference], heading: str, reason: str | None = None) -> str:
    """The page. `reason`: why nothing could be compared."""
    figure, p = (lambda v: "–" if v is None else f"{v:.3f}"), (lambda v: "–" if v is None else f"{v:.2g}")
    page = template("drift.html.j2", figure=figure, p=p)
    return page.render(lines=lines, heading=heading, reason=reason, significance=SIGNIFICANCE)
