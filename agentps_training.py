"""The module behind the literal `zenml pipeline run agentps_training`, which takes what `sys.modules` holds."""

import sys

import pipelines

sys.modules[__name__] = pipelines.agentps_training  # type: ignore[assignment]
