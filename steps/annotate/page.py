"""The annotation's pages: what was asked, what it cost, what is missing and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steps.annotate.agreement import Drift, Interval, QuestionAgreement, Verdict
from steps.annotate.client import AnnotationResult
from steps.annotate.plan import Plan
from steps.annotate.tally import duration
from steps.pages import environment, number, share
from steps.settings import AnnotateSettings


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
    return _REPORT.render(
        result=result, plan=result.plan, questions=questions, below=below, settings=settings, heading=heading,
        source=settings.source, measured=answered > 0,
        requests_a_second=result.requests / result.seconds if result.seconds else None,
    )  # fmt: skip


def render_agreement(
    questions: Sequence[QuestionAgreement], drifts: Sequence[Drift], heading: str, against: str | None
) -> str:
    """The agreement of one label table, and what changed since another one, named `against`."""
    return _AGREEMENT_PAGE.render(questions=questions, drifts=drifts, heading=heading, against=against)


def render_trial(rows: Sequence[TrialRow], heading: str, source: str) -> str:
    """Wordings side by side, question by question; the best kappa of a question is marked."""
    ids = list(dict.fromkeys(question.question for row in rows for question in row.questions))
    by_id = {id_: [next((q for q in row.questions if q.question == id_), None) for row in rows] for id_ in ids}
    best = {
        id_: max((q.kappa for q in found if q is not None and q.kappa is not None), default=None)
        for id_, found in by_id.items()
    }
    return _TRIAL.render(rows=rows, by_id=by_id, best=best, heading=heading, source=source)


def dollars(value: float | None) -> str:
    """Dollars as people write them, small ones to the hundredth of a cent."""
    if value is None:
        return "no price"
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.4f}"


def interval(value: Interval, kind: str = "number") -> str:
    if value is None:
        return "–"
    low, high = number(value[0], kind).removesuffix("\N{NO-BREAK SPACE}%"), number(value[1], kind)
    return f"{low} to {high}"


_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ heading }} · annotation</title>
<style>
{{ style }}
td.left, th.left { text-align: left; }
.matrix { width: auto; margin: .4rem 0 1rem; }
</style>
</head>
<body>
<main>
"""

_MACROS = """\
{% macro agreement_table(questions) %}
<div class="scroll"><table>
<thead><tr><th>Question</th><th>Accuracy</th><th>Precision</th><th>Recall</th><th>F1</th><th>Kappa</th>
<th>Missing</th><th>Posts</th></tr></thead>
<tbody>
{% for q in questions %}
<tr><td>{{ q.ask }}<br><span class="note">{{ q.question }}</span></td>
<td>{{ q.accuracy | share }}<br><span class="note nowrap">{{ q.accuracy_interval | interval("percent") }}</span></td>
<td>{{ q.precision | share }}</td><td>{{ q.recall | share }}</td>
<td>{{ q.f1 | number }}<br><span class="note nowrap">{{ q.f1_interval | interval }}</span></td>
<td>{{ q.kappa | number }}<br><span class="note nowrap">{{ q.kappa_interval | interval }}</span></td>
<td>{{ q.missing_rate | share }}</td><td>{{ "{:,}".format(q.answered) }} of {{ "{:,}".format(q.gold) }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">Against people's labels, over the posts that both have labelled; a missing answer is counted under
Missing and judged nowhere else. Precision, recall and F1 are of the positive class. Kappa is Cohen's: 0 where chance
agrees as often, 1 where all agree. Below each figure its 95 % interval; a dash means that a figure is undefined.</p>
{% endmacro %}
{% macro matrices(questions) %}
{% for q in questions if q.answered %}
<h3>{{ q.ask }}</h3>
<div class="scroll"><table class="matrix">
<thead><tr><th>People \\ annotator</th>{% for name in q.classes %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in q.counts %}
<tr><td>{{ q.classes[loop.index0] }}</td>{% for cell in row %}<td>{{ "{:,}".format(cell) }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
{% endmacro %}
"""

_FOOT = """\
</main>
</body>
</html>
"""

_REPORT_PAGE = (
    _MACROS
    + _HEAD
    + """\
<h1>{{ heading }}</h1>
<p class="soft">Annotated by {{ source }}: {{ "{:,}".format(plan.posts) }} posts,
{{ "{:,}".format(result.total) }} {{ "answers" if settings.ask == "singly" else "albums" }} asked for.</p>

<div class="tiles">
<div class="tile"><span>answered</span>
<b>{{ (1 - result.missing / result.total if result.total else none) | share }}</b>
<span>{{ "{:,}".format(result.missing) }} missing</span></div>
<div class="tile"><span>asked in this run</span><b>{{ "{:,}".format(result.asked) }}</b>
<span>{{ "{:,}".format(result.reused) }} from the ledger</span></div>
<div class="tile"><span>spent</span><b>{{ result.cost | dollars }}</b>
<span>planned {{ plan.dollars | dollars }}</span></div>
<div class="tile"><span>time</span><b>{{ result.seconds | duration }}</b>
<span>{{ "%.1f" | format(requests_a_second or 0) }} requests a second</span></div>
</div>

{% if below %}
<section>
<h2>Below the floor</h2>
<ul>
{% for verdict in below %}<li class="bad">{{ verdict }}</li>
{% endfor %}
</ul>
<p class="note">{{ "These questions are left without labels." if settings.on_low_agreement == "drop" else
"Their labels are used all the same: annotate.on_low_agreement is warn." }}</p>
</section>
{% endif %}

<section>
<h2>Agreement with people</h2>
{% if measured %}
{{ agreement_table(questions) }}
{% else %}
<p class="soft">No post of these has both a label by people and an answer: how far the annotator can be trusted is not
known.</p>
{% endif %}
</section>

<section>
<h2>Without an answer</h2>
{% if result.missing %}
<div class="scroll"><table>
<thead><tr><th>Reason</th><th class="left">Question</th><th>Requests</th><th>Share</th></tr></thead>
<tbody>
{% for row in result.reasons.to_dict("records") %}
<tr><td>{{ row.reason }}</td><td class="left">{{ row.question or "all, in one request" }}</td>
<td>{{ "{:,}".format(row.requests) }}</td><td>{{ (row.requests / result.total) | share(2) }}</td></tr>
{% endfor %}
</tbody></table></div>
{% else %}
<p class="soft">None.</p>
{% endif %}
</section>

<section>
<h2>Planned and actual</h2>
<div class="scroll"><table>
<thead><tr><th></th><th>Planned</th><th>Actual</th></tr></thead>
<tbody>
<tr><td>Requests to ask</td><td>{{ "{:,}".format(plan.to_ask) }}</td><td>{{ "{:,}".format(result.asked) }}</td></tr>
<tr><td>HTTP requests, repeated ones included</td><td>–</td><td>{{ "{:,}".format(result.requests) }}</td></tr>
<tr><td>Prompt tokens</td><td>{{ "{:,.0f}".format(plan.prompt_tokens) }}</td>
<td>{{ "{:,}".format(result.prompt_tokens) }}</td></tr>
<tr><td>Completion tokens</td><td>{{ "{:,.0f}".format(plan.completion_tokens) }}</td>
<td>{{ "{:,}".format(result.completion_tokens) }}</td></tr>
<tr><td>Dollars</td><td>{{ plan.dollars | dollars }}</td><td>{{ result.cost | dollars }}</td></tr>
<tr><td>Dollars at most, each asked once</td><td>{{ plan.most_dollars | dollars }}</td>
<td>{{ "no cap" if settings.max_cost is none else "cap " ~ (settings.max_cost | dollars) }}</td></tr>
</tbody></table></div>
<p class="note">Planned before the first request: text at four bytes per token, images by the price table's rule.
{% if plan.answered %}{{ "{:,}".format(plan.answered) }} answers were in the ledger already.{% endif %}
{% if plan.given_up %}{{ "{:,}".format(plan.given_up) }} have used up their retries.{% endif %}
{% if plan.under_way %}{{ "{:,}".format(plan.under_way) }} were under way in a batch.{% endif %}</p>
</section>

{% if measured %}
<section>
<h2>Confusion</h2>
{{ matrices(questions) }}
</section>
{% endif %}

<section>
<h2>How it was asked</h2>
<dl class="facts">
<dt>Model, detail</dt><dd>{{ settings.model }}, {{ settings.detail }}</dd>
<dt>Questions, answers</dt><dd>{{ settings.ask }}, {{ settings.format }}</dd>
<dt>Mode</dt><dd>{{ settings.mode }}{% if settings.mode == "online" %},
{{ settings.concurrency }} under way at a time{% endif %}</dd>
<dt>Splits</dt><dd>{{ settings.splits | join(", ") }}</dd>
</dl>
</section>
"""
    + _FOOT
)

_AGREEMENT = (
    _MACROS
    + _HEAD
    + """\
<h1>{{ heading }}</h1>
<section>
<h2>Agreement with people</h2>
{{ agreement_table(questions) }}
</section>
{% if against %}
<section>
<h2>What changed since {{ against }}</h2>
<div class="scroll"><table>
<thead><tr><th>Question</th><th>Other class</th><th>Accuracy</th><th>Kappa</th><th>Missing</th><th>p</th>
<th>Posts</th></tr></thead>
<tbody>
{% for d in drifts %}
<tr><td>{{ d.question }}</td><td>{{ d.changed | share }}</td><td>{{ d.accuracy | signed }}</td>
<td>{{ d.kappa | signed }}</td><td>{{ d.missing_rate | signed }}</td><td>{{ d.p_value | number }}</td>
<td>{{ "{:,}".format(d.both) }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">After minus before, over the posts that both tables hold; p is McNemar's exact test of "as often right
as before".</p>
</section>
{% endif %}
<section>
<h2>Confusion</h2>
{{ matrices(questions) }}
</section>
"""
    + _FOOT
)

_TRIAL_PAGE = (
    _HEAD
    + """\
<h1>{{ heading }}</h1>
<p class="soft">Wordings on the posts that people labelled, asked of {{ source }}.</p>
<section>
<h2>Cost</h2>
<div class="scroll"><table>
<thead><tr><th>Wording</th><th>Requests</th><th>From the ledger</th><th>Missing</th><th>Prompt tokens</th>
<th>Spent</th><th>All posts</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><td>{{ row.name }}</td><td>{{ "{:,}".format(row.result.asked) }}</td><td>{{ "{:,}".format(row.result.reused) }}</td>
<td>{{ (row.result.missing / row.result.total if row.result.total else none) | share }}</td>
<td>{{ "{:,}".format(row.result.prompt_tokens) }}</td><td>{{ row.result.cost | dollars }}</td>
<td>{{ row.plan.dollars | dollars }}</td></tr>
{% endfor %}
</tbody></table></div>
<p class="note">"All posts" is what the whole manifest is planned to cost with this wording, beside what is in the
ledger already.</p>
</section>
<section>
<h2>Agreement with people</h2>
{% for id, found in by_id.items() %}
<h3>{{ id }}</h3>
<div class="scroll"><table>
<thead><tr><th>Wording</th><th>Accuracy</th><th>Kappa</th><th>F1</th><th>Missing</th><th>Posts</th></tr></thead>
<tbody>
{% for q in found %}
{% if q %}
<tr><td>{{ rows[loop.index0].name }}</td>
<td>{{ q.accuracy | share }}<br><span class="note nowrap">{{ q.accuracy_interval | interval("percent") }}</span></td>
<td>{% if q.kappa is not none and q.kappa == best[id] %}<b>{{ q.kappa | number }}</b>{% else %}{{ q.kappa | number }}
{% endif %}<br><span class="note nowrap">{{ q.kappa_interval | interval }}</span></td>
<td>{{ q.f1 | number }}</td><td>{{ q.missing_rate | share }}</td>
<td>{{ "{:,}".format(q.answered) }} of {{ "{:,}".format(q.gold) }}</td></tr>
{% endif %}
{% endfor %}
</tbody></table></div>
{% endfor %}
<p class="note">The highest kappa of a question is bold; where intervals overlap the difference may be chance.</p>
</section>
"""
    + _FOOT
)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


_environment = environment(
    {
        "share": share,
        "number": number,
        "interval": interval,
        "dollars": dollars,
        "duration": duration,
        "signed": _signed,
    }
)
_REPORT, _AGREEMENT_PAGE, _TRIAL = map(_environment.from_string, (_REPORT_PAGE, _AGREEMENT, _TRIAL_PAGE))
