"""The gate's power: how often it promotes a version whose true gain over the champion is known.

    .venv/bin/python -m benchmarks.gate_power

Writes `benchmarks/gate_power.json` as it goes (a row that is there is not drawn again), and from it
`docs/gate.md` and `docs/images/gate_power.png`. Scores are drawn: a post's evidence is normal with
variance 1, its mean `d` higher for a positive, half of its variance common to both models (they find
the same posts hard); the score is the probability that follows, so both models are calibrated. `d` is
set so that the metric over all posts, computed on 400,000 of them, differs by exactly the true gain.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from benchmarks.record import write
from model import metrics
from model.files import write_whole
from steps.evaluate.report import EvalReport, Metric
from steps.paths import REPOSITORY
from steps.promote.gate import Judged, Posts, decide, gain_of
from steps.settings import load_settings

RECORD = REPOSITORY / "benchmarks" / "gate_power.json"
PAGE = REPOSITORY / "docs" / "gate.md"
PLOT = REPOSITORY / "docs" / "images" / "gate_power.png"
METRICS = ("average_precision", "roc_auc", "f1", "brier_skill", "recall_at_p60", "recall_at_p80")
#: The share of positives of the embedded sample, and about what its champion reaches.
POSITIVE, CHAMPION_AP = 0.21, 0.80
SHARED = 0.5
SIZES = (500, 1000, 2000, 4000)
GAINS = (0.0, 0.01, 0.02, 0.03, 0.05)
#: The curves: the comparison alone, `CURVE_BOOTSTRAP` resamples. The gate: the whole default policy with slices.
CURVE_DRAWS, CURVE_BOOTSTRAP = 100, 100
GATE_DRAWS, GATE_SIZE, GATE_GAINS = 200, 4000, (-0.05, 0.0, 0.05)
POPULATION = 400_000


def scores_of(evidence_N: NDArray[np.float64], d: float) -> NDArray[np.float64]:
    """The probability of the positive class given evidence of mean `d` for positives, 0 for negatives."""
    return 1 / (1 + np.exp(-(d * evidence_N - d**2 / 2 + np.log(POSITIVE / (1 - POSITIVE)))))


@cache
def population() -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return rng.random(POPULATION) < POSITIVE, rng.normal(size=POPULATION)


def judged(scores_N: NDArray[np.float64], f1_threshold: float = 0.5, **values: float) -> Judged:
    # what the gate reads of a report, and no more
    report = EvalReport.model_construct(
        metrics={name: Metric(value=value) for name, value in values.items()}, f1_threshold=f1_threshold
    )
    return Judged(scores_N=scores_N, report=report)


@cache
def over_all_posts(d: float) -> Judged:
    labels, noise = population()
    scores = scores_of(noise + d * labels, d)
    return judged(scores, metrics.best_f1_threshold(scores, labels))


@cache
def champion_strength() -> float:
    labels, _ = population()
    return brentq(
        lambda d: metrics.average_precision(over_all_posts(d).scores_N, labels) - CHAMPION_AP, 0.5, 6.0, xtol=1e-4
    )


def strength(metric: str, gain: float) -> float:
    """Of a model whose metric over all posts is the champion's plus `gain`."""
    if gain == 0:
        return champion_strength()
    labels, _ = population()
    held = over_all_posts(champion_strength())
    return brentq(lambda d: gain_of(metric, over_all_posts(d), held, labels, n=0)[0] - gain, 0.5, 6.0, xtol=1e-4)


def draw(d: float, threshold: float, size: int, seed: int, metric: str) -> tuple[Judged, Judged, Posts]:
    """(candidate, champion, posts): with slices as on the sample: 12 % of one image, 10 % without text, four months."""
    rng = np.random.default_rng([seed, size])
    labels = rng.random(size) < POSITIVE
    common = rng.normal(size=size)
    held = over_all_posts(champion_strength())
    models = []
    for strong, at in ((d, threshold), (champion_strength(), held.report.f1_threshold)):
        noise = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * rng.normal(size=size)
        models.append(judged(scores_of(noise + strong * labels, strong), at, **{metric: 1.0}))
    month = rng.integers(4, size=size)
    slices = {f"month {m}": month == m for m in range(4)}
    slices |= {"one image": rng.random(size) < 0.12, "without text": rng.random(size) < 0.10}
    return models[0], models[1], Posts(labels_N=labels, slices=slices)


def verdicts(metric: str, gain: float, size: int, draws: int, *, whole_gate: bool) -> dict[str, float]:
    """Share of each verdict. The floors are not what is measured: every drawn report reaches them."""
    d = strength(metric, gain)
    threshold = over_all_posts(d).report.f1_threshold
    policy = load_settings({"promote": {"metric": metric}}).promote
    if not whole_gate:
        policy = policy.model_copy(update={"bootstrap": CURVE_BOOTSTRAP})
    found: dict[str, float] = {"promoted": 0, "kept": 0, "needs a person": 0}
    for seed in range(draws):
        candidate, champion, posts = draw(d, threshold, size, seed, metric)
        if not whole_gate:
            posts = Posts(labels_N=posts.labels_N, slices={})
        found[decide(candidate, champion, posts, policy).verdict] += 1 / draws
    return {verdict: round(share, 4) for verdict, share in found.items()}


def plot(records: list[dict[str, Any]]) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.2), sharex=True, sharey=True, layout="constrained")
    for axis, metric in zip(axes.flat, METRICS, strict=True):
        for size in SIZES:
            rows = [r for r in records if (r["metric"], r["size"]) == (metric, size)]
            axis.plot([100 * r["gain"] for r in rows], [r["promoted"] for r in rows], marker=".", label=f"{size:,}")
        axis.axhline(0.95, color="grey", linewidth=0.5)
        axis.axhline(0.05, color="grey", linewidth=0.5)
        axis.set_title(metric, fontsize=10)
        axis.grid(alpha=0.2)
    figure.supxlabel("true gain over the champion, points")
    figure.supylabel("share of draws promoted")
    axes.flat[0].legend(title="test posts", fontsize=8)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})
    plt.close(figure)


_PAGE = """# The gate's power

How often does the gate of [promote](steps/promote.md) promote a version that is better, equal or worse than the
champion? `benchmarks/gate_power.py` measures it on drawn scores, whose true difference is known. It writes
`benchmarks/gate_power.json` and this page.

**How the scores are drawn.** {positive:.0%} of the posts are positive. Each model gets evidence from a post: a normal
variable with variance 1, whose mean is higher for a positive. Half of the variance is common to both models, so both
find the same posts hard. The score is the probability that follows from the evidence, so both models are calibrated.
The champion reaches an average precision of {champion:.2f}. The candidate's strength is set so that the metric over
{population:,} posts differs by exactly the true gain.

## The default

The whole gate as configured in `configs/default.yaml` ({metric}, {bootstrap:,} resamples), with six slices: four
months, 12 % of the posts with one image, 10 % without text. {size:,} test posts, {draws} draws per line.

| true gain | promoted | needs a person | kept |
|---|---|---|---|
{gate}

{curve}"""

_CURVE = """## Each metric on offer

The comparison alone, without slices, on {bootstrap} resamples. Each figure is the share of {draws} draws that are
promoted, with a standard error of {error:.0f} points near one half.

![Share promoted against true gain](images/gate_power.png)

| metric | test posts | {heads} |
|---|---|{dashes}|
{rows}

A metric of little power is still a good floor (`promote.floors`).
"""


def page(record: dict[str, list[dict[str, Any]]]) -> str:
    default = load_settings({}).promote
    gate = "\n".join(
        f"| {100 * r['gain']:+.0f} points | {r['promoted']:.1%} | {r['needs a person']:.1%} | {r['kept']:.1%} |"
        for r in record["gate"]
    )
    curve = ""
    if record["curve"]:
        shares = {(r["metric"], r["size"], r["gain"]): f"{r['promoted']:.0%}" for r in record["curve"]}
        rows = "\n".join(
            f"| `{metric}` | {size:,} | " + " | ".join(shares.get((metric, size, gain), "-") for gain in GAINS) + " |"
            for metric, size in product(METRICS, SIZES)
        )
        curve = _CURVE.format(
            bootstrap=CURVE_BOOTSTRAP,
            draws=CURVE_DRAWS,
            error=100 * np.sqrt(0.25 / CURVE_DRAWS),
            heads=" | ".join(f"{100 * gain:+.0f}" for gain in GAINS),
            dashes="---|" * (len(GAINS) - 1) + "---",
            rows=rows,
        )
    text = _PAGE.format(
        positive=POSITIVE, champion=CHAMPION_AP, population=POPULATION, metric=f"`{default.metric}`",
        bootstrap=default.bootstrap, size=GATE_SIZE, draws=GATE_DRAWS, gate=gate, curve=curve,
    )  # fmt: skip
    return text.rstrip() + "\n"


def main() -> None:
    record: dict[str, list[dict[str, Any]]] = {"gate": [], "curve": []}
    if RECORD.exists():
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    default = load_settings({}).promote.metric
    wanted = [("gate", default, gain, GATE_SIZE, GATE_DRAWS) for gain in GATE_GAINS]
    # 4,000 posts first: what the default is judged by
    wanted += [("curve", m, gain, size, CURVE_DRAWS) for size, m, gain in product(SIZES[::-1], METRICS, GAINS)]
    for kind, metric, gain, size, draws in wanted:
        row = {"metric": metric, "gain": gain, "size": size, "draws": draws}
        if any(row.items() <= known.items() for known in record[kind]):
            continue
        record[kind].append(row | verdicts(metric, gain, size, draws, whole_gate=kind == "gate"))
        write(RECORD, record)
    if record["curve"]:
        plot(record["curve"])
    write_whole(PAGE, page(record))


if __name__ == "__main__":
    main()
