"""What ZenML needs before a run: it speaks less, and imports only what the run uses."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import sys

from zenml.integrations.integration import Integration
from zenml.integrations.pytorch import PytorchIntegration
from zenml.integrations.sklearn import SklearnIntegration

from model.errors import AgentPSError
from model.files import is_full

#: ZenML sets the root logger to INFO, and so makes others speak: a line for each class that Great Expectations
#: imports, for each request to the annotator; and, after every step, for a package that is not installed (fastai).
#: bitsandbytes, where it is installed, warns on a CPU that it can do without a kernel of a hub.
_LEVELS = {
    "bitsandbytes": logging.ERROR,
    "great_expectations": logging.WARNING,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    "zenml.integrations.mlflow.experiment_trackers.mlflow_experiment_tracker": logging.ERROR,
}
_LAUNCHER = "zenml.orchestrators.step_launcher"
_ORCHESTRATOR = "zenml.orchestrators.local.local_orchestrator"


def prepare() -> None:
    """Call once, before the steps are imported: Great Expectations speaks while it is."""
    _quieten()
    # ZenML asks which package a table's class is from whenever a step returns one, and this reads the file lists of all
    # packages: half a second, with the same answer.
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
    _activate_if_imported(PytorchIntegration, "torch")
    _activate_if_imported(SklearnIntegration, "sklearn")


def _activate_if_imported(integration: type[Integration], library: str) -> None:
    """Have ZenML activate an integration, whose materializers import its library, only where a step has imported it.

    ZenML activates whatever is installed when it compiles a pipeline. A step that returns the library's objects names
    their class in its signature, and so has imported it by then.
    """
    is_installed = integration.check_installation
    integration.check_installation = lambda: library in sys.modules and is_installed()  # type: ignore[method-assign]


def _quieten() -> None:
    """A run prints its own lines, and one message where it fails. `ZENML_LOGGING_VERBOSITY=DEBUG` shows everything."""
    if logging.getLogger().getEffectiveLevel() <= logging.DEBUG:
        return
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name in (_LAUNCHER, _ORCHESTRATOR):
        logging.getLogger(name).addFilter(told_once)


def told_once(record: logging.LogRecord) -> bool:
    """A logging filter: an error that is meant for the user is told once, at the end, without a traceback.

    ZenML's orchestrator logs it with its traceback (only the line that names the step is kept), its
    launcher with its message.
    """
    if record.exc_info and (isinstance(record.exc_info[1], AgentPSError) or is_full(record.exc_info[1])):
        record.exc_info = record.exc_text = None
        return True
    return not (isinstance(record.args, tuple) and any(isinstance(value, AgentPSError) for value in record.args))
