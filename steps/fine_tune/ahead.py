"""What preprocess and fine_tune would refuse, said before an annotator is paid.

Libraries are imported only where there is something to look at: a run whose steps are cached needs none of them.
"""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from pathlib import Path

from model.errors import ConfigError
from model.settings import OWN, TINY, answers_questions
from model.task import Task
from steps.paths import home
from steps.settings import TrainingSettings

#: Of answers to all questions, that relabelling keeps in memory for each of some posts.
MOST_COMBINATIONS = 10_000


def check(settings: TrainingSettings, task: Task, *, here: bool) -> None:
    """
    Args:
        here: the steps run on this machine.

    Raises:
        AgentPSError: an option names a question that the task does not have; the backbone cannot be used, or does not
            fit the task; the machine cannot train so.
    """
    settings.check_task(task)
    check_labels(settings, task)
    if here:
        check_machine(settings)
    # these are made by preprocess, which says the same of them, at no cost where nobody is paid
    if settings.backbone.name not in (TINY, OWN) or settings.annotate.annotator == "openai":
        _check_backbone(settings, task)


def check_labels(settings: TrainingSettings, task: Task) -> None:
    """Raises: ConfigError where `fine_tune.labels` has nothing to work on."""
    method, annotator = settings.fine_tune.labels, settings.annotate.annotator
    combinations = math.prod(len(question.classes) for question in task.questions)
    lacks = (
        f"the variant {settings.variant} learns no process labels"
        if not answers_questions(settings.variant)
        else f"the task {task.name} has no intermediate question"
        if not task.questions
        else "people's labels are all there is (annotator: human): there is nothing to correct"
        if annotator == "human"
        else f"it weighs every combination of answers, and the task {task.name} has {combinations:,}; at most "
        f"{MOST_COMBINATIONS:,} can be"
        if method == "relabelled" and combinations > MOST_COMBINATIONS
        else None
    )
    if method != "plain" and lacks is not None:
        raise ConfigError(f"fine_tune.labels {method}: {lacks}: set it to plain")


def check_machine(settings: TrainingSettings) -> None:
    """Raises: ConfigError where this machine lacks what the training needs."""
    if settings.backbone.quantization is not None and find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"backbone.quantization {settings.backbone.quantization}: bitsandbytes is not installed: "
            "`pip install 'agentps[quantization]'`, or remove the option"
        )
    processes = settings.fine_tune.processes
    if settings.fine_tune.engine == "ray":
        if find_spec("ray") is None:
            raise ConfigError(
                "fine_tune.engine ray: Ray is not installed: `pip install -e .[serve]`, in the folder of AgentPS, "
                "installs it; or set torchrun"
            )
    elif processes > 1:
        import torch

        there, what = (torch.cuda.device_count(), "GPU") if torch.cuda.is_available() else (os.cpu_count() or 1, "core")
        if processes > max(there, 2 if what == "core" else 1):
            raise ConfigError(
                f"fine_tune.processes {processes}: this machine has {there} {what}{'s' if there != 1 else ''}: lower it"
            )


def check_start(checkpoint: Path, task: Task, settings: TrainingSettings) -> None:
    """Raises: CheckpointError where a training with `settings` could not go on from the weights of `checkpoint`."""
    from model.checkpoint import check_start
    from steps.fine_tune.backbone import resolve

    check_start(checkpoint, task, resolve(settings.backbone, home()), settings.fine_tune)


def _check_backbone(settings: TrainingSettings, task: Task) -> None:
    from model.backbone import check_weights, load_config, load_tokenizer
    from model.checkpoint import check_fits
    from model.own import own_parts
    from steps.fine_tune.backbone import resolve

    if settings.backbone.name == OWN:  # of no texts: each word of the task is one token with them, too
        check_fits(*own_parts([], task, settings.preprocess.image_size), task, settings.preprocess)
        return
    backbone = resolve(settings.backbone, home())
    config = load_config(backbone)
    check_fits(config, load_tokenizer(backbone), task, settings.preprocess)
    if os.path.isdir(backbone.name):  # a hub's are fetched when they are needed
        check_weights(backbone, config)
