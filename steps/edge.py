"""The edge of commands and pipelines: an error that a user can mend ends in one message, without a traceback."""

from __future__ import annotations

import tempfile
from pathlib import Path

from model.errors import AgentPSError
from model.files import full_disk
from steps.paths import home
from steps.secrets import mask_error


def told(error: Exception) -> str | None:
    """The message for an error that is no fault of the code; None: it is one, and keeps its traceback.

    In either case secrets in the error, and in those that it came of, are masked.
    """
    mask_error(error)
    if isinstance(error, AgentPSError):
        return str(error)
    if type(error).__module__ == "mlflow.exceptions":  # of a call that is not the registry's: ZenML's, for example
        from steps.register.reach import place, trouble

        return None if (line := trouble(error)) is None else f"MLflow {place()}: {line}"
    return full_disk(error, home(), Path(tempfile.gettempdir()))
