"""The annotation's pages: what was asked, what it cost, what is missing and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steps.annotate.agreement import Drift, Interval, QuestionAgreement, Verdict
from steps.annotate.client import AnnotationResult
from steps.annotate.plan import Plan
from steps.annotate.settings import AnnotateSettings
from steps.annotate.tally import duration
from steps.pages import interval, template


@dataclass(frozen=True)
class TrialRow:
    """One wording of a trial: a task file, what it cost on the gold posts, and how it agrees with people."""

    name: str
    #: Of the whole manifest after the trial, as far as the ledger does not have it yet.
    plan: Plan
    result: AnnotationResult
    questions: Sequence[QuestionAgreement]


def render_report(
    result: AnnotationResult,
    questions: Sequence[QuestionAgreement],
    below: Sequence[Verdict],
    settings: AnnotateSettings,
    heading: str,
) -> str:
    """The report of one annotation.

    Args:
        questions: the agreement with people's labels.
        below: what the gate found.
        heading: names the task.
    """
    answered = sum(question.answered for question in questions)
    return _page(
        "annotation.html.j2", result=result, plan=result.plan, questions=questions, below=below, settings=settings,
        heading=heading, source=settings.source, measured=answered > 0,
        requests_a_second=result.requests / result.seconds if result.seconds else None,
    )  # fmt: skip


def render_agreement(
    questions: Sequence[QuestionAgreement], drifts: Sequence[Drift], heading: str, against: str | None
) -> str:
    """The agreement of one label table, and what changed since another one, named `against`."""
    return _page("agreement.html.j2", questions=questions, drifts=drifts, heading=heading, against=against)


def render_trial(rows: Sequence[TrialRow], heading: str, source: str) -> str:
    """Wordings side by side, question by question; the best kappa of a question is marked."""
    ids = list(dict.fromkeys(question.question for row in rows for question in row.questions))
    by_id = {id_: [next((q for q in row.questions if q.question == id_), None) for row in rows] for id_ in ids}
    best = {
        id_: max((q.kappa for q in found if q is not None and q.kappa is not None), default=None)
        for id_, found in by_id.items()
    }
    return _page("trial.html.j2", rows=rows, by_id=by_id, best=best, heading=heading, source=source)


def dollars(value: float | None) -> str:
    """Dollars as people write them, small ones to the hundredth of a cent."""
    if value is None:
        return "no price"
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def _interval(value: Interval, kind: str = "number") -> str:
    low, high = value or (None, None)
    return interval(low, high, kind)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _page(name: str, **values: object) -> str:
    return template(name, interval=_interval, dollars=dollars, duration=duration, signed=_signed).render(**values)
