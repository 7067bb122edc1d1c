"""The pipelines; each reads as the path of a post (docs/architecture.md).

`zenml pipeline run pipelines.NAME` takes them from here; each is imported when it is asked for.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from steps.lifetime import ends_by_signal

_PIPELINES = {
    "agentps_training": "pipelines.training",
    "agentps_retraining": "pipelines.retraining",
    "agentps_study": "pipelines.study",
    "agentps_scheduled": "pipelines.scheduled",
    "agentps_scoring": "pipelines.scoring",
}


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports of a pipeline: a third faster.

    A million objects come and stay, so the garbage collector, which looks at all of them each time that their number
    has grown by a quarter, is off meanwhile, and leaves them alone afterwards.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def __getattr__(name: str) -> Any:
    if name not in _PIPELINES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with ends_by_signal(), importing():
        return getattr(importlib.import_module(_PIPELINES[name]), name)
