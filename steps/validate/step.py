"""Step 3: Great Expectations on posts and labels; a critical failure stops the run."""

from __future__ import annotations

from typing import Annotated

import pandas as pd
from zenml import step
from zenml.logger import get_logger
from zenml.types import HTMLString

from model.errors import DataError
from model.task import Task
from steps.caching import depends_on
from steps.publish import page_path, publish
from steps.settings import IngestSettings, ValidateSettings

logger = get_logger(__name__)


@step(experiment_tracker=True, cache_policy=depends_on(__name__))
def validate(
    posts: pd.DataFrame, labels: pd.DataFrame, task: Task, settings: ValidateSettings, ingest: IngestSettings
) -> Annotated[HTMLString, "validation"]:
    """The validation page.

    Raises:
        DataError: a critical rule is broken. The page is kept all the same, in MLflow and on disk.
    """
    from steps.validate.expectations import validate_posts
    from steps.validate.page import render

    outcome = validate_posts(posts, labels, task, settings, max_images=ingest.max_images)
    page = publish(render(outcome, heading=f"Task {task.name}"), "validation")
    for finding in outcome.warnings:
        logger.warning("%s: %s", finding.rule, finding.message)
    if not outcome.passed:
        found = "\n".join(f"- {finding.rule}: {finding.message}" for finding in outcome.critical)
        path = page_path("validation")
        raise DataError(f"The posts break {len(outcome.critical)} critical rule(s); the page is {path}\n{found}")
    return page
