"""Where things lie: the repository, its config files, and the project's local state."""

from __future__ import annotations

import os
from pathlib import Path

from steps.secrets import resolved

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = REPOSITORY / "configs" / "default.yaml"
#: Under `home()`.
STORE_FILE = "scores.db"
STUDY_CONFIG = REPOSITORY / "configs" / "study.yaml"


def home() -> Path:
    """Where the project keeps its local state: `$AGENTPS_HOME`, else `.agentps/` in the repository."""
    return Path(os.environ.get("AGENTPS_HOME") or REPOSITORY / ".agentps").resolve()


def ledger_url(configured: str | None) -> str:
    """The database of paid answers: the one that is configured, else a file under `home()`."""
    if configured:
        return resolved(configured, "annotate.ledger")
    return f"sqlite:///{home() / 'annotations.db'}"


def store_url() -> str:
    """The store of scored posts where none is configured."""
    return f"sqlite:///{home() / STORE_FILE}"
