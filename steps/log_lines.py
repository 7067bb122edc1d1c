"""The log as JSON, an object a line, for whoever collects it: `AGENTPS_LOG=json`, for every process of this project."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime

#: What a line says beside its words, where its writer knows it (logging's `extra`).
FIELDS = ("run", "step", "post_id", "model_version")


class JsonLines(logging.Formatter):
    """One line a record, whatever its message holds.

    Args:
        where: what is known of the place that writes, as the run and the step; asked for each record.
    """

    def __init__(self, where: Callable[[], dict[str, str]] = dict) -> None:
        super().__init__()
        self._where = where

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= self._where() | {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def as_json() -> bool:
    return os.environ.get("AGENTPS_LOG", "").lower() == "json"


def speak() -> None:
    """Have a process without a log of its own write its warnings to standard error as JSON, where that is asked for."""
    if as_json():
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
