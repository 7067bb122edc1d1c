"""Fine-tuning on `transformers.Trainer`: exact accumulation, resume, best epoch by val average precision."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from .agentps import AgentPS
from .average import Average
from .checkpoint import load_trainable_state, trainable_state
from .data import Batches, PostDataset
from .device import best_device
from .errors import DataError
from .eyes import teach
from .files import replacing
from .loss import label_weight
from .processes import FilledBatches, FilledDataset, Node, StepSampler, micro_batches
from .schema import TRAIN, VAL
from .scorer import predict_rows
from .settings import TrainSettings
from .tower_cache import tower_cache

_WEIGHTS = "model.safetensors"  # the name by which Trainer knows a checkpoint that has weights
_STATE = "trainer_state.json"  # Trainer writes it last: a checkpoint that has it is whole
_AVERAGE = "average.safetensors"  # beside them, with `ema_decay`
_BEST = "best"  # key of the best weights' own metadata


@dataclass(frozen=True)
class FitResult:
    best_val_average_precision: float
    best_epoch: float
    #: What Trainer logged: losses, learning rates, val metrics, with `step` and `epoch`.
    history: list[dict[str, float]]
    resumed_from_step: int


class AlbumSampler(torch.utils.data.Sampler[int]):
    """Posts in random order, those of one optimizer step by the size of their album: its micro-batches then have little
    padding, and the step is the same.
    """

    def __init__(self, n_frames_N: np.ndarray, batch: int, seed: int) -> None:
        self._n_frames_N, self._batch, self._seed, self._epoch = n_frames_N, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own, the same in every process and after a restart."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._n_frames_N)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self))
        for start in range(0, len(order), self._batch):
            step = order[start : start + self._batch]
            yield from step[np.argsort(self._n_frames_N[step], kind="stable")].tolist()


class _Trainer(Trainer):
    """Trainer around `AgentPS`: its loss, its weights, its evaluation."""

    # compute_loss divides by the label weight of the whole optimizer step.
    loss_is_scaled_for_ga = True

    def __init__(self, *, batches: Batches, settings: TrainSettings, best: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._average = None if settings.ema_decay is None else Average(self._module, settings.ema_decay)
        if self._average is not None:
            self.add_callback(self._average)
        self._batches = batches
        self._settings = settings
        self._best = best

    @property
    def _module(self) -> AgentPS:
        return self.accelerator.unwrap_model(self.model)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The label weight of all micro-batches and processes of this optimizer step."""
        module = self._module
        weight = sum(
            label_weight(
                batch["question_labels_BQ"] if module.heads else None,
                module.question_weights,
                batch["final_labels_B"],
                module.final_weight,
            )
            for batch in batch_samples
        )
        weight = torch.as_tensor(weight, dtype=torch.float32, device=device)
        if self.args.world_size > 1:
            weight = self.accelerator.gather(weight.unsqueeze(0)).sum()
        return weight.clamp(min=torch.finfo(torch.float32).tiny)  # nothing labelled: a loss of 0, not 0 / 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        answers = model(**inputs)
        # Gradients are averaged over the processes; the sum over them is what is meant.
        loss = answers.loss_sum * self.args.world_size / num_items_in_batch
        return (loss, answers) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: torch.utils.data.Dataset[int] | None = None) -> Any:
        dataset = cast(PostDataset, train_dataset or self.train_dataset)
        n_frames, batch, several = self._batches.n_frames(dataset.rows), self._settings.batch, self.args.world_size > 1
        order: Any
        if not (n_frames == n_frames[:1]).all():
            order = AlbumSampler(n_frames, batch, self._settings.seed)
        elif not several:
            return super()._get_train_sampler(train_dataset)
        else:  # what accelerate makes of Trainer's own sampler
            order = SeedableRandomSampler(dataset, data_seed=self.args.data_seed)
        if not several:
            return order
        places = self.args.gradient_accumulation_steps * self._settings.micro_batch * self.args.world_size
        return StepSampler(order, len(dataset), batch, places)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Average precision on val; the best weights so far are kept beside the checkpoints."""
        with nullcontext() if self._average is None else self._average.in_place():
            metrics = self._measure()
        self.control.should_evaluate = False  # or Trainer would do so again at the end of the epoch
        return metrics

    def _measure(self) -> dict[str, float]:
        rows = self._batches.rows(VAL, labelled=True)
        scores = predict_rows(self._module, self._batches, rows, self._settings.micro_batch).final_N
        labels = self._batches.final_labels(rows)
        if np.isnan(scores).any():
            raise DataError(
                f"the training diverged: after epoch {self.state.epoch:g} the scores of val are NaN; lower "
                "fine_tune.learning_rate or max_grad_norm, and start again"
            )
        weights = self._batches.weights(rows)
        metrics = {"eval_average_precision": float(average_precision_score(labels, scores, sample_weight=weights))}
        if self.args.should_save:
            self._keep_if_best(metrics["eval_average_precision"])
        self.log(metrics)
        return metrics

    def _keep_if_best(self, value: float) -> None:
        if self._best.exists() and _read_best(self._best)["value"] >= value:
            return
        said = {_BEST: json.dumps({"value": value, "epoch": self.state.epoch})}
        with replacing(self._best) as part:  # weights and their metric in one file: a kill leaves both old or both new
            save_file(trainable_state(self._module), part, said)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Only what is trained: a 7B backbone is not written again with every checkpoint."""
        if output_dir is None:
            raise ValueError("a checkpoint needs a directory of its own")
        directory = Path(output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        save_file(trainable_state(self._module), directory / _WEIGHTS)
        if self._average is not None:
            save_file(self._average.weights, directory / _AVERAGE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint)
        load_trainable_state(self._module, load_file(path / _WEIGHTS), path)
        if self._average is not None:
            self._average.weights = load_file(path / _AVERAGE, device=str(self.args.device))


def _read_best(path: Path) -> dict[str, float]:
    """`value`, the val average precision of these weights, and `epoch`."""
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()[_BEST]))


def last_whole_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was completely written; None where there is none."""

    def whole(path: Path) -> bool:
        try:
            json.loads((path / _STATE).read_text())
        except (OSError, json.JSONDecodeError):
            return False
        return True

    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    return next((path for path in reversed(found) if whole(path)), None)


@contextmanager
def _tower_cache(model: AgentPS, batches: Batches, settings: TrainSettings, work_dir: Path) -> Iterator[None]:
    """Meanwhile `batches` reads the tower's states from disk, where that pays; a machine's processes share a file."""
    with Node() as node:
        train, in_training = batches.images(batches.rows(TRAIN, labelled=False))
        val, in_evaluation = batches.images(batches.rows(VAL, labelled=True))
        numbers = np.union1d(train, val)
        # `work_dir` may be a folder that machines share, and is then further than a disk of one's own
        folder, name = work_dir, "tower_states"
        if not node.alone:
            folder, name = Path(tempfile.gettempdir()), f"tower_states-{work_dir.parent.name}"
        if node.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"{name}*.bin"):  # by a killed process; one that still reads it keeps it
                left.unlink(missing_ok=True)
        # never a file that another process has mapped: truncated under a reader, it reads as zeros
        path = folder / f"{name}-{os.getpid()}.bin"
        # a post trains in one process, and is evaluated in each
        reads = settings.epochs * (in_training * node.size / node.processes + in_evaluation * node.size) / len(numbers)
        batches.tower_cache = tower_cache(model, batches.shards, numbers, path, reads, node)
    try:
        yield
    finally:
        batches.tower_cache = None
        path.unlink(missing_ok=True)


def fit(
    model: AgentPS,
    batches: Batches,
    settings: TrainSettings,
    work_dir: Path,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    begun: bool = False,
    quiet: bool = False,
) -> FitResult:
    """Train `model` in place and leave it, in the first process, with the weights of its best epoch on val.

    Of several processes, the first one: the others end with the weights of the last step, and NaN in place of figures.

    Args:
        work_dir: checkpoints to resume from are kept here. The caller gives the same directory for
            the same training and another for any other: a checkpoint found here is resumed.
        begun: its weights are those that another training left: what sees the pictures has had its lessons.
        quiet: no progress, no losses on the terminal.
    """
    best = work_dir / "best.safetensors"
    train_rows = batches.rows(TRAIN, labelled=False)
    steps_per_epoch = max(1, -(-len(train_rows) // settings.batch))
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.micro_batch,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=round(settings.warmup_share * steps_per_epoch * settings.epochs),
        lr_scheduler_type="cosine",
        max_grad_norm=settings.max_grad_norm,
        # Not "epoch": a checkpoint of an epoch's last step would be written before its evaluation, and a training that
        # was killed in between would go on without it.
        eval_strategy="steps",
        eval_steps=steps_per_epoch,
        save_strategy="steps",
        save_steps=max(1, steps_per_epoch // settings.saves_per_epoch),
        save_total_limit=2,
        logging_steps=max(1, steps_per_epoch // 10),
        report_to=[],
        disable_tqdm=quiet,
        remove_unused_columns=False,
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_num_workers=settings.loader_workers,
        use_cpu=best_device().type == "cpu",
        ddp_find_unused_parameters=False,
    )
    # as many as there are: Ray may start fewer than `processes`, and the study trains in one
    several = arguments.world_size > 1
    arguments.gradient_accumulation_steps = micro_batches(settings.batch, settings.micro_batch, arguments.world_size)
    if settings.gradient_checkpointing:  # not by Trainer: our module has no such method
        model.language_model.activation_checkpointing_enable()
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=FilledDataset(train_rows) if several else PostDataset(train_rows),
        eval_dataset=PostDataset(batches.rows(VAL, labelled=True)),
        data_collator=FilledBatches(batches, train_rows) if several else batches,
        callbacks=list(callbacks),
        batches=batches,
        settings=settings,
        best=best,
    )
    if quiet:
        trainer.remove_callback(PrinterCallback)  # which takes the progress bar's place on stdout
    resume = last_whole_checkpoint(work_dir)
    with _tower_cache(model, batches, settings, work_dir):
        if resume is None and not begun and model.family.lessons:
            teach(model, batches, settings)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    kept = {"value": float("nan"), "epoch": float("nan")}
    if arguments.should_save:  # who wrote it: other processes may be on machines that do not have it
        load_trainable_state(model, load_file(best), best)
        kept = _read_best(best)
    return FitResult(
        best_val_average_precision=kept["value"],
        best_epoch=kept["epoch"],
        history=[dict(row) for row in trainer.state.log_history],
        resumed_from_step=int(resume.name.rsplit("-", 1)[1]) if resume else 0,
    )
