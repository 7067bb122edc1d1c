"""The validation's result as one HTML page: no script, no link, readable without a network."""

from __future__ import annotations

import jinja2

from steps.validate.expectations import ValidationOutcome, words

#: Characters of a title shown beside a row; a broken text may be very long.
_TITLE_CHARACTERS = 80

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ verdict }}: {{ heading }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #1d2329; background: #fff; margin: 2rem auto; max-width: 72rem;
         padding: 0 1rem; }
  h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
  .verdict { border-left: .5rem solid; padding: .75rem 1rem; background: #f5f6f8; }
  .passed { border-color: #2c7a4b; } .failed { border-color: #b3261e; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; width: 100%; }
  th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #dde1e6; }
  td { overflow-wrap: break-word; } th { font-weight: 600; color: #4b5560; white-space: nowrap; }
  td.n, th.n { text-align: right; white-space: nowrap; }
  .mark { white-space: nowrap; font-weight: 600; }
  .critical { color: #b3261e; } .warning { color: #8a5a00; } .kept { color: #2c7a4b; }
  ul { margin: .25rem 0 0; padding-left: 1.25rem; } li { color: #4b5560; }
  code { font: .9em ui-monospace, monospace; }
</style>
</head>
<body>
<section class="verdict {{ 'passed' if outcome.passed else 'failed' }}">
  <h1>{{ verdict }}</h1>
  <div>{{ heading }}: {{ "{:,}".format(outcome.n_posts) }} posts, {{ outcome.results.rules | length }} rules,
    {{ outcome.critical | length }} critical and {{ outcome.warnings | length }} other findings.
    {% if not outcome.passed %}A broken critical rule stops the run.{% endif %}</div>
</section>

<h2>Splits</h2>
<div class="scroll"><table>
  <tr><th>split</th>{% for name in ("posts", "images", "labelled", "positives", "share", "annotated") -%}
    <th class="n">{{ name }}</th>{% endfor %}<th>oldest post</th><th>newest post</th></tr>
  {% for split in outcome.results.splits -%}
  <tr><td>{{ split.split }}</td>
    <td class="n">{{ "{:,}".format(split.posts) }}</td><td class="n">{{ "{:,}".format(split.images) }}</td>
    <td class="n">{{ "{:,}".format(split.labelled) }}</td><td class="n">{{ "{:,}".format(split.positives) }}</td>
    <td class="n">{{ "{:.1%}".format(split.positives / split.labelled) if split.labelled else "none labelled" }}</td>
    <td class="n">{{ "{:,}".format(split.annotated) }}</td>
    <td>{{ split.oldest or "no time" }}</td><td>{{ split.newest or "no time" }}</td></tr>
  {% endfor %}
</table></div>

{% for title, rules in (("Broken rules", broken), ("Rules that hold", kept)) if rules -%}
<h2>{{ title }}</h2>
<div class="scroll"><table>
  <tr><th></th><th>table</th><th>rule</th><th>expected</th><th>found</th></tr>
  {% for rule in rules -%}
  <tr>
    <td class="mark {{ 'kept' if rule.passed else rule.severity }}">{{ "holds" if rule.passed else rule.severity }}</td>
    <td>{{ rule.table }}</td><td>{{ rule.rule }}</td><td>{{ rule.expected }}</td>
    <td>{{ rule.observed | words }}
      {% if rule.rows and not rule.passed %}<ul>{% for row in rule.rows %}
        <li>row {{ row.row }}, post <code>{{ row.post_id | words }}</code>: {{ row.found }}
          {% if row.title %}(“{{ row.title | truncate(title_characters) }}”){% endif %}</li>{% endfor %}
      </ul>{% endif %}</td>
  </tr>
  {% endfor %}
</table></div>
{% endfor -%}
</body>
</html>
"""


def render(outcome: ValidationOutcome, heading: str) -> str:
    """The page. `heading` names what was checked, for example task and manifest."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["words"] = words
    rules = outcome.results["rules"]
    broken = [rule for rule in rules if not rule["passed"]]
    return environment.from_string(_TEMPLATE).render(
        outcome=outcome,
        heading=heading,
        verdict="The data pass" if outcome.passed else "The data do not pass",
        broken=sorted(broken, key=lambda rule: rule["severity"] != "critical"),
        kept=[rule for rule in rules if rule["passed"]],
        title_characters=_TITLE_CHARACTERS,
    )
