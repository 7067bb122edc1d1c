"""The MLflow flavour of a checkpoint: executed by MLflow from its own copy of this file.

It imports `model` only, which travels beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from model.integrity import verify
from model.scorer import Scorer


class AgentPSModel(PythonModel):
    """DataFrame of posts in, one row of scores, decisions and answers a post out (see `Scorer.score`)."""

    def load_context(self, context: Any) -> None:
        checkpoint = Path(context.artifacts["checkpoint"])
        verify(checkpoint)
        device = torch.device("cuda") if torch.cuda.is_available() else None
        self._scorer = Scorer.from_directory(checkpoint, device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        return self._scorer.score(model_input)


set_model(AgentPSModel())
