"""The module behind the literal `zenml pipeline run agentps_training`, which takes what `sys.modules` holds."""

import sys

from pipelines.training import agentps_training

sys.modules[__name__] = agentps_training  # type: ignore[assignment]
