"""The validation's result as one HTML page."""

from __future__ import annotations

from steps.pages import shortened, template
from steps.validate.results import ValidationOutcome, words


def render(outcome: ValidationOutcome, heading: str) -> str:
    """The page. `heading` names what was checked, for example task and manifest."""
    rules = outcome.results["rules"]
    broken = [rule for rule in rules if not rule["passed"]]
    return template("validation.html.j2", words=words, shortened=shortened).render(
        outcome=outcome,
        heading=heading,
        verdict="The data pass" if outcome.passed else "The data do not pass",
        broken=sorted(broken, key=lambda rule: rule["severity"] != "critical"),
        kept=[rule for rule in rules if rule["passed"]],
    )
