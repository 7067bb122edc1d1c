"""The log as JSON lines."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

from steps.log_lines import JsonLines
from steps.paths import REPOSITORY


def _line(**more: object) -> dict[str, object]:
    record = logging.makeLogRecord(
        {"msg": "two\nlines of %s", "args": ("posts",), "levelname": "ERROR", "name": "x"} | more
    )
    text = JsonLines(lambda: {"run": "nightly", "step": "ingest"}).format(record)
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def test_a_record_is_one_line_with_its_run_its_step_and_its_post() -> None:
    found = _line(post_id="ä1", created=1.5)
    assert found == {
        "time": "1970-01-01T00:00:01.500+00:00", "level": "ERROR", "logger": "x", "message": "two\nlines of posts",
        "run": "nightly", "step": "ingest", "post_id": "ä1",
    }  # fmt: skip


def test_an_error_keeps_its_traceback_inside_the_line() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        found = _line(exc_info=sys.exc_info())
    assert str(found["traceback"]).endswith("ValueError: a\nb")


def test_a_process_without_a_log_of_its_own_writes_json_only_where_it_is_asked_to() -> None:
    script = "import logging; from steps.log_lines import speak; speak(); logging.getLogger('a').warning('b')"
    said = {}
    for value in ("json", ""):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=REPOSITORY, env=os.environ | {"AGENTPS_LOG": value},
            stderr=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        said[value] = done.stderr.strip()
    assert said[""] == "b"
    assert json.loads(said["json"])["message"] == "b"
