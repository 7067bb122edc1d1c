"""What ZenML needs before a run: it speaks less, keeps no secrets, and imports only what the run uses."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import sys
from typing import Any

from zenml.environment import Environment
from zenml.integrations.integration import Integration
from zenml.integrations.pytorch import PytorchIntegration
from zenml.integrations.sklearn import SklearnIntegration
from zenml.models import ExceptionInfo
from zenml.steps.step_context import StepContext
from zenml.utils import exception_utils

from steps.edge import told
from steps.log_lines import JsonLines, as_json
from steps.secrets import mask_error, masked

_TRACKER = "zenml.integrations.mlflow.experiment_trackers.mlflow_experiment_tracker"
#: ZenML sets the root logger to INFO, and so makes others speak: a line for each class that Great Expectations
#: imports, for each request to the annotator; and, after every step, for a package that is not installed (fastai).
_LEVELS = {
    "great_expectations": logging.WARNING,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    _TRACKER: logging.ERROR,
}
_LAUNCHER = "zenml.orchestrators.step_launcher"
#: They log each write of their own that fails with its traceback, and hand it on.
_ON_A_FULL_DISK = ("mlflow.store.db.utils", "zenml.log_stores.artifact.artifact_log_exporter")
_ORCHESTRATOR = "zenml.orchestrators.local.local_orchestrator"


def prepare() -> None:
    """Call once, before the steps are imported: Great Expectations speaks while it is."""
    _quieten()
    _keep_no_secrets()
    if as_json():
        for handler in logging.getLogger().handlers:
            if handler.formatter is not None:  # the console's: the other one stores records as they are
                handler.setFormatter(JsonLines(_where))
    # ZenML asks which package a table's class is from whenever a step returns one, and this reads the file lists of all
    # packages: half a second, with the same answer.
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
    # And it asks pip for the installed packages, in a process, at the beginning of a run and of each of its steps.
    Environment.get_python_packages = functools.cache(Environment.get_python_packages)  # type: ignore[method-assign]
    _leave_autologging_alone()
    _activate_if_imported(PytorchIntegration, "torch")
    _activate_if_imported(SklearnIntegration, "sklearn")


def _activate_if_imported(integration: type[Integration], library: str) -> None:
    """Have ZenML activate an integration, whose materializers import its library, only where a step has imported it.

    ZenML activates whatever is installed when it compiles a pipeline. A step that returns the library's objects names
    their class in its signature, and so has imported it by then.
    """
    is_installed = integration.check_installation
    integration.check_installation = lambda: library in sys.modules and is_installed()  # type: ignore[method-assign]


def _leave_autologging_alone() -> None:
    """After each step ZenML switches MLflow's autologging off, which nothing here switches on: it imports torch for
    that, also where the training is cached.
    """
    loaded = sys.modules.get(_TRACKER)  # `zenml pipeline run` has looked at the stack before it imports the pipeline
    if loaded is not None:
        loaded.MLFlowExperimentTracker.disable_autologging = lambda tracker: None


def _where() -> dict[str, str]:
    context = StepContext.get()
    return {} if context is None else {"run": context.pipeline_run.name, "step": context.step_name}


class _Record(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 (logging's name)
        return masked(super().getMessage())


def _keep_no_secrets() -> None:
    """What is logged goes to the terminal and into the logs that ZenML keeps; a step's error also into its database."""
    logging.setLogRecordFactory(_Record)
    collect = exception_utils.collect_exception_information

    @functools.wraps(collect)
    def collect_masked(exception: BaseException, *args: Any, **kwargs: Any) -> ExceptionInfo:
        mask_error(exception)  # ZenML logs the same error when it has been collected
        found = collect(exception, *args, **kwargs)
        shown = {"traceback": masked(found.traceback), "message": found.message and masked(found.message)}
        return found.model_copy(update=shown)

    exception_utils.collect_exception_information = collect_masked


def _quieten() -> None:
    """A run prints its own lines, and one message where it fails. `ZENML_LOGGING_VERBOSITY=DEBUG` shows everything."""
    if logging.getLogger().getEffectiveLevel() <= logging.DEBUG:
        return
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name in (_LAUNCHER, _ORCHESTRATOR, *_ON_A_FULL_DISK):
        logging.getLogger(name).addFilter(told_once)


def told_once(record: logging.LogRecord) -> bool:
    """A logging filter: an error that is meant for the user is told once, at the end, without a traceback.

    ZenML's orchestrator logs it with its traceback (only the line that names the step is kept), its
    launcher with its message.
    """
    in_message = isinstance(record.args, tuple) and any(map(_is_told, record.args))
    if record.exc_info and _is_told(record.exc_info[1]):
        record.exc_info = record.exc_text = None
        return not (in_message and record.name in _ON_A_FULL_DISK)
    return not in_message


def _is_told(value: object) -> bool:
    return isinstance(value, Exception) and told(value) is not None
