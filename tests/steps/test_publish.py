from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from jinja2 import UndefinedError

from steps.pages import template
from steps.publish import lay, page_path, publish


def test_a_page_is_on_the_disk_in_the_run_and_in_zenml(agentps_home: Path, tracking: Path) -> None:
    page = "<p>é</p>"
    assert publish(page, "drift") == page
    assert page_path("drift") == agentps_home / "reports" / "drift.html"
    assert page_path("drift").read_text(encoding="utf-8") == page
    assert mlflow.artifacts.load_text(mlflow.get_artifact_uri("drift/drift.html")) == page


def test_a_page_may_have_another_name_in_the_run(agentps_home: Path, tracking: Path) -> None:
    publish("<p>", "evaluation", "report.html")
    assert mlflow.artifacts.load_text(mlflow.get_artifact_uri("evaluation/report.html")) == "<p>"


def test_a_page_takes_the_place_of_that_of_the_run_before(agentps_home: Path) -> None:
    lay("old", "drift")
    assert lay("new", "drift").read_text(encoding="utf-8") == "new"
    assert [path.name for path in page_path("drift").parent.iterdir()] == ["drift.html"]


def test_a_template_escapes_what_it_is_given_has_the_style_and_refuses_a_gap() -> None:
    drift = template("drift.html.j2", figure=str, p=str)
    page = drift.render(heading="<b>", reason=None, lines=[], significance=0.01)
    assert "&lt;b&gt;" in page
    assert "--ink: #1f2933" in page
    with pytest.raises(UndefinedError, match="heading"):
        drift.render(reason=None, lines=[], significance=0.01)
