from __future__ import annotations

import pytest

from steps.caching import depends_on
from steps.paths import REPOSITORY


def test_a_folder_stands_for_its_python_files_and_a_file_for_itself() -> None:
    files = depends_on("steps/ingest", "model/task.py").file_dependencies or []
    expected = {f"steps/ingest/{path.name}" for path in (REPOSITORY / "steps" / "ingest").glob("*.py")}
    assert set(files) == expected | {"model/task.py"}
    assert all((REPOSITORY / name).is_file() for name in files)


def test_the_files_come_in_the_same_order_every_time() -> None:
    assert depends_on("model").file_dependencies == sorted(depends_on("model").file_dependencies or [])


def test_a_name_without_files_is_an_error_and_not_an_empty_dependency() -> None:
    with pytest.raises(ValueError, match="steps/annotat: no such file or folder"):
        depends_on("steps/annotat")


def test_inputs_and_parameters_still_count() -> None:
    policy = depends_on("model/task.py")
    assert policy.include_step_code
    assert policy.include_step_parameters
    assert policy.include_artifact_ids
