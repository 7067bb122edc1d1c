"""Where a step's page goes: to the disk, to the run in MLflow, and to ZenML's dashboard."""

from __future__ import annotations

from pathlib import Path

import mlflow
from zenml.types import HTMLString

from model.files import write_whole
from steps.paths import home


def publish(page: str, name: str, file: str | None = None) -> HTMLString:
    """Lay the page on the disk and into the active MLflow run; it comes back as ZenML shows it.

    Args:
        file: its name in the MLflow run's folder `name`; None: NAME.html.
    """
    lay(page, name)
    mlflow.log_text(page, f"{name}/{file or name + '.html'}")
    return HTMLString(page)


def lay(page: str, name: str) -> Path:
    """Write the page to `page_path`, over that of an earlier run."""
    write_whole(page_path(name), page)
    return page_path(name)


def page_path(name: str) -> Path:
    return home() / "reports" / f"{name}.html"
