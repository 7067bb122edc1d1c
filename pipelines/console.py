"""What a run prints: its own lines and one message where it fails, not every remark of its libraries."""

from __future__ import annotations

import logging
import warnings

from model.errors import AgentPSError

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


def quieten() -> None:
    """Call before the steps are imported: Great Expectations speaks while it is. `ZENML_LOGGING_VERBOSITY=DEBUG`
    shows everything.
    """
    if logging.getLogger().getEffectiveLevel() <= logging.DEBUG:
        return
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name in (_LAUNCHER, _ORCHESTRATOR):
        logging.getLogger(name).addFilter(told_once)
    # `validate` and `register` are steps and so sections of the config; nothing calls pydantic's methods of that name
    warnings.filterwarnings("ignore", 'Field name "(validate|register)" in "PipelineInput" shadows')


def told_once(record: logging.LogRecord) -> bool:
    """A logging filter: an error that is meant for the user is told once, at the end, without a traceback.

    ZenML's orchestrator logs it with its traceback (only the line that names the step is kept), its
    launcher with its message.
    """
    if record.exc_info and isinstance(record.exc_info[1], AgentPSError):
        record.exc_info = record.exc_text = None
        return True
    return not (isinstance(record.args, tuple) and any(isinstance(value, AgentPSError) for value in record.args))
