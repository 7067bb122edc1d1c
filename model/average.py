"""The moving average of the weights while they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .agentps import AgentPS
from .checkpoint import load_trainable_state, trainable_state


class Average(TrainerCallback):
    """The exponential moving average of what is trained.

    A network that starts from nothing, with few posts in a step, jumps from epoch to epoch; its average does not. In
    the first steps it forgets faster, or it would hold the untrained weights for long: by (1 + n) / (10 + n) after n
    steps, as TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, model: AgentPS, decay: float) -> None:
        self._model, self._decay = model, decay
        #: By name. Empty until the training begins; a training that goes on sets a checkpoint's.
        self.weights: dict[str, Tensor] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.weights = self.weights or self._trained()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        decay = min(self._decay, (1 + state.global_step) / (10 + state.global_step))
        trained = trainable_state(self._model)
        get_ema_multi_avg_fn(decay)([*self.weights.values()], [trained[name] for name in self.weights], None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the average is what the model has for weights."""
        trained = self._trained()
        load_trainable_state(self._model, self.weights, Path("the average"))
        try:
            yield
        finally:
            load_trainable_state(self._model, trained, Path("what was trained"))

    def _trained(self) -> dict[str, Tensor]:
        return {name: weight.clone() for name, weight in trainable_state(self._model).items()}
