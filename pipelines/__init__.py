"""The pipelines; each reads as the path of a post (docs/architecture.md).

`zenml pipeline run pipelines.NAME` takes them from here; each is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

_PIPELINES = {
    "agentps_training": "pipelines.training",
    "agentps_retraining": "pipelines.retraining",
    "agentps_study": "pipelines.study",
    "agentps_scheduled": "pipelines.scheduled",
}


def __getattr__(name: str) -> Any:
    if name not in _PIPELINES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PIPELINES[name]), name)
