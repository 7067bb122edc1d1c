"""Step 8: the gate decides; `champion` moves when the new version passes."""

from __future__ import annotations

from typing import Annotated

import mlflow
from zenml import log_metadata, step
from zenml.logger import get_logger
from zenml.types import HTMLString

from steps.evaluate.report import EvalReport
from steps.promote.gate import Decision, decide
from steps.register import registry
from steps.register.registry import CHALLENGER, CHAMPION, RegisteredVersion
from steps.settings import PromoteSettings, home

logger = get_logger(__name__)


@step(experiment_tracker=True, enable_cache=False)  # the answer depends on the registry, not only on the inputs
def promote(
    version: RegisteredVersion, report: EvalReport, report_page: HTMLString, settings: PromoteSettings
) -> Annotated[str, "decision"]:
    """The decision with its reason, which is also among the version's tags.

    This step is never cached, so it is the one that lays the run's own report page where the summary says.
    """
    page = home() / "reports" / "evaluation.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report_page, encoding="utf-8")
    current = registry.champion(version.name)
    if current is not None and current[0].version == version.version:
        decision = Decision("already champion", "this version is the champion")
    else:
        decision = decide(report, current[1] if current else None, settings)
        # The tags first: an alias without a verdict would never be explained, a verdict is written again.
        registry.set_verdict(version, {"agentps.verdict": decision.verdict, "agentps.reason": decision.reason})
        if decision.promote:
            registry.promote(version, current[0] if current else None)
    said = f"{decision.verdict}: {decision.reason}"
    log_metadata({"decision": said})
    alias = CHALLENGER if decision.verdict == "kept" else CHAMPION
    logger.info(
        "\n%s\n\n%s version %s is @%s (%s)\nReport: %s\nNext: mlflow ui --backend-store-uri %s",
        report.table(),
        version.name,
        version.version,
        alias,
        said,
        page,
        mlflow.get_tracking_uri(),
    )
    return said
